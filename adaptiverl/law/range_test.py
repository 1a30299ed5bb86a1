"""The law of α that ramps it up, goes back, and holds what the ramp found (method.md#range-test).

The twin of csrc/law/range_test.h; method.md#ramp explains it.
"""

from __future__ import annotations

import math

from adaptiverl.law import alignment
from adaptiverl.law.alignment import annealing, next_overshoot
from adaptiverl.law.arithmetic import clip, ema, ratio
from adaptiverl.law.base import Law
from adaptiverl.law.knobs import bounded_log_lr
from adaptiverl.layout import ControlNumbers, State

SQUARE_BETA = 0.1
"""Weight of the newest h² in the average that h is measured by"""
MEAN_BETA = 0.3
"""Weight of the newest h in e: e looks back over some three steps"""
RAMP = 0.35
"""log-units that log α gains in a step: 42 %"""
LEAST_RAMP = 0.3
"""Share of them that is left where updates hardly point downhill any more"""
SURE = 3.0
"""Log-likelihood at which updates are held to overshoot; going on for too long costs nothing"""


def sense_cosine(state: State) -> float | None:
    """h, e and S2 from the newest pass's sums, which are read once.

    Returns:
        h in units of its RMS, limited to what one step can say; NaN where h is not finite; None
        where there is nothing to read: no pass since, no update before it, or no gradient.
    """
    pending = state.aligned_pending != 0
    state.aligned_pending = 0.0
    if not pending or state.aligned_gg == 0 or state.aligned_uu == 0:
        return None
    cosine = state.aligned_gu / (math.sqrt(state.aligned_gg) * math.sqrt(state.aligned_uu))
    if not math.isfinite(cosine):
        return math.nan
    state.alignment = cosine
    state.alignment_square = ema(state.alignment_square, cosine * cosine, SQUARE_BETA)
    state.alignment_weight = ema(state.alignment_weight, 1.0, SQUARE_BETA)
    rms = math.sqrt(state.alignment_square / state.alignment_weight)
    score = clip(ratio(cosine, rms), -alignment.OVERSHOOT_CLIP, alignment.OVERSHOOT_CLIP)
    state.alignment_direction = clip(score, -1.0, 1.0)
    state.alignment_mean_weight = ema(state.alignment_mean_weight, 1.0, MEAN_BETA)
    change = MEAN_BETA / state.alignment_mean_weight * (cosine - state.alignment_mean)
    state.alignment_mean = clip(state.alignment_mean + change, -1.0, 1.0)
    return score


def begin(state: State, control: ControlNumbers) -> None:
    """The foot of the ramp: nothing is known of any rate."""
    state.searching = 1.0
    state.log_lr = control.log_lr_acquire
    state.log_lr_judged = control.log_lr_acquire
    state.log_lr_downhill = -math.inf
    state.log_lr_clear = -math.inf
    state.overshoot = 0.0
    state.alignment_square = 0.0
    state.alignment_weight = 0.0
    state.alignment_mean = 0.0
    state.alignment_mean_weight = 0.0
    state.alignment_peak = 0.0


def go_back(state: State) -> None:
    """The weights of the ramp's start are put back in this step, which takes no step of its own.

    Its gradient is of weights that are given up.
    """
    state.rewind = 1.0
    state.active = 0.0


def mark(state: State, control: ControlNumbers, score: float) -> None:
    """What the newest h says of the rate that its update was made with."""
    if state.alignment_mean > 0:
        state.log_lr_downhill = state.log_lr_judged
    if state.log_lr_judged >= control.log_ramp_floor:
        state.overshoot = next_overshoot(state.overshoot, score)
    if state.overshoot == 0:
        state.log_lr_clear = state.log_lr_judged


def climb(state: State, control: ControlNumbers) -> None:
    """One step up the ramp, shorter where updates hardly point downhill any more."""
    state.alignment_peak = max(state.alignment_peak, state.alignment_mean)
    share = 1.0
    if state.log_lr_judged >= control.log_ramp_floor:
        share = clip(ratio(state.alignment_mean, state.alignment_peak), LEAST_RAMP, 1.0)
    state.log_lr_judged = state.log_lr
    log_lr = state.log_lr + RAMP * share
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)


def warming(step: float, held_at: float, control: ControlNumbers) -> float:
    """min(1, (t − t_held)/warm-up): the moments start anew, too; 1 where there is no warm-up."""
    if control.warm_up == 0:
        return 1.0
    return clip((step - held_at) / control.warm_up, 0.0, 1.0)


def hold(state: State, control: ControlNumbers) -> None:
    """The rate is found: a share of the lower of two marks.

    Where no update ever pointed downhill it is the rate that the user gave.
    """
    state.held = 1.0
    state.held_at = state.step
    state.searching = 0.0
    found = min(state.log_lr_downhill, state.log_lr_clear)
    log_lr = found + control.log_held_share if found > -math.inf else state.log_lr_start
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)


def search(state: State, control: ControlNumbers, score: float | None) -> None:
    """One step of the search: up the ramp, until it is sure that updates overshoot."""
    over = state.step >= control.hold_by
    if state.searching == 0:
        if control.search_within == 0 or over:
            state.held = 1.0
        else:
            begin(state, control)
            state.search_steps = 0.0
        return
    state.search_steps += 1
    over = over or state.search_steps >= control.search_within
    lost = score is not None and math.isnan(score)
    if score is not None and not lost:
        mark(state, control, score)
    if over or state.overshoot > SURE or lost:
        go_back(state)
        if lost and not over and state.log_lr_judged < control.log_ramp_floor:
            begin(state, control)
        else:
            hold(state, control)
    elif score is not None:
        climb(state, control)


def sense(state: State, control: ControlNumbers) -> bool:
    """α of one step: search, go back, warm up, hold, cool down."""
    score = sense_cosine(state)
    if state.held == 0:
        search(state, control, score)
    else:
        state.log_lr = bounded_log_lr(state.log_lr, state.log_lr, control)
    state.anneal = 1.0
    if state.held != 0:
        risen = warming(state.step, state.held_at, control)
        state.anneal = risen * annealing(state.step, control)
    return True


def act(state: State, control: ControlNumbers, reward_direction: float, worsening: float) -> None:
    """No loss or reward moves this α."""


RANGE_TEST = Law(needs_loss=False, needs_sums=True, sense=sense, act=act, goes_back=True)
