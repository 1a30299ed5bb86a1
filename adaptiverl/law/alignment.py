"""The law of α that searches by the alignment of gradient and last update (method.md#alignment).

The twin of csrc/law/alignment.h; method.md#alignment and method.md#search explain it.
"""

from __future__ import annotations

import math

from adaptiverl.law.arithmetic import clip, ema, ratio
from adaptiverl.law.base import Law
from adaptiverl.law.cooldown import annealing, is_cooling
from adaptiverl.law.knobs import bounded_log_lr
from adaptiverl.layout import ControlNumbers, State

ALIGNMENT_BETA = 0.05
"""Weight of the newest h² in the average that h is measured by"""
DIRECTION_BETA = 0.2
"""Weight of the newest x in e: e looks back over some five steps"""
CLEARLY_DOWNHILL = 0.2
"""Where e is above this, the rate is one whose updates still point downhill"""
GROWTH = 0.2
"""log-units, times 1 − μ, that log α gains in a step while nothing speaks against it"""
OVERSHOOT_SIZE = 0.3
"""How far below 0, in units of h's RMS, the mean of h is that the test looks for"""
OVERSHOOT_CLIP = 2.0
"""What one step can say, in those units"""
OVERSHOOT_NONE = 1.0
"""Log-likelihood below which nothing speaks against a rate"""
OVERSHOOT_ENOUGH = 5.0
"""Log-likelihood at which updates are held to overshoot: by chance once in some 3,000 steps"""
REACH = 0.3
"""log-units that α may lie above the last rate whose updates clearly pointed downhill"""
SAME_RATE = 1.5
"""log-units within which an overshoot that is found again counts as the same one"""


def sense_alignment(state: State) -> float | None:
    """h, S2, x and e from the newest pass's sums, which are read once.

    Returns:
        h in units of its RMS, limited to what one step can say; None where there is nothing to
        read: no pass since, no update before it, or no gradient.
    """
    pending = state.aligned_pending != 0
    state.aligned_pending = 0.0
    if not pending or state.aligned_gg == 0 or state.aligned_uu == 0:
        return None
    cosine = state.aligned_gu / (math.sqrt(state.aligned_gg) * math.sqrt(state.aligned_uu))
    score = -1.0
    if math.isfinite(cosine):
        state.alignment = cosine
        state.alignment_square = ema(state.alignment_square, cosine * cosine, ALIGNMENT_BETA)
        state.alignment_weight = ema(state.alignment_weight, 1.0, ALIGNMENT_BETA)
        rms = math.sqrt(state.alignment_square / state.alignment_weight)
        score = clip(ratio(cosine, rms), -OVERSHOOT_CLIP, OVERSHOOT_CLIP)
    state.alignment_direction = clip(score, -1.0, 1.0)
    state.alignment_mean = ema(state.alignment_mean, state.alignment_direction, DIRECTION_BETA)
    return score


def beyond_noise(mean: float) -> float:
    """e without what chance can make of it: e·(1 − se²/e²), 0 where |e| is below se.

    x has mean square 1, so that the standard error of its average is se² = (1 − e²)·β/(2 − β).
    """
    square = mean * mean
    error = (1 - square) * DIRECTION_BETA / (2 - DIRECTION_BETA)
    return mean * (1 - error / square) if square > error else 0.0


def next_overshoot(overshoot: float, score: float) -> float:
    """Page's cumulative sum: log-likelihood ratio of a mean of −δ against one of 0, from 0 up."""
    evidence = -OVERSHOOT_SIZE * score - OVERSHOOT_SIZE * OVERSHOOT_SIZE / 2
    return max(overshoot + evidence, 0.0)


def hold(state: State, control: ControlNumbers) -> None:
    """The rate is found: the last one whose updates clearly pointed downhill, if any did."""
    state.held = 1.0
    if state.log_lr_downhill > -math.inf:
        state.log_lr = state.log_lr_downhill
    log_lr = state.log_lr + control.log_held_share
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)


def look_again_or_hold(state: State, control: ControlNumbers) -> None:
    """Go back and look again; hold the lower of two rates where an overshoot is found again.

    On a plateau h is noise, which now and then looks like an overshoot: but while the test starts
    afresh α climbs on, and chance hardly ever speaks twice at about the same rate. The lower rate,
    because every look is another chance for luck to choose one that is too high.
    """
    if state.log_lr_downhill <= state.log_lr_doubted + SAME_RATE:
        state.log_lr_downhill = min(state.log_lr_downhill, state.log_lr_doubted)
        hold(state, control)
        return
    state.log_lr_doubted = state.log_lr_downhill
    state.log_lr = clip(state.log_lr_downhill, control.log_lr_min, control.log_lr_max)
    state.overshoot = 0.0


def acquire(state: State, control: ControlNumbers, score: float) -> None:
    """One step of the search: up, until updates twice are sure to overshoot at about one rate."""
    higher = state.log_lr >= state.log_lr_downhill
    if state.alignment_mean > CLEARLY_DOWNHILL and (higher or state.overshoot < OVERSHOOT_NONE):
        state.log_lr_downhill = state.log_lr
    if state.log_lr_downhill > -math.inf:
        state.overshoot = next_overshoot(state.overshoot, score)
    if state.overshoot > OVERSHOOT_ENOUGH:
        look_again_or_hold(state, control)
        return
    growth = GROWTH * (1 - state.overshoot / OVERSHOOT_ENOUGH)
    step = (1 - state.momentum) * (beyond_noise(state.alignment_mean) + growth)
    log_lr = state.log_lr + step
    if state.log_lr_downhill > -math.inf:
        log_lr = min(log_lr, state.log_lr_downhill + REACH)
    state.log_lr = bounded_log_lr(log_lr, state.log_lr, control)


def skip_reused(state: State, control: ControlNumbers) -> None:
    """Nothing is read of a gradient whose samples an update was made of before.

    The pending sums are of the step before (method.md#data-reuse).
    """
    if control.reused_for > 0:
        made = math.fmod(state.step - 2, control.reused_for)
        if made >= control.fresh_for:
            state.aligned_pending = 0.0


def sense(state: State, control: ControlNumbers) -> bool:
    """α of one step: search, hold, anneal (method.md#cooldown)."""
    skip_reused(state, control)
    score = sense_alignment(state)
    if state.held == 0 and score is not None:
        acquire(state, control, score)
    else:
        state.log_lr = bounded_log_lr(state.log_lr, state.log_lr, control)
    if state.held == 0 and is_cooling(state, control):
        hold(state, control)
    state.anneal = annealing(state.step, control)
    return True


def act(state: State, control: ControlNumbers, reward_direction: float, worsening: float) -> None:
    """No loss or reward moves this α."""


ALIGNMENT = Law(needs_loss=False, needs_sums=True, sense=sense, act=act, reads_sums_until="held")
