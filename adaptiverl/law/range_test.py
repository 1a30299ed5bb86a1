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
SURE = 4.0
"""Log-likelihood at which updates are held to overshoot; going on for too long costs nothing"""
SURE_WITHIN = math.log(100)
"""log-units from the mark within which updates must be sure to overshoot: where training starts on
a plateau one direction is sharp, and beyond it h is noise for decades"""
RISEN_BY = 9.0
"""Standard errors of a difference by which the loss's mean must lie above its least one"""
LOSSES_ENOUGH = 12.0
"""Losses that the ramp must have been told before it judges them: those of its first rates"""
RISEN_WITHIN = math.log(30)
"""log-units from the mark within which the loss must rise to confirm it"""
LOST_BELOW = math.log(10)
"""log-units by which a mark that lies so far above the loss's rise is one of lost weights"""
CLIMB_FROM = math.log(0.3)
"""log of the share of what would be held from which the climb starts"""
CLIMB_ROOM = 100.0
"""Steps before the cooldown that a climb needs"""
WATCHED_LEAST = 30.0
"""Losses of each of the two windows that are compared after the warm-up, at least"""
WATCHED_SHARE = 1 / 3
"""How long they are, as a share of the warm-up"""
WATCH_CLIMBS = 3.0
"""Of the windows that are over, where a climb followed from them"""
UNDERSHOOT_ENOUGH = 5.0
"""Log-likelihood at which updates at the held rate are sure to point downhill still"""
CREEP = 0.3
"""log-units by which the held rate is then raised, up to the mark"""


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
    state.log_lr_zero = -math.inf
    state.log_lr_risen = -math.inf
    forget_cosines(state)
    state.ramp_losses = 0.0
    state.losses_heard = state.loss_count


def hears_a_loss(state: State) -> bool:
    """Whether a finite loss was told since this was asked last."""
    told = state.loss_count != state.losses_heard
    state.losses_heard = state.loss_count
    return told and math.isfinite(state.loss)


def hear_loss(state: State) -> None:
    """The loss that was told since the last step, if any: whether it has risen beyond its noise.

    The noise is that of successive differences, which a trend leaves alone; the loss is compared
    with the least mean that it had, and with its noise there. Two losses must say so one after the
    other, too: a single one far above all others is a batch of its own kind.
    """
    if not hears_a_loss(state):
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
    elif state.log_lr_risen == -math.inf:
        if min(state.ramp_loss_mean, state.loss, last) > state.ramp_loss_limit:
            state.log_lr_risen = state.log_lr_judged


def go_back(state: State) -> None:
    """The weights of the ramp's start are put back in this step, which takes no step of its own.

    Its gradient is of weights that are given up.
    """
    state.rewind = 1.0
    state.active = 0.0


def mark(state: State, control: ControlNumbers, score: float) -> None:
    """What the newest h says of the rate that its update was made with: the mark is e's first zero.

    From there on updates are too long for the last few gradients; a later zero is more scattered.
    """
    if state.log_lr_judged < control.log_ramp_floor:
        return
    state.overshoot = next_overshoot(state.overshoot, score)
    if state.log_lr_zero == -math.inf and state.alignment_mean <= 0:
        state.log_lr_zero = state.log_lr_judged


def climb(state: State, control: ControlNumbers) -> None:
    """One step up the ramp, shorter where updates hardly point downhill any more."""
    state.alignment_peak = max(state.alignment_peak, state.alignment_mean)
    share = 1.0
    if state.log_lr_judged >= control.log_ramp_floor:
        share = clip(ratio(state.alignment_mean, state.alignment_peak), LEAST_RAMP, 1.0)
    state.log_lr_judged = state.log_lr
    state.log_lr = bounded_log_lr(state.log_lr + RAMP * share, state.log_lr, control)


def warming(step: float, held_at: float, control: ControlNumbers) -> float:
    """What the warm-up leaves of α; 1 where there is none, or it is over.

    It is slow, and in equal factors: where the first rates are far below, weights find flatter
    places, which bear the held one.
    """
    if control.warm_up == 0:
        return 1.0
    risen = clip((step - held_at) / control.warm_up, 0.0, 1.0)
    return math.exp(control.log_warm_from * (1 - risen))


def is_lost(state: State) -> bool:
    """Whether h has been noise since the weights were lost, so that its mark says nothing."""
    return -math.inf < state.log_lr_risen < state.log_lr_zero - LOST_BELOW


def is_confirmed_by_loss(state: State) -> bool:
    """Whether the loss rose soon after the mark."""
    return -math.inf < state.log_lr_risen <= state.log_lr_zero + RISEN_WITHIN


def is_confirmed(state: State) -> bool:
    """Whether what overshoots at the mark is what matters: soon after, h is sure or the loss rose.

    Where training starts on a plateau it may be one sharp direction, and the right rate lies far
    above.
    """
    if state.log_lr_zero == -math.inf or is_lost(state):
        return False
    sure = state.overshoot > SURE and state.log_lr_judged <= state.log_lr_zero + SURE_WITHIN
    return sure or is_confirmed_by_loss(state)


def is_at_top(state: State, control: ControlNumbers) -> bool:
    """Whether there is nowhere to go."""
    return state.log_lr_judged >= control.log_lr_max


def is_over(state: State, control: ControlNumbers) -> bool:
    """Whether going on up the ramp would say no more."""
    beyond = -math.inf < state.log_lr_zero < state.log_lr_judged - SURE_WITHIN
    return is_lost(state) or is_confirmed(state) or beyond or is_at_top(state, control)


