"""The knobs' bounds in force for a start, and where a law starts to look for the rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from adaptiverl.terms import RAMP_FLOOR, Pair

if TYPE_CHECKING:
    from adaptiverl.control import Control

NOISE_FLOOR_SHARE = 1e-3
STAND_IN_LR = 1e-3
"""The rate where the user gives none: groups are told from it, and a run too short for a search"""


class Limits(NamedTuple):
    """The knobs' bounds in force; σ's floor stands in for log 0 (method.md#knob-spaces)."""

    lr_min: float
    lr_max: float
    momentum_min: float
    momentum_max: float
    noise_min: float
    noise_max: float
    noise_floor: float
    lr_acquire: float
    """Where α starts: the α of the start itself, but for a law that looks for the rate"""
    lr_floor: float
    """Below it the range test judges no update"""


class MomentumKind(NamedTuple):
    """What an optimizer calls the μ that it starts from, and its bounds where none are given."""

    name: str
    bounds: Pair


BETA1 = MomentumKind("betas[0]", (0.85, 0.99))
"""AdamW's: it averages gradients, so μ leaves a step's size alone (method.md#momentum-law)."""
HEAVY_BALL = MomentumKind("momentum", (0.85, 0.95))
"""SGD's: its buffer sums the gradients, so the step in a lasting direction is α/(1−μ)."""


def limits_of(control: Control, lr: float, momentum: float, kind: MomentumKind) -> Limits:
    """See `Control.limits`."""
    if control.mode == "replace" and not 0 < lr < math.inf:
        raise ValueError(
            f"lr must be finite and > 0 with Control(mode='replace'), got {lr!r}: the "
            "controller moves the learning rate by factors. Give a starting rate, or let a "
            "scheduler own it with Control(mode='modulate')"
        )
    low, high = _lr_bounds(control, lr)
    if not control.terms.in_rates or control.is_too_short:  # where α starts at it
        factor = "the factor 1.0 of Control(mode='modulate')"
        name = "lr" if control.mode == "replace" else factor
        _check_start(name, control.start_lr(lr), "lr_bounds", (low, high))
    if not 0 <= momentum < 1:
        raise ValueError(
            f"{kind.name} must be in [0, 1), got {momentum!r}: the controller moves its logit"
        )
    widened = (min(kind.bounds[0], momentum), max(kind.bounds[1], momentum))
    momentum_low, momentum_high = control.momentum_bounds or widened
    if control.momentum_bounds is not None:
        _check_start(kind.name, momentum, "momentum_bounds", control.momentum_bounds)
    noise_low, noise_high = control.noise_bounds
    return Limits(
        lr_min=low,
        lr_max=high,
        momentum_min=momentum_low,
        momentum_max=momentum_high,
        noise_min=noise_low,
        noise_max=noise_high,
        noise_floor=noise_low or control.noise_floor or NOISE_FLOOR_SHARE * noise_high,
        lr_acquire=_acquire_from(control, lr, (low, high)),
        lr_floor=min(max(RAMP_FLOOR * _start_of_search(control, lr), low), high),
    )


def _unit(control: Control, lr: float) -> float:
    """What the law's own bounds and start are multiples of."""
    if not control.terms.in_rates:
        return control.start_lr(lr)
    return 1.0 if control.mode == "replace" else 1 / (lr or STAND_IN_LR)


def _lr_bounds(control: Control, lr: float) -> Pair:
    """Those of α.

    Raises:
        ValueError: They leave the range of numbers.
    """
    if control.lr_bounds is not None:
        return control.lr_bounds
    low, high = (x * _unit(control, lr) for x in control.terms.lr_bounds[control.mode])
    if control.terms.in_rates:
        # They are this law's own: where α starts lies inside them whatever it is.
        inside = [_start_of_search(control, lr)]
        if control.is_too_short:
            inside.append(control.start_lr(lr))
        low, high = min(low, *inside), max(high, *inside)
    if not 0 < low <= high < math.inf:
        raise ValueError(
            f"the bounds of lr={lr!r}, {low} and {high}, leave the range of numbers: "
            "give Control(lr_bounds=...) or another lr"
        )
    return low, high


def _start_of_search(control: Control, lr: float) -> float:
    return control.acquire_from or control.terms.start * _unit(control, lr)


def _acquire_from(control: Control, lr: float, bounds: Pair) -> float:
    """Where α starts, inside the bounds."""
    if control.acquire_from is not None:
        _check_start("acquire_from", control.acquire_from, "lr_bounds", bounds)
    if control.is_too_short:
        return control.start_lr(lr)
    return min(max(_start_of_search(control, lr), bounds[0]), bounds[1])


def _check_start(name: str, value: float, bounds_name: str, bounds: Pair) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise ValueError(
            f"{name} must start inside Control.{bounds_name} = [{low}, {high}], got {value!r}: "
            "widen the bounds or move the start"
        )
