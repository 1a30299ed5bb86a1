"""The generalisation pulse: α comes down where a held-out loss worsens (method.md#pulse).

The twin of csrc/law/pulse.h.
"""

from __future__ import annotations

import math

from adaptiverl.law import sensors
from adaptiverl.law.arithmetic import clip, ema
from adaptiverl.law.knobs import read_knobs
from adaptiverl.layout import ControlNumbers, State

READING_BETA = 0.2
"""Weight of the newest reading in their mean, which looks back over some five of them"""
ROUGHNESS_BETA = 0.1
"""Weight of the newest second difference in the mean of their sizes"""
ROUGHNESS_OF_ONE = math.sqrt(12 / math.pi)
"""The mean size of the second differences of normal numbers whose standard deviation is 1"""
WORSE_BY = 3.0
"""Standard errors of a difference by which the mean must lie above its least one"""
READINGS_ENOUGH = 4.0
"""Readings that only say where the mean and its noise are"""
CUT = math.log(0.1)
"""log of what α is multiplied by"""
REST = 5.0
"""Readings from one cut to the next, at least: the mean looks back over as many"""


def forget_readings(state: State) -> None:
    """What was read is of other weights, or nothing was trained yet."""
    state.pulse_readings = 0.0
    state.pulses_waiting = 0.0
    state.pulse_waiting = 0.0


def error_of_mean(state: State) -> float:
    """The standard error of the readings' mean; 0 before there are three of them."""
    if state.pulse_roughness_weight == 0:
        return 0.0
    roughness = state.pulse_roughness / state.pulse_roughness_weight
    return roughness / ROUGHNESS_OF_ONE * math.sqrt(READING_BETA / (2 - READING_BETA))


def read_pulses(state: State, training: float) -> None:
    """One reading: the mean of the pulses since the last one, and what it is compared with.

    The noise is that of second differences, which a steady trend leaves alone.
    """
    reading = state.pulse_waiting
    change = clip(reading - state.pulse_reading, -sensors.LARGEST, sensors.LARGEST)
    state.pulse_readings += 1
    state.pulses_waiting = 0.0
    state.pulse_waiting = 0.0
    state.pulse_at = state.step
    state.pulse_reading = reading
    state.pulse_rest = max(state.pulse_rest - 1, 0.0)
    if state.pulse_readings == 1:
        state.pulse_mean = reading
        state.pulse_roughness = 0.0
        state.pulse_roughness_weight = 0.0
    else:
        surprise = clip(reading - state.pulse_mean, -sensors.LARGEST, sensors.LARGEST)
        state.pulse_mean += READING_BETA * surprise
    if state.pulse_readings > 2:
        size = abs(change - state.pulse_change)
        state.pulse_roughness = ema(state.pulse_roughness, size, ROUGHNESS_BETA)
        state.pulse_roughness_weight = ema(state.pulse_roughness_weight, 1.0, ROUGHNESS_BETA)
    state.pulse_change = change
    if state.pulse_readings <= READINGS_ENOUGH or state.pulse_mean < state.pulse_least:
        state.pulse_least = state.pulse_mean
        state.pulse_training = training
    state.pulse_limit = state.pulse_least + WORSE_BY * math.sqrt(2) * error_of_mean(state)


def overfits(state: State, training: float) -> bool:
    """The held-out loss has worsened beyond its noise, and the training loss still fell.

    Where no training loss is told, NaN, the held-out loss alone decides.
    """
    if state.pulse_readings <= READINGS_ENOUGH or state.pulse_rest > 0:
        return False
    return state.pulse_mean > state.pulse_limit and not training >= state.pulse_training


def cut(state: State, control: ControlNumbers) -> None:
    """α comes down, and stays below: from here on nothing may raise it above."""
    lowered = max(state.log_lr + CUT, control.log_lr_min)
    state.log_lr_ceiling = min(lowered, state.log_lr)
    state.log_lr = state.log_lr_ceiling
    state.pulse_cuts += 1
    state.pulse_rest = REST


def pulse(state: State, control: ControlNumbers, held_out: float, training: float) -> None:
    """One held-out loss; what isn't finite goes no further.

    Args:
        state: The controller's.
        control: Its numbers.
        held_out: The loss on data that is not trained on.
        training: ℓ̄, the mean of the training losses; NaN where none is told.
    """
    state.pulse = held_out
    state.pulses += 1
    if state.searching != 0 or state.step == 0:
        forget_readings(state)
        return
    if not math.isfinite(held_out):
        return
    state.pulses_waiting += 1
    surprise = clip(held_out - state.pulse_waiting, -sensors.LARGEST, sensors.LARGEST)
    state.pulse_waiting += surprise / state.pulses_waiting
    if state.pulse_readings > 0 and state.step - state.pulse_at < control.pulse_spacing:
        return
    read_pulses(state, training)
    if overfits(state, training):
        cut(state, control)
        read_knobs(state, control)


def below_ceiling(state: State) -> None:
    """Whatever a law makes of α: not above where a pulse has put it."""
    if state.log_lr_ceiling > -math.inf:
        state.log_lr = min(state.log_lr, state.log_lr_ceiling)