def begin_climb(state: State, control: ControlNumbers, log_lr: float) -> None:
    """The slow climb, from a rate on."""
    state.held = 0.0
    state.climbing = 1.0
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)
    state.log_lr_downhill = -math.inf
    state.log_lr_doubted = -math.inf
    forget_cosines(state)


def end(state: State, control: ControlNumbers, late: bool) -> None:
    """The ramp is over: its share of the mark is held, or the slow climb starts below it.

    Where there was no time to confirm a mark it is held as it is; where updates pointed downhill to
    the end, or to the upper bound, the last rate counts as one. Where the weights were lost there
    is none, and a climb starts at the ramp's floor; where no h was read the rate that the user gave
    counts as the share.
    """
    state.searching = 0.0
    state.held_at = state.step
    unmarked = state.log_lr_zero == -math.inf
    lost = is_lost(state) or (unmarked and state.log_lr_risen > -math.inf)
    confirmed = is_confirmed(state)
    judged = state.log_lr_judged >= control.log_ramp_floor
    downhill = unmarked and judged and state.alignment_mean > 0 and not lost
    if lost:
        state.log_lr_zero = -math.inf
    found = state.log_lr_judged if downhill else state.log_lr_zero
    log_lr = found + control.log_ramp_share if found > -math.inf else state.log_lr_start
    topped = downhill and is_at_top(state, control)
    if topped:
        state.log_lr_zero = found
    as_it_is = topped or (late and found > -math.inf)
    forget_cosines(state)
    holds = confirmed or as_it_is
    if holds or control.hold_by - state.step < CLIMB_ROOM:
        state.held = 1.0
        log_lr += control.log_held_share
        state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max)
    else:
        begin_climb(state, control, control.log_ramp_floor if lost else log_lr + CLIMB_FROM)


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
    if score is not None and not lost:
        mark(state, control, score)
    if lost and not late and state.log_lr_judged < control.log_ramp_floor:
        go_back(state)
        begin(state, control)
        return
    if lost and state.log_lr_risen == -math.inf:
        state.log_lr_risen = state.log_lr_judged
    if late or lost or is_over(state, control):
        go_back(state)
        end(state, control, late)
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
        mark = state.log_lr_zero if state.log_lr_zero > -math.inf else math.inf
        log_lr = max(log_lr, min(log_lr + CREEP, mark))
    state.log_lr = bounded_log_lr(log_lr, state.log_lr, control)


def window(control: ControlNumbers) -> float:
    """Losses of each of the two windows that are compared."""
    return max(WATCHED_LEAST, math.floor(WATCHED_SHARE * control.warm_up))


def is_watched(state: State, control: ControlNumbers) -> bool:
    """Whether the loss is still to confirm the held rate, and a climb would have room."""
    warm = state.held_at + control.warm_up < state.step < control.hold_by - CLIMB_ROOM
    below = max(state.log_lr, state.log_lr_zero) < control.log_lr_max
    return warm and below and state.watches < 2 and not is_confirmed_by_loss(state)


def has_learned(state: State) -> bool:
    """Whether the newest window lies as far below the ramp's losses as a rise lies above them."""
    if state.ramp_losses < LOSSES_ENOUGH:
        return False
    rise = state.ramp_loss_limit - state.ramp_loss_least
    return state.ramp_loss_least - state.watched_mean > rise


def watch(state: State, control: ControlNumbers) -> None:
    """Where h alone chose the rate, the loss must fall beyond its error, or a climb begins.

    Two windows after the warm-up, or the climb, are compared. On a plateau nothing falls at a rate
    that is far too low; h, which is noise there, has chosen it by chance. A model whose loss has
    fallen far below the ramp's has left every plateau, and may be at its floor.
    """
    if not hears_a_loss(state) or not is_watched(state, control):
        return
    state.watched += 1
    surprise = clip(state.loss - state.watched_mean, -sensors.LARGEST, sensors.LARGEST)
    state.watched_mean += surprise / state.watched
    rest = clip(state.loss - state.watched_mean, -sensors.LARGEST, sensors.LARGEST)
    state.watched_square = min(state.watched_square + surprise * rest, sensors.LARGEST)
    if state.watched < window(control):
        return
    error = state.watched_square / (state.watched * state.watched)
    fallen = state.watched_before - state.watched_mean
    of_both = math.sqrt(state.watched_error + error)
    stays = fallen <= of_both and not has_learned(state)
    state.watches += 1
    state.watched_before = state.watched_mean
    state.watched_error = error
    state.watched = state.watched_mean = state.watched_square = 0.0
    if state.watches == 2 and stays:
        state.watches = WATCH_CLIMBS
        state.log_lr_judged = state.log_lr + (CLIMB_FROM if fallen < -of_both else 0.0)
        state.log_lr_risen = -math.inf
        state.ramp_losses = 0.0
        begin_climb(state, control, state.log_lr + CLIMB_FROM)


def turn_back(state: State) -> None:
    """The loss has risen on the climb that a watch began: what it gave up is held, or less."""
    hear_loss(state)
    if state.log_lr_risen > -math.inf:
        state.climbing = 0.0
        state.held = 1.0
        state.log_lr = state.log_lr_judged
        forget_cosines(state)


def sense(state: State, control: ControlNumbers) -> bool:
    """α of one step: search, go back, warm up, hold, cool down; or the climb's step."""
    if state.climbing != 0:
        alignment.sense(state, control)
        if state.held != 0:
            watch(state, control)
        elif state.watches == WATCH_CLIMBS:
            turn_back(state)
        return True
    score = sense_cosine(state)
    if state.held == 0:
        search(state, control, score)
    else:
        creep(state, control, score)
        watch(state, control)
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
