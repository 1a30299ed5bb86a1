"""A recorded curve through the law: what the controller would have decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from adaptiverl.control import Control
from adaptiverl.law.knobs import start
from adaptiverl.law.loop import advance, update
from adaptiverl.law.numbers import numbers_of
from adaptiverl.law.registry import law_of
from adaptiverl.layout import State


def replay(
    losses: Iterable[float],
    control: Control,
    *,
    lr: float,
    momentum: float = 0.9,
    rewards: Iterable[float | None] | None = None,
) -> list[State]:
    """What the controller would have decided on a recorded curve, open loop: one loss per step.

    Args:
        losses: ℓ_t in order; values that are not finite are treated as in training.
        control: The gains, bounds and cadence. With ``every=None`` each loss is an epoch's.
        lr: The learning rate the run started from.
        momentum: The β₁ it started from.
        rewards: r_t beside each loss, for ``Control(reward="given")``; ``None`` where none came.

    Returns:
        The state after each loss.

    Raises:
        ValueError: A start outside the bounds; rewards without ``reward="given"``, or of another
            length than the losses; a law that reads gradients.
    """
    if law_of(control.law).needs_sums:
        raise ValueError(
            f"a recorded curve cannot replay Control(law={control.law!r}): that law reads the "
            "gradients, which only training has. Use law='loss', or train"
        )
    if rewards is not None and control.reward != "given":
        raise ValueError(
            f"rewards were given, but Control.reward is {control.reward!r}: "
            "use Control(reward='given')"
        )
    numbers = numbers_of(control, control.limits(lr, momentum))
    state = start(numbers, control.start_lr(lr), momentum)
    losses = list(losses)
    paired: list[float | None] = [None] * len(losses) if rewards is None else list(rewards)
    move = update if control.every is None else advance
    history = []
    for loss, reward in zip(losses, paired, strict=True):
        move(state, numbers, loss, reward)
        history.append(replace(state))
    return history
