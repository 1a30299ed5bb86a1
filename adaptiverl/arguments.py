"""Arguments that a user gives, as they come out of NumPy, a configuration file or a division."""

from __future__ import annotations

import operator
from typing import Any


def whole_number(value: Any, name: str, expected: str, error: type[Exception] = TypeError) -> int:
    """A whole number of any type that has an index: Python's, NumPy's, a tensor's.

    Args:
        value: What was given.
        name: What the error calls it.
        expected: What it should be, for the error.
        error: Its type.

    Raises:
        error: None, bool, a float even where it is whole, or anything else.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    remedy = ""
    if isinstance(value, float) and value.is_integer():
        remedy = f": give int({value!r})"
    raise error(f"{name} must be {expected}, got {value!r}{remedy}")


# Fields of `Control`


def real_field(name: str, value: Any) -> float:
    """A field as a float.

    Raises:
        TypeError: It is no number.
    """
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"Control.{name} must be a number, got {value!r}") from None


def check_field(name: str, value: Any, ok: bool, expected: str) -> None:
    """A field is in its range.

    Raises:
        ValueError: It is not `ok`.
    """
    if not ok:
        raise ValueError(f"Control.{name} must be {expected}, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """A field is one of these.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        raise ValueError(f"Control.{name} must be one of {choices}, got {value!r}")
