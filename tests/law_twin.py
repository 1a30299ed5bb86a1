"""Both twins of the law, driven alike: adaptiverl/law, and csrc/law through `Controller`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from streams import Floats, Step, assert_same_course, course_of, oracle_course

from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.law import (
    alignment,
    arithmetic,
    bandit,
    cooldown,
    distilled,
    draws,
    gradient,
    knobs,
    loop,
    loss,
    pulse,
    range_test,
    sensors,
)
from adaptiverl.law.numbers import numbers_of
from adaptiverl.layout import SLOT, ControlNumbers, State

LR, MOMENTUM = 1e-3, 0.9
GROUPS = ((LR, MOMENTUM),)
"""lr and starting momentum of the groups that a twin steers unless others are given"""
MODULES = (
    *(arithmetic, sensors, gradient, cooldown, loss, alignment, range_test),
    *(draws, bandit, distilled, knobs, pulse, loop),
)
"""Those of adaptiverl/law with a twin in csrc/law"""


def numbers(control: Control, lr: float = LR, momentum: float = MOMENTUM) -> ControlNumbers:
    """What a law reads of a control, started there."""
    return numbers_of(control, control.limits(lr, momentum))


def start(control: Control, lr: float = LR, momentum: float = MOMENTUM, seed: int = 0) -> State:
    """The state before the first step."""
    return knobs.start(numbers(control, lr, momentum), control.start_lr(lr), momentum, seed)


SUMS = ("aligned_gu", "aligned_gg", "aligned_uu", "aligned_elements", "aligned_pending")
ELEMENTS = 96.0
"""That every sweep's sums are over"""


class Twin:
    """A law told what an optimizer would tell its controller, by way of `step` and `effective`."""

    def __init__(
        self,
        control: Control,
        lr: float = LR,
        momentum: float = MOMENTUM,
        seed: int = 0,
        groups: Sequence[Sequence[float]] = GROUPS,
    ) -> None:
        self.control = control
        self.begin(control, (lr, momentum, seed), groups)

    def begin(self, control: Control, at: Any, groups: Sequence[Sequence[float]]) -> None:
        """Start at a rate, a momentum and a seed."""
        raise NotImplementedError


class PythonTwin(Twin):
    """The Python law."""

    def begin(self, control: Control, at: Any, groups: Sequence[Sequence[float]]) -> None:
        self.groups = groups
        self.numbers, self.state = numbers(control, *at[:2]), start(control, *at)

    def step(self, step: Step) -> State:
        """One optimizer step; of an epoch-wise control, and an update behind it."""
        state, by_epoch = self.state, self.control.every is None
        state.active, state.rewind = 0.0 if step.skipped else 1.0, 0.0
        if step.skipped:
            return replace(state)
        observed = (None, None) if by_epoch else (step.loss, step.reward)
        loop.advance(state, self.numbers, *observed)
        if by_epoch and step.loss is not None:
            loop.update(state, self.numbers, step.loss, step.reward)
        if step.sums is not None and state.active:
            self.put(**dict(zip(SUMS, (*step.sums, ELEMENTS, 1.0), strict=True)))
        return replace(state)

    def pulse(self, held_out: float) -> State:
        """A held-out loss between two steps."""
        told = self.state.loss_mean if self.state.loss_count > 0 else math.nan
        pulse.pulse(self.state, self.numbers, held_out, told)
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


class CompiledTwin(Twin):
    """The C++ controller."""

    def begin(self, control: Control, at: Any, groups: Sequence[Sequence[float]]) -> None:
        self.controller = Controller(control, *at[:2], seed=at[2])
        rows = [[*group[:2], 0.999, 1e-8, 0.0] for group in groups]
        self.groups = torch.tensor(rows, dtype=torch.float64)
        self._effective = torch.zeros(len(rows), 2, dtype=torch.float64)

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
            rows = torch.tensor([step.sums], dtype=torch.float64)
            self.controller.reduce_alignment([rows], ELEMENTS)
        return self.controller.read()

    def pulse(self, held_out: float) -> State:
        """A held-out loss between two steps."""
        self.controller.pulse(held_out, lambda sums: None)
        return self.controller.read()

    def effective(self) -> list[list[float]]:
        """Every group's rate and momentum as a step uses them."""
        self.controller.read_groups(self.groups, self._effective)
        return self._effective.tolist()

    def put(self, **values: float) -> None:
        """Put numbers into the state, as no step would."""
        for name, value in values.items():
            self.controller.state[SLOT[name]] = value


TWINS = {"python": PythonTwin, "compiled": CompiledTwin}
both = pytest.mark.parametrize("twin", TWINS)


def make(twin: str, control: Control, *start: Any) -> Any:
    """A twin by its name."""
    return TWINS[twin](control, *start)


def course(twin: str, control: Control, steps: Iterable[Step], *start: Any) -> list[State]:
    """The state after each step."""
    driven = make(twin, control, *start)
    return [driven.step(step) for step in steps]


def compare(
    steps: Sequence[Step],
    lr: float = LR,
    momentum: float = MOMENTUM,
    seed: int = 0,
    **arguments: Any,
) -> dict[str, Floats]:
    """Hold both twins to the oracle, and each other; return the course."""
    control = Control(**arguments)
    python = course("python", control, steps, lr, momentum, seed)
    actual = course_of(python, control.law)
    drawn: dict[str, Any] = {"seed": seed} if control.law == "bandit" else {}
    expected = oracle_course(steps, lr=lr, momentum=momentum, **drawn, **arguments)
    assert_same_course(actual, expected)
    assert_equal(course("compiled", control, steps, lr, momentum, seed), python)
    return actual


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
