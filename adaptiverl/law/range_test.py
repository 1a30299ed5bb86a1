"""The law of α that ramps it up, goes back, and holds what the ramp found, or climbs from there.

The twin of csrc/law/range_test.h; method.md#range-test explains it.
"""

from __future__ import annotations

import math

from adaptiverl.law import alignment, sensors
from adaptiverl.law.alignment import next_overshoot
from adaptiverl.law.arithmetic import clip, ema, ratio
from adaptiverl.law.base import Law
from adaptiverl.law.cooldown import annealing, is_cooling
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
RISEN_BY = 9.0
"""Standard errors of a difference by which the loss's mean must lie above its least one"""
LOSSES_ENOUGH = 12.0
"""Losses that the ramp must have been told before it judges them: those of its first rates"""
CONFIRMED_WITHIN = math.log(10)
"""log-units from a mark within which the loss must rise for the mark to be believed"""
CLIMB_FROM = math.log(0.1)
"""log of the share of what would be held from which the climb starts"""
CLIMB_ROOM = 100.0
"""Steps before the cooldown that a climb needs"""
UNDERSHOOT_ENOUGH = 5.0
"""Log-likelihood at which updates at the held rate are sure to point downhill still"""
CREEP = 0.3
"""log-units by which the held rate is then raised"""


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


def forget_cosines(state: State) -> None:
    """What was sensed so far is of other weights, or of a sensor with other averages."""
    state.overshoot = 0.0
    state.undershoot = 0.0
    state.alignment_square = 0.0
    state.alignment_weight = 0.0
    state.alignment_mean = 0.0
    state.alignment_mean_weight = 0.0
    state.alignment_peak = 0.0


def begin(state: State, control: ControlNumbers) -> None:
    """The foot of the ramp: nothing is known of any rate."""
    state.searching = 1.0
    state.log_lr = control.log_lr_acquire
    state.log_lr_judged = control.log_lr_acquire
    state.log_lr_downhill = -math.inf
    state.log_lr_clear = -math.inf
    state.log_lr_risen = -math.inf
    forget_cosines(state)
    state.ramp_losses = 0.0
    state.losses_heard = state.loss_count


def hear_loss(state: State) -> None:
    """The loss that was told since the last step, if any: whether it has risen beyond its noise.

    The noise is that of successive differences, which a trend leaves alone; the loss is compared
    with the least mean that it had, and with its noise there.
    """
    heard = state.loss_count != state.losses_heard
    state.losses_heard = state.loss_count
    if not heard or not math.isfinite(state.loss):
        return
    state.ramp_losses += 1
    last, state.ramp_loss = state.ramp_loss, state.loss
    if state.ramp_losses == 1:
        state.ramp_loss_mean = state.loss
        state.ramp_loss_square = 0.0
        return
    difference = clip(state.loss - last, -sensors.LARGEST, sensors.LARGEST)
    square = min(difference * difference, sensors.LARGEST) / 2
    first = state.ramp_losses == 2
    state.ramp_loss_square = square if first else ema(state.ramp_loss_square, square, SQUARE_BETA)
    surprise = clip(state.loss - state.ramp_loss_mean, -sensors.LARGEST, sensors.LARGEST)
    state.ramp_loss_mean += MEAN_BETA * surprise
    if state.ramp_losses < LOSSES_ENOUGH:
        return
    if state.ramp_losses == LOSSES_ENOUGH or state.ramp_loss_mean < state.ramp_loss_least:
        error = math.sqrt(state.ramp_loss_square * (MEAN_BETA / (2 - MEAN_BETA)))
        state.ramp_loss_least = state.ramp_loss_mean
        state.ramp_loss_limit = state.ramp_loss_mean + RISEN_BY * math.sqrt(2) * error
    elif state.log_lr_risen == -math.inf and state.ramp_loss_mean > state.ramp_loss_limit:
        state.log_lr_risen = state.log_lr_judged


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
    state.log_lr = bounded_log_lr(state.log_lr + RAMP * share, state.log_lr, control)


def warming(step: float, held_at: float, control: ControlNumbers) -> float:
    """min(1, (t − t_held)/warm-up): the moments start anew, too; 1 where there is no warm-up."""
    if control.warm_up == 0:
        return 1.0
    return clip((step - held_at) / control.warm_up, 0.0, 1.0)


def marked(state: State) -> float:
    """The lower of the two marks; −∞ where no update ever pointed downhill."""
    return min(state.log_lr_downhill, state.log_lr_clear)


