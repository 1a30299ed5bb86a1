"""Both twins of the law, driven alike: adaptiverl/law, and csrc/law through `Controller`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from streams import Step

from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.law import alignment, arithmetic, knobs, loop, loss, sensors
from adaptiverl.law.numbers import numbers_of
from adaptiverl.layout import SLOT, ControlNumbers, State

LR, MOMENTUM = 1e-3, 0.9
GROUPS = ((LR, MOMENTUM),)
"""lr and starting momentum of the groups that a twin steers unless others are given"""
MODULES = (arithmetic, sensors, loss, alignment, knobs, loop)
"""Those of adaptiverl/law with a twin in csrc/law"""


def numbers(control: Control, lr: float = LR, momentum: float = MOMENTUM) -> ControlNumbers:
    """What a law reads of a control, started there."""
    return numbers_of(control, control.limits(lr, momentum))


def start(control: Control, lr: float = LR, momentum: float = MOMENTUM, seed: int = 0) -> State:
    """The state before the first step."""
    return knobs.start(numbers(control, lr, momentum), control.start_lr(lr), momentum, seed)


class PythonTwin:
    """The Python law, told what an optimizer would tell its controller."""

    def __init__(
        self,
        control: Control,
        lr: float = LR,
        momentum: float = MOMENTUM,
        seed: int = 0,
        groups: Sequence[Sequence[float]] = GROUPS,
    ) -> None:
        self.control, self.groups = control, groups
        self.numbers, self.state = (
            numbers(control, lr, momentum),
            start(control, lr, momentum, seed),
        )

    def step(self, step: Step) -> State:
        """One optimizer step; of an epoch-wise control, and an update behind it."""
        state, by_epoch = self.state, self.control.every is None
        state.active = 0.0 if step.skipped else 1.0
        if step.skipped:
            return replace(state)
        observed = (None, None) if by_epoch else (step.loss, step.reward)
        loop.advance(state, self.numbers, *observed)
        if by_epoch and step.loss is not None:
            loop.update(state, self.numbers, step.loss, step.reward)
        if step.sums is not None:
            state.aligned_gu, state.aligned_gg, state.aligned_uu = step.sums
            state.aligned_pending = 1.0
        return replace(state)

    def update(self, loss: float, reward: float | None) -> State:
        """One epoch."""
        loop.update(self.state, self.numbers, loss, reward)
        return replace(self.state)

    def effective(self) -> list[list[float]]:
        """Every group's rate and momentum as a step uses them."""
        state = self.state
        return [
            [knobs.group_lr(g[0], state), knobs.group_momentum(g[1], state)] for g in self.groups
        ]

    def put(self, **values: float) -> None:
        """Put numbers into the state, as no step would."""
        for name, value in values.items():
            setattr(self.state, name, value)


class CompiledTwin:
    """The C++ controller, likewise."""

    def __init__(
        self,
        control: Control,
        lr: float = LR,
        momentum: float = MOMENTUM,
        seed: int = 0,
        groups: Sequence[Sequence[float]] = GROUPS,
    ) -> None:
        self.control = control
        self.controller = Controller(control, lr, momentum, seed=seed)
        rows = [[*group[:2], 0.999, 1e-8, 0.0] for group in groups]
        self.groups = torch.tensor(rows, dtype=torch.float64)
        self._effective = torch.zeros(len(rows), 2, dtype=torch.float64)

    @property
    def state(self) -> State:
        return self.controller.read()

    def step(self, step: Step) -> State:
        """One optimizer step; of an epoch-wise control, and an update behind it."""
        by_epoch = self.control.every is None
        if step.loss is not None and not by_epoch:
            self.controller.observe(step.loss, step.reward)
        found_inf = torch.tensor(1.0 if step.skipped else 0.0)
        self.controller.advance(self.groups, self._effective, (), found_inf)
        if by_epoch and step.loss is not None and not step.skipped:
            self.controller.update(step.loss, step.reward)
        if step.sums is not None:
            self.controller.reduce_alignment([torch.tensor([step.sums], dtype=torch.float64)])
        return self.state

    def update(self, loss: float, reward: float | None) -> State:
        """One epoch."""
        self.controller.update(loss, reward)
        return self.state

    def effective(self) -> list[list[float]]:
        """Every group's rate and momentum as a step uses them."""
        self.controller.read_groups(self.groups, self._effective)
        return self._effective.tolist()

    def put(self, **values: float) -> None:
        """Put numbers into the state, as no step would."""
        for name, value in values.items():
            self.controller.block[SLOT[name]] = value


TWINS = {"python": PythonTwin, "compiled": CompiledTwin}
both = pytest.mark.parametrize("twin", TWINS)


def make(twin: str, control: Control, *start: Any) -> Any:
    """A twin by its name."""
    return TWINS[twin](control, *start)


def course(twin: str, control: Control, steps: Iterable[Step], *start: Any) -> list[State]:
    """The state after each step."""
    driven = make(twin, control, *start)
    return [driven.step(step) for step in steps]


def told(driven: Any, loss: float, reward: float | None) -> State:
    """A step with this loss, or an epoch where the control is epoch-wise."""
    if driven.control.every is None:
        return driven.update(loss, reward)
    return driven.step(Step(None, loss, reward))


def losses_course(
    twin: str,
    control: Control,
    losses: Sequence[float],
    rewards: Sequence[float | None] | None = None,
    *start: Any,
) -> list[State]:
    """The state after each loss."""
    driven = make(twin, control, *start)
    pairs = zip(losses, rewards or [None] * len(losses), strict=True)
    return [told(driven, loss, reward) for loss, reward in pairs]


def assert_equal(actual: Sequence[State], expected: Sequence[State]) -> None:
    """Raise unless every number of every state is the same, with NaN where NaN is.

    Nothing is rounded otherwise in one than in the other: both call the same libm.
    """
    for field in fields(State):
        a, e = ([getattr(s, field.name) for s in states] for states in (actual, expected))
        np.testing.assert_array_equal(a, e, err_msg=field.name)


def break_law(monkeypatch: pytest.MonkeyPatch, name: str, substitute: Any) -> None:
    """Put something else in a function's or constant's place, wherever the Python law calls it."""
    places = [module for module in MODULES if hasattr(module, name)]
    assert places, f"the law has no {name}"
    for module in places:
        monkeypatch.setattr(module, name, substitute)
