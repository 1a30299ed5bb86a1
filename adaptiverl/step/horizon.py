"""How many steps the run takes, where ``Control(horizon="auto")`` leaves it to others to say."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adaptiverl.arguments import whole_number
from adaptiverl.control import Control

HORIZON = "horizon"
"""Where every group keeps the number that was said, so that every checkpoint has it"""
MOST_STEPS = 2**53
"""All that float64 counts one by one"""


def horizon_in(groups: Sequence[dict[str, Any]]) -> int | None:
    """The number that was said; None where nobody has."""
    return groups[0].get(HORIZON) if groups else None


def control_for(control: Control, steps: int) -> Control:
    """A control whose horizon is ``"auto"``, for a run of so many steps.

    Raises:
        ValueError: Its horizon is something else, or the number is out of range.
        TypeError: No whole number.
    """
    if control.horizon != "auto":
        raise ValueError(
            f"set_horizon({steps!r}) is for Control(horizon='auto'), got "
            f"Control(law={control.law!r}, horizon={control.horizon!r}): give the number there"
        )
    whole_number(steps, "set_horizon()'s argument", "a whole number of optimizer steps")
    return control.for_run(steps)


def check_saved_horizon(groups: Iterable[Mapping[str, Any]]) -> None:
    """A checkpoint's groups say a number of steps, or nothing.

    Raises:
        ValueError: Something else.
    """
    for number, group in enumerate(groups):
        steps = group.get(HORIZON)
        if steps is None:
            continue
        try:
            known = 0 if isinstance(steps, bool) else operator.index(steps)
        except TypeError:
            known = 0
        if not 1 <= known <= MOST_STEPS:
            raise ValueError(
                f"the checkpoint's {HORIZON} of group {number} must be a whole number of steps, "
                f"got {steps!r}: it is damaged, or was edited on the way; load another one; "
                "nothing was changed"
            )


def check_horizon(control: Control) -> None:
    """The run's length is known before the first step that counts, where it is to be.

    Raises:
        ValueError: Nobody has said it.
    """
    if control.horizon == "auto":
        raise ValueError(
            "Control(horizon='auto') at the first step, and nobody has said how many steps the "
            "run takes: AdaptiveCallback does in Hugging Face's Trainer and in Lightning, and "
            "observe_backward in Accelerate beside a prepared scheduler. Elsewhere call "
            "optimizer.set_horizon(steps), or give the number, as in Control(horizon=10_000)"
        )