def is_lost(state: State, control: ControlNumbers) -> bool:
    """Whether h has been noise since the weights were lost, so that its marks say nothing.

    Either the loss rose far below the mark, or the ramp is at its top and not sure.
    """
    risen_below = -math.inf < state.log_lr_risen < marked(state) - CONFIRMED_WITHIN
    at_top = control.log_lr_acquire < control.log_lr_max <= state.log_lr_judged
    return risen_below or (at_top and state.overshoot <= SURE)


def is_confirmed(state: State) -> bool:
    """Whether the loss rose soon after the mark: what overshoots there is what matters."""
    return -math.inf < state.log_lr_risen <= marked(state) + CONFIRMED_WITHIN


def is_over(state: State, control: ControlNumbers) -> bool:
    """Whether going on up the ramp would say no more.

    Where losses are told it goes on until they have risen, or can no longer confirm the mark.
    """
    if is_lost(state, control):
        return True
    if state.overshoot <= SURE:
        return False
    if state.ramp_losses < LOSSES_ENOUGH or state.log_lr_risen > -math.inf:
        return True
    beyond = state.log_lr_judged > marked(state) + CONFIRMED_WITHIN
    return beyond or state.log_lr_judged >= control.log_lr_max


def end(state: State, control: ControlNumbers) -> None:
    """The ramp is over: its share of the mark is held, or the slow climb starts below it.

    Where no update ever pointed downhill the rate that the user gave counts as that share, and
    where the marks say nothing as well: they are let go, and a climb starts at the ramp's floor.
    """
    state.searching = 0.0
    state.held_at = state.step
    lost = is_lost(state, control)
    if lost:
        state.log_lr_downhill = -math.inf
        state.log_lr_clear = -math.inf
    found = marked(state)
    confirmed = is_confirmed(state)
    log_lr = found + control.log_ramp_share if found > -math.inf else state.log_lr_start
    forget_cosines(state)
    if confirmed or control.hold_by - state.step < CLIMB_ROOM:
        state.held = 1.0
        log_lr += control.log_held_share
    else:
        state.climbing = 1.0
        log_lr = control.log_ramp_floor if lost else log_lr + CLIMB_FROM
        state.log_lr_downhill = -math.inf
        state.log_lr_doubted = -math.inf
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)


def search(state: State, control: ControlNumbers, score: float | None) -> None:
    """One step of the search: up the ramp, until it is sure that updates overshoot."""
    late = is_cooling(state, control)
    if state.searching == 0:
        if control.search_within == 0 or late:
            state.held = 1.0
        else:
            begin(state, control)
            state.search_steps = 0.0
        return
    state.search_steps += 1
    late = late or state.search_steps >= control.search_within
    lost = score is not None and math.isnan(score)
    hear_loss(state)
    if score is not None and not lost and state.overshoot <= SURE:
        mark(state, control, score)
    if lost and not late and state.log_lr_judged < control.log_ramp_floor:
        go_back(state)
        begin(state, control)
        return
    if lost and state.log_lr_risen == -math.inf:
        state.log_lr_risen = state.log_lr_judged
    if late or lost or is_over(state, control):
        go_back(state)
        end(state, control)
    elif score is not None:
        climb(state, control)


def creep(state: State, control: ControlNumbers, score: float | None) -> None:
    """The held rate is raised a little where updates are sure to point downhill still."""
    ready = state.held_at + control.warm_up < state.step < control.hold_by
    if ready and score is not None and not math.isnan(score):
        state.undershoot = next_overshoot(state.undershoot, -score)
    log_lr = state.log_lr
    if state.undershoot > UNDERSHOOT_ENOUGH:
        state.undershoot = 0.0
        log_lr += CREEP
    state.log_lr = bounded_log_lr(log_lr, state.log_lr, control)


def sense(state: State, control: ControlNumbers) -> bool:
    """α of one step: search, go back, warm up, hold, cool down; or the climb's step."""
    if state.climbing != 0:
        return alignment.sense(state, control)
    score = sense_cosine(state)
    if state.held == 0:
        search(state, control, score)
    else:
        creep(state, control, score)
    state.anneal = 1.0
    if state.held != 0:
        risen = warming(state.step, state.held_at, control)
        state.anneal = risen * annealing(state.step, control)
    return True


def act(state: State, control: ControlNumbers, reward_direction: float, worsening: float) -> None:
    """No loss or reward moves this α."""


RANGE_TEST = Law(
    needs_loss=False,
    needs_sums=True,
    sense=sense,
    act=act,
    goes_back=True,
    reads_sums_until="cooldown",
)
