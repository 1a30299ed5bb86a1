"""The order of one step and of one update (method.md#loop). The twin of csrc/law/loop.h."""

from __future__ import annotations

import math

from adaptiverl.law.gradient import sense_gradient
from adaptiverl.law.knobs import next_log_noise, next_logit_momentum, read_knobs
from adaptiverl.law.pulse import below_ceiling
from adaptiverl.law.registry import BY_NUMBER
from adaptiverl.law.sensors import sense
from adaptiverl.layout import REWARD_GIVEN, REWARD_NONE, ControlNumbers, State


def act(state: State, control: ControlNumbers) -> None:
    """One update of the knobs from the sensors as they stand, or from the regression reflex."""
    loss_direction = state.loss_direction
    reward_direction = state.reward_direction
    # A resumed memory may bring the direction of a reward that this control does not have.
    unrewarded = control.reward_source == REWARD_GIVEN and state.rewarded_pending == 0
    if unrewarded or control.reward_source == REWARD_NONE:
        reward_direction = 0.0
    if state.nonfinite_pending != 0:
        loss_direction = 1.0
        reward_direction = 0.0 if control.reward_source == REWARD_NONE else -1.0
    worsening = max(loss_direction, 0.0)
    improving = max(reward_direction, 0.0)
    BY_NUMBER[control.law].act(state, control, reward_direction, worsening)
    below_ceiling(state)
    state.logit_momentum = next_logit_momentum(
        state.logit_momentum, reward_direction, worsening, control
    )
    state.log_noise = next_log_noise(state.log_noise, state.plateau, improving, control)
    state.observed_pending = 0.0
    state.rewarded_pending = 0.0
    state.nonfinite_pending = 0.0
    state.updates += 1


def update(state: State, control: ControlNumbers, loss: float, reward: float | None = None) -> None:
    """Epoch-wise control: one observation and one update (method.md#epoch-wise)."""
    law = BY_NUMBER[control.law]
    sense(state, control, loss, reward)
    law.judge(state, control)
    control = law.in_force(state, control)
    act(state, control)
    read_knobs(state, control)


def advance(
    state: State, control: ControlNumbers, loss: float | None = None, reward: float | None = None
) -> bool:
    """One optimizer step: the law, then the sensors; at a multiple of K an update of the knobs.

    See method.md#cadence, and method.md#unobserved-steps where `loss` is None.

    Returns:
        Whether the knobs were updated.
    """
    state.active, state.rewind = 1.0, 0.0
    state.step += 1
    sense_gradient(state, control)
    law = BY_NUMBER[control.law]
    if law.sense(state, control):
        below_ceiling(state)
        read_knobs(state, control)
    if loss is not None:
        sense(state, control, loss, reward)
        law.judge(state, control)
    control = law.in_force(state, control)
    due = control.every != 0 and math.fmod(state.step, control.every) == 0
    acts = due and state.observed_pending != 0
    if acts:
        act(state, control)
        read_knobs(state, control)
    return acts
