"""The Python law as tests drive it, and as they break it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from adaptiverl.control import Control
from adaptiverl.law import alignment, arithmetic, knobs, loop, loss, sensors
from adaptiverl.law.numbers import numbers_of
from adaptiverl.layout import ControlNumbers, State

MODULES = (arithmetic, sensors, loss, alignment, knobs, loop)
"""Those with a twin in csrc/law"""


def numbers(control: Control, lr: float = 1e-3, momentum: float = 0.9) -> ControlNumbers:
    """What a law reads of a control, started there."""
    return numbers_of(control, control.limits(lr, momentum))


def start(control: Control, lr: float = 1e-3, momentum: float = 0.9, seed: int = 0) -> State:
    """The state before the first step."""
    return knobs.start(numbers(control, lr, momentum), control.start_lr(lr), momentum, seed)


def course(
    control: Control,
    losses: Sequence[float],
    rewards: Sequence[float | None] | None = None,
    lr: float = 1e-3,
    momentum: float = 0.9,
    seed: int = 0,
) -> list[State]:
    """The state after each loss, which is an epoch's where the control is epoch-wise."""
    read, state = numbers(control, lr, momentum), start(control, lr, momentum, seed)
    move = loop.update if control.every is None else loop.advance
    states = []
    for value, reward in zip(losses, rewards or [None] * len(losses), strict=True):
        move(state, read, value, reward)
        states.append(replace(state))
    return states


def break_law(monkeypatch: pytest.MonkeyPatch, name: str, substitute: Any) -> None:
    """Put something else in a function's or constant's place, wherever the law calls it."""
    places = [module for module in MODULES if hasattr(module, name)]
    assert places, f"the law has no {name}"
    for module in places:
        monkeypatch.setattr(module, name, substitute)
