"""The law of α that follows losses and rewards (method.md#laws). The twin of csrc/law/loss.h."""

from __future__ import annotations

from adaptiverl.law.alignment import sense_alignment
from adaptiverl.law.arithmetic import clip
from adaptiverl.law.base import Law
from adaptiverl.law.cooldown import annealing, is_cooling
from adaptiverl.law.knobs import bounded_log_lr
from adaptiverl.layout import ControlNumbers, State


def next_log_lr(
    log_lr: float, reward_direction: float, worsening: float, control: ControlNumbers
) -> float:
    """log α + k_r·Δ̃r − k_ℓ·max(Δ̃ℓ, 0); the change cap, then the bounds.

    See method.md#learning-rate-law.
    """
    step = control.gain_lr_reward * reward_direction - control.gain_lr_loss * worsening
    step = clip(step, control.log_lr_change_down, control.log_lr_change_up)
    return bounded_log_lr(log_lr + step, log_lr, control)


def sense(state: State, control: ControlNumbers) -> bool:
    """The cooldown; where the pass's sums are taken they are sensed as well, for who looks."""
    sense_alignment(state)
    anneal = annealing(state.step, control)
    moved = anneal != state.anneal
    state.anneal = anneal
    return moved


def act(state: State, control: ControlNumbers, reward_direction: float, worsening: float) -> None:
    """α's part of an update; in the cooldown the regression reflex alone moves it."""
    if is_cooling(state, control) and state.nonfinite_pending == 0:
        reward_direction, worsening = 0.0, 0.0
    state.log_lr = next_log_lr(state.log_lr, reward_direction, worsening, control)


LOSS = Law(needs_loss=True, needs_sums=False, sense=sense, act=act)
