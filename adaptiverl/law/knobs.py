"""The spaces that α, μ and σ live in, the laws of μ and σ, and what a group sees of them.

The twin of csrc/law/knobs.h.
"""

from __future__ import annotations

import math

from adaptiverl.law.arithmetic import clip, logit, sigmoid
from adaptiverl.layout import ControlNumbers, State


def bounded_log_lr(wanted: float, log_lr: float, control: ControlNumbers) -> float:
    """Inside the bounds; from outside, where a load may put α, towards them by the change cap.

    See method.md#learning-rate-law.
    """
    low = min(control.log_lr_min, log_lr + control.log_lr_change_up)
    high = max(control.log_lr_max, log_lr + control.log_lr_change_down)
    return clip(wanted, low, high)


def next_logit_momentum(
    logit_momentum: float, reward_direction: float, worsening: float, control: ControlNumbers
) -> float:
    """logit μ + k_μr·Δ̃r − k_μℓ·max(Δ̃ℓ, 0), inside the bounds (method.md#knob-spaces)."""
    step = control.gain_momentum_reward * reward_direction - control.gain_momentum_loss * worsening
    return clip(logit_momentum + step, control.logit_momentum_min, control.logit_momentum_max)


def next_log_noise(
    log_noise: float, plateau: float, improving: float, control: ControlNumbers
) -> float:
    """log σ + k_σP·P − k_σr·max(Δ̃r, 0); at rest while σ is switched off (method.md#noise-law)."""
    if control.noise_max == 0:
        return log_noise
    step = control.gain_noise_plateau * plateau - control.gain_noise_reward * improving
    return clip(log_noise + step, control.log_noise_floor, control.log_noise_max)


def read_knobs(state: State, control: ControlNumbers) -> None:
    """α, μ, σ from the spaces in which they are kept."""
    lr = math.exp(state.log_lr)
    if control.log_lr_min <= state.log_lr <= control.log_lr_max:
        lr = clip(lr, control.lr_min, control.lr_max)
    state.lr = lr * state.anneal
    state.momentum = clip(sigmoid(state.logit_momentum), control.momentum_min, control.momentum_max)
    floored = control.noise_max == 0 or state.log_noise <= control.log_noise_floor
    lifted = clip(math.exp(state.log_noise), control.noise_min, control.noise_max)
    state.noise = control.noise_min if floored else lifted


def start(control: ControlNumbers, lr: float, momentum: float, seed: int = 0) -> State:
    """The state before the first step: α and μ where the user put them, σ at its floor.

    The alignment law's α is the exception: it starts where the search does.

    Args:
        control: Of a `Control` and its limits.
        lr: α where the user put it: `Control.start_lr`.
        momentum: μ, likewise.
        seed: The noise's, 64 bits.
    """
    state = State()
    state.seed_low = float(seed & 0xFFFFFFFF)
    state.seed_high = float(seed >> 32)
    state.log_lr = control.log_lr_acquire
    state.log_lr_start = math.log(lr)
    state.logit_momentum = logit(clip(momentum, control.momentum_min, control.momentum_max))
    state.logit_momentum_start = state.logit_momentum
    state.log_noise = control.log_noise_floor
    read_knobs(state, control)
    return state


# How a group sees the knobs (method.md#modes)


def group_lr(lr: float, state: State) -> float:
    """lr_g·α/α₀; exactly lr_g while α has not moved."""
    return lr * math.exp(state.log_lr - state.log_lr_start) * state.anneal


def group_momentum(momentum: float, state: State) -> float:
    """sigmoid(logit β₁_g + logit μ − logit μ₀); exactly β₁_g while μ has not moved."""
    if state.logit_momentum == state.logit_momentum_start:
        return momentum
    return sigmoid(logit(momentum) + state.logit_momentum - state.logit_momentum_start)
