"""The bandit's arms: what each puts in the place of its `Control`'s own; every check of them."""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from adaptiverl.arguments import check_field, real_field, whole_number
from adaptiverl.layout import ARMS
from adaptiverl.terms import LAW_TERMS, Pair

if TYPE_CHECKING:
    from adaptiverl.control import Control

SMOOTH: Pair = (0.95, 1.05)
"""The second default arm's change of α: `Control.production`'s (method.md#arms)"""
MEMORIES = 2
"""A window is as long as so many memories of ℓ̄, 1/β_ℓ, where nothing is said"""
DISCOUNT = 0.95
"""γ where nothing is said: some twenty windows are remembered"""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Gains, caps and cadence that come and go together; fields of `Control`, which has them."""

    every: int | None
    gain_lr_reward: float
    gain_lr_loss: float
    gain_momentum_reward: float
    gain_momentum_loss: float
    gain_noise_plateau: float
    gain_noise_reward: float
    lr_change: Pair


ARM_FIELDS = tuple(field.name for field in fields(Arm))
GAINS = tuple(name for name in ARM_FIELDS if name.startswith("gain_"))
OPTIONS = ("arms", "window", "discount")


def complete_bandit(control: Control) -> None:
    """Check a new control of law ``"bandit"``, and put its arms in, whatever they were given as.

    Raises:
        TypeError: A value of the wrong kind.
        ValueError: A value out of its range.
    """
    arms = arms_of(control)
    check_own(control, arms)
    check_window(control, arms)
    for name, value in {"arms": arms, **vars(arms[0])}.items():
        object.__setattr__(control, name, value)


def shared_by(arms: Any, kind: type) -> dict[str, Any]:
    """What is the same for all arms: as the first that is a control, if any is, has it.

    What only another law has is left to the check of the arms, which names that law.
    """
    given = arms if isinstance(arms, Sequence) else ()
    first = next((arm for arm in given if isinstance(arm, kind)), None)
    if first is None:
        return {}
    others = {*ARM_FIELDS, "law"}.union(*(terms.options for terms in LAW_TERMS.values()))
    return {n: x for n, x in vars(first).items() if n not in others}


def arms_of(control: Control) -> tuple[Arm, ...]:
    """The arms of a bandit's control, whatever they were given as.

    Left at None they are the presets' that differ in what an arm is (method.md#arms).

    Raises:
        TypeError: No arms, or something that is none among them.
        ValueError: None or too many, two that are equal, or one that differs in more than an arm.
    """
    if control.arms is None:
        own = _own(control)
        still: dict[str, Any] = dict.fromkeys(GAINS, 0.0)
        return own, replace(own, lr_change=SMOOTH), replace(own, **still)
    try:
        given = tuple(control.arms)
    except TypeError:
        found = "one alone" if isinstance(control.arms, type(control)) else repr(control.arms)
        raise TypeError(f"Control.arms must be a list of Controls, got {found}") from None
    if not 1 <= len(given) <= ARMS:
        raise ValueError(f"Control.arms must be from 1 to {ARMS} Controls, got {len(given)}")
    arms = tuple(_arm(control, place, arm) for place, arm in enumerate(given))
    for (i, first), (j, second) in itertools.combinations(enumerate(arms), 2):
        if first == second:
            raise ValueError(
                f"Control.arms[{j}] is equal to arms[{i}]: no window could tell them apart, leave "
                f"one out. Arms differ in {', '.join(ARM_FIELDS)}"
            )
        if (first.every is None) != (second.every is None):
            raise ValueError(
                f"Control.arms[{j}] has every={second.every}, and arms[{i}] every={first.every}: "
                "either all arms are epoch-wise or none is"
            )
    return arms


def check_own(control: Control, arms: tuple[Arm, ...]) -> None:
    """What the arms have, the control beside them leaves alone, or has as the first of them.

    Raises:
        ValueError: It says something else.
    """
    for name in ARM_FIELDS:
        own, first = getattr(control, name), getattr(arms[0], name)
        if own not in (first, type(control).__dataclass_fields__[name].default):
            raise ValueError(
                f"Control.{name} is each arm's own with law='bandit', got {own!r} beside arms of "
                f"which the first has {first!r}: give it to the arms, as in "
                f"Control.bandit([Control({name}={own!r}), ...])"
            )


def check_window(control: Control, arms: tuple[Arm, ...]) -> None:
    """The window has room for an update by each arm, and the discount is one.

    Raises:
        TypeError: A value of the wrong kind.
        ValueError: A value out of its range.
    """
    longest = max(arm.every or 1 for arm in arms)
    if control.window is not None:
        window = whole_number(control.window, "Control.window", "a whole number of losses or None")
        object.__setattr__(control, "window", window)
        if not longest <= window <= 2**53:
            raise ValueError(
                f"Control.window must be from {longest} to 2**53 losses, or None, got {window!r}: "
                f"an arm that is in force for a window updates every {longest}"
            )
    if control.discount is not None:
        discount = real_field("discount", control.discount)
        check_field("discount", control.discount, 0 < discount <= 1, "in (0, 1], or None")
        object.__setattr__(control, "discount", discount)


def window_of(control: Control) -> int:
    """Losses for which an arm is in force."""
    if control.window is not None:
        return control.window
    longest = max(arm.every or 1 for arm in control.arms or ())
    return max(math.ceil(MEMORIES / control.beta_loss), longest)


def key_of(control: Control) -> int:
    """32 bits that tell these arms and this window from others; never 0."""
    numbers: list[float] = [float(window_of(control))]
    for arm in control.arms or ():
        *rest, change = astuple(arm)
        numbers += [float(x or 0) for x in rest] + list(change)
    return zlib.crc32(struct.pack(f"<{len(numbers)}d", *numbers)) or 1


def _own(control: Control) -> Arm:
    return Arm(**{name: getattr(control, name) for name in ARM_FIELDS})


def _arm(control: Control, place: int, given: Any) -> Arm:
    """One arm, by way of a `Control` that has its numbers: that checks them."""
    kind, name = type(control), f"Control.arms[{place}]"
    if isinstance(given, Arm):
        given = vars(given)
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in ARM_FIELDS]
        if unknown:
            raise ValueError(f"{name} has {unknown[0]!r}; an arm has {', '.join(ARM_FIELDS)}")
        try:
            return _own(kind(**given))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    if not isinstance(given, kind):
        raise TypeError(f"{name} must be a Control, got {given!r} of type {type(given).__name__}")
    if given.law != "loss":
        raise ValueError(f"{name} must be of law='loss', got law={given.law!r}")
    for field in fields(control):
        if field.name in (*ARM_FIELDS, *OPTIONS, "law"):
            continue
        own, its = getattr(control, field.name), getattr(given, field.name)
        if its != own:
            raise ValueError(
                f"{name} has {field.name}={its!r}, and the others have {own!r}: arms differ in "
                f"{', '.join(ARM_FIELDS)}, and in nothing else"
            )
    return _own(given)
