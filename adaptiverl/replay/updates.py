"""The updates of a replayed run, taken apart into the terms of the law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adaptiverl.control import Control
from adaptiverl.layout import State


@dataclass(frozen=True)
class Push:
    """One update of log α, taken apart.

    Attributes:
        index: the loss, counted from 0, after which it came.
        reward: k_r·Δ̃r.
        loss: −k_ℓ·max(Δ̃ℓ, 0).
        reflex: a value that was not finite decided both (method.md#non-finite).
        capped: the change cap cut their sum.
    """

    index: int
    reward: float
    loss: float
    reflex: bool
    capped: bool


def pushes(
    history: Sequence[State], rewards: Sequence[float | None], control: Control
) -> list[Push]:
    """Every update of log α taken apart into its two terms (method.md#laws).

    Args:
        history: The states of `law.replay`.
        rewards: The rewards it was given; empty without any.
        control: The gains it ran with.
    """
    found: list[Push] = []
    updates = nonfinite = 0.0
    rewarded = False
    for index, state in enumerate(history):
        rewarded = rewarded or (bool(rewards) and rewards[index] is not None)
        if state.updates == updates:
            continue
        reflex = state.nonfinite > nonfinite
        rests = control.reward == "none" or (control.reward == "given" and not rewarded)
        better = 0.0 if rests else state.reward_direction
        worse = max(state.loss_direction, 0.0)
        if reflex:
            better, worse = 0.0 if control.reward == "none" else -1.0, 1.0
        gains = control.arms[int(state.arm)] if control.arms else control
        low, high = (math.log(factor) for factor in gains.lr_change)
        reward, loss = gains.gain_lr_reward * better, -gains.gain_lr_loss * worse
        capped = not low <= reward + loss <= high
        found.append(Push(index, reward, loss, reflex, capped))
        updates, nonfinite, rewarded = state.updates, state.nonfinite, False
    return found
