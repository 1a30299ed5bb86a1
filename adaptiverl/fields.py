"""The fields of a `Control`: every check of them, one by one and beside each other."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from adaptiverl.arguments import check_choice, check_field, real_field, whole_number
from adaptiverl.layout import COOLDOWN_SHAPES
from adaptiverl.limits import NOISE_FLOOR_SHARE
from adaptiverl.terms import LAW_TERMS, Pair

if TYPE_CHECKING:
    from adaptiverl.control import Control


def check_fields(control: Control) -> None:
    """Check a new control; numbers are stored back, so that equal records compare equal.

    Raises:
        TypeError: A value of the wrong kind.
        ValueError: A value outside its range; the message names it, its value and the range.
    """
    check_choice("mode", control.mode, ("replace", "modulate"))
    check_choice("reward", control.reward, ("neg_loss", "given", "none"))
    check_choice("noise_target", control.noise_target, ("gradient", "parameter"))
    check_choice("law", control.law, tuple(LAW_TERMS))
    if not isinstance(control.gradient_sensors, bool):
        given = control.gradient_sensors
        raise TypeError(f"Control.gradient_sensors must be True or False, got {given!r}")
    check_choice("groups", control.groups, ("one", "own"))
    _check_groups(control)
    _check_steps(control, "every", "for epoch-wise control")
    _check_search(control)
    _check_gains(control)
    _check_lr(control)
    _check_noise(control)
    spike_clip = _number(control, "spike_clip")
    check_field("spike_clip", spike_clip, spike_clip > 0, "> 0 (math.inf: no clipping)")
    _check_plateau(control)


def _check_groups(control: Control) -> None:
    if control.groups == "own" and control.law == "range_test":
        raise ValueError(
            "Control.groups must be 'one' with law='range_test', got 'own': a range test puts all "
            "weights back in one step, and groups whose ramps end in different steps would train "
            "on beside weights that others are about to give up. Use "
            "Control.climb(horizon, groups='own'), which puts nothing back"
        )


def _check_gains(control: Control) -> None:
    for field in fields(control):
        if field.name.startswith("beta_"):
            given, beta = getattr(control, field.name), _number(control, field.name)
            check_field(field.name, given, 0 < beta <= 1, "in (0, 1]")
        if field.name.startswith("gain_"):
            given, gain = getattr(control, field.name), _number(control, field.name)
            check_field(field.name, given, 0 <= gain < math.inf, "finite and >= 0")


def _check_search(control: Control) -> None:
    if control.horizon != "auto":
        _check_steps(control, "horizon", "where nobody can say", ", 'auto'")
    cooldown = _number(control, "cooldown")
    check_field("cooldown", cooldown, 0 <= cooldown < 1, "a share of the horizon, in [0, 1)")
    check_choice("cooldown_shape", control.cooldown_shape, tuple(COOLDOWN_SHAPES))
    if control.acquire_from is not None:
        start = _number(control, "acquire_from")
        check_field("acquire_from", start, 0 < start < math.inf, "finite and > 0")
    if control.reuse is not None:
        _check_reuse(control)
    check_choice("snapshot", control.snapshot, (None, "host", "device"))
    for law, terms in LAW_TERMS.items():
        for name in terms.options:
            value = getattr(control, name)
            if value is not None and name not in control.terms.options:
                raise ValueError(
                    f"Control.{name} is the {law} law's, got {value!r} beside "
                    f"law={control.law!r}: use Control(law={law!r}, {name}={value!r}), or leave "
                    "it out"
                )


def _check_reuse(control: Control) -> None:
    given: Any = control.reuse
    try:
        minibatches, epochs = given
    except (TypeError, ValueError):
        raise TypeError(
            f"Control.reuse must be two whole numbers, (minibatches, epochs), got {given!r}"
        ) from None
    if control.law == "range_test":
        raise ValueError(
            f"Control.reuse is the alignment law's, got {given!r} beside law='range_test', which "
            "puts weights back, and environments do not go back with them. Use "
            f"Control.climb(horizon, reuse={given!r})"
        )
    pair = tuple(
        whole_number(number, f"Control.reuse[{i}]", "a whole number")
        for i, number in enumerate((minibatches, epochs))
    )
    in_range = min(pair) >= 1 and math.prod(pair) <= 2**53
    check_field("reuse", given, in_range, "(minibatches, epochs), each from 1, and 2**53 updates")
    object.__setattr__(control, "reuse", pair)


def _check_steps(control: Control, name: str, none_means: str, others: str = "") -> None:
    steps = getattr(control, name)
    if steps is None:
        return
    steps = whole_number(steps, f"Control.{name}", f"a whole number of steps{others} or None")
    object.__setattr__(control, name, steps)
    check_field(
        name, steps, 1 <= steps <= 2**53, f"from 1 to 2**53{others or ','} or None {none_means}"
    )


def _check_lr(control: Control) -> None:
    if control.lr_bounds is not None:
        low, high = _pair(control, "lr_bounds")
        expected = "0 < low <= high, both finite"
        check_field("lr_bounds", (low, high), 0 < low <= high < math.inf, expected)
    if control.momentum_bounds is not None:
        low, high = _pair(control, "momentum_bounds")
        check_field("momentum_bounds", (low, high), 0 < low <= high < 1, "0 < low <= high < 1")
    down, up = _pair(control, "lr_change")
    expected = "0 < down <= 1 <= up, both finite"
    check_field("lr_change", (down, up), 0 < down <= 1 <= up < math.inf, expected)


def _check_noise(control: Control) -> None:
    low, high = _pair(control, "noise_bounds")
    expected = "0 <= low <= high, both finite"
    check_field("noise_bounds", (low, high), 0 <= low <= high < math.inf, expected)
    has_floor = high == 0 or NOISE_FLOOR_SHARE * high > 0
    check_field("noise_bounds[1]", high, has_floor, "0, or large enough to have a floor under it")
    if control.noise_floor is not None:
        floor = _number(control, "noise_floor")
        if low > 0:
            raise ValueError(
                f"Control.noise_floor stands in for a lower bound of 0, got {floor!r} beside "
                f"noise_bounds={(low, high)!r}: leave it out, noise_bounds[0] is the floor"
            )
        expected = f"in (0, {high}], noise_bounds[1] being {high}"
        check_field("noise_floor", floor, 0 < floor <= high, expected)


def _check_plateau(control: Control) -> None:
    for name in ("plateau_trend", "plateau_variance"):
        center, slope = _pair(control, name)
        expected = "(centre, slope), both finite, slope > 0"
        check_field(name, (center, slope), math.isfinite(center) and 0 < slope < math.inf, expected)


def _number(control: Control, name: str) -> float:
    """The field as a float; stored back, so that equal records compare equal."""
    value = real_field(name, getattr(control, name))
    object.__setattr__(control, name, value)
    return value


def _pair(control: Control, name: str) -> Pair:
    """The field as two floats; stored back as a tuple so that equal records compare equal."""
    value: Any = getattr(control, name)
    try:
        low, high = value
    except (TypeError, ValueError):
        raise TypeError(f"Control.{name} must be a pair of numbers, got {value!r}") from None
    pair = (real_field(name, low), real_field(name, high))
    object.__setattr__(control, name, pair)
    return pair
