"""The law that chooses whose gains are in force: discounted Thompson sampling (method.md#bandit).

The twin of csrc/law/bandit.h. What an arm then does with the knobs is the loss law.
"""

from __future__ import annotations

import math
from dataclasses import replace

from adaptiverl.law import loss, sensors
from adaptiverl.law.arithmetic import clip, ratio
from adaptiverl.law.base import Law
from adaptiverl.law.draws import normal
from adaptiverl.layout import ARM_COUNTS, ARM_MEANS, ControlNumbers, State

PRIOR_SPREAD = 0.5
"""τ, how far from 0 the arms' means may be, before anything is known of them"""
SPREAD = 0.25
"""s₀, what a window's reward differs by from its arm's mean, likewise"""
SPREAD_COUNT = 2.0
"""ν₀, windows that s₀ is worth"""
WORST = -1.0
"""The reward of a window with a loss that is not finite"""


def begin(state: State, control: ControlNumbers) -> None:
    """Nothing is known of any arm, and no window has begun."""
    state.arms_key = control.arms_key
    state.arm = 0.0
    state.window_left = 0.0
    state.window_scale = 0.0
    state.window_reward = 0.0
    state.reward_square = 0.0
    state.played_count = 0.0
    state.played_mean = 0.0
    for name in ARM_COUNTS + ARM_MEANS:
        setattr(state, name, 0.0)


def count(state: State) -> None:
    """One more loss of the window."""
    state.window_left -= 1
    if math.isfinite(state.loss):
        state.window_path = min(state.window_path + abs(state.loss_trend), sensors.LARGEST)
    else:
        state.window_broken = 1.0


def discounted(state: State, control: ControlNumbers) -> float:
    """N ← γN of each arm, and one more of the one that was in force; Q ← γQ.

    Returns:
        Their sum.
    """
    state.reward_square *= control.discount
    total = 0.0
    for arm, name in enumerate(ARM_COUNTS[: int(control.arm_count)]):
        windows = control.discount * getattr(state, name)
        if arm == state.arm:
            windows += 1
        setattr(state, name, windows)
        total += windows
    return total


def reward_of(state: State, windows: float) -> float:
    """r = d/(|d| + m): the window's drop of ℓ̄, in units that hold for all windows.

    Args:
        state: At the window's end.
        windows: Discounted, this one included.
    """
    if state.window_broken != 0:
        return WORST
    share = 1 / windows if state.window_scale > 0 else 1.0
    state.window_scale += share * (state.window_path - state.window_scale)
    drop = clip(state.window_start - state.loss_mean, -sensors.LARGEST, sensors.LARGEST)
    return ratio(drop, abs(drop) + state.window_scale)


def learn(state: State, reward: float) -> None:
    """The reward goes to the arm that was in force."""
    arm = int(state.arm)
    before, windows = getattr(state, ARM_MEANS[arm]), getattr(state, ARM_COUNTS[arm])
    mean = clip(before + (reward - before) / windows, -1.0, 1.0)
    setattr(state, ARM_MEANS[arm], mean)
    state.reward_square += max((reward - before) * (reward - mean), 0.0)
    state.window_reward = reward


def spread_square(state: State, control: ControlNumbers) -> float:
    """s² = (ν₀·s₀² + Q)/(ν₀ + ΣN), of all arms alike."""
    total = SPREAD_COUNT
    for name in ARM_COUNTS[: int(control.arm_count)]:
        total += getattr(state, name)
    return (SPREAD_COUNT * SPREAD * SPREAD + state.reward_square) / total


def drawn_mean(state: State, arm: int, square: float) -> float:
    """What an arm's mean may be: from N(N·mean/(N + n₀), s²/(N + n₀)), its posterior.

    Args:
        state: What is known of it.
        arm: Which.
        square: s²; a prior of N(0, τ²) is worth n₀ = s²/τ² windows of reward 0.
    """
    windows = getattr(state, ARM_COUNTS[arm])
    known = windows + square / (PRIOR_SPREAD * PRIOR_SPREAD)
    chance = normal(state.seed_low, state.seed_high, state.arm_draws, arm)
    return windows * getattr(state, ARM_MEANS[arm]) / known + math.sqrt(square / known) * chance


def choose(state: State, control: ControlNumbers) -> None:
    """The arm whose drawn mean is the largest, and its window."""
    largest, square = -math.inf, spread_square(state, control)
    for arm in range(int(control.arm_count)):
        mean = drawn_mean(state, arm, square)
        if mean > largest:
            largest, state.arm = mean, float(arm)
    state.arm_draws += 1
    state.played_count = getattr(state, ARM_COUNTS[int(state.arm)])
    state.played_mean = getattr(state, ARM_MEANS[int(state.arm)])
    state.window_left = control.window
    state.window_start = state.loss_mean
    state.window_path = 0.0
    state.window_broken = 0.0


def judge(state: State, control: ControlNumbers) -> None:
    """One more loss: at the end of a window its arm is judged, and the next one is chosen.

    The first window begins at the first finite loss.
    """
    if state.arms_key != control.arms_key:
        begin(state, control)
    if state.window_left > 0:
        count(state)
        if state.window_left > 0:
            return
        learn(state, reward_of(state, discounted(state, control)))
    if state.loss_count > 0:
        choose(state, control)


def in_force(state: State, control: ControlNumbers) -> ControlNumbers:
    """The control's numbers with the arm's in their places."""
    arm = control.arms[int(min(state.arm, control.arm_count - 1))]
    return replace(control, **vars(arm))


BANDIT = Law(
    needs_loss=True,
    needs_sums=False,
    sense=loss.sense,
    act=loss.act,
    judge=judge,
    in_force=in_force,
)
