"""What the numbers of a record may be, and how one is written down in `layout`'s table."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a number may be in a sound memory, whatever `Control` it comes from."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    """No fraction"""
    off: bool = False
    """−∞ as well: the logarithm of a knob that is switched off, or of a rate not yet known"""
    as_it_came: bool = False
    """NaN and infinities as well (method.md#non-finite)"""


REAL = Kind()
AS_IT_CAME = Kind(as_it_came=True)
COUNT = Kind(0.0, 2.0**53, whole=True)
SEED_WORD = Kind(0.0, 2.0**32 - 1, whole=True)
FLAG = Kind(0.0, 1.0, whole=True)
SHARE = Kind(0.0, 1.0)
SIZE = Kind(0.0)
DIRECTION = Kind(-1.0, 1.0)
LOGARITHM = Kind(math.log(5e-324), math.log(1.7e308))
LOGARITHM_OR_OFF = LOGARITHM._replace(off=True)


def number(default: float, kind: Kind, doc: str, array: str = "") -> Any:
    """A field of a record: what it starts as, what it may be, what it means.

    Args:
        default: What it starts as.
        kind: What it may be.
        doc: What it means.
        array: Of which array it is an element, in C++; the elements follow each other.
    """
    return field(default=default, metadata={"kind": kind, "doc": doc, "array": array})


def real(doc: str) -> Any:
    """A number that starts at 0 and may be any."""
    return number(0.0, REAL, doc)


def address(doc: str) -> Any:
    """An int64 of the address table."""
    return number(0, REAL, doc)


class Column(NamedTuple):
    """One number of a record."""

    name: str
    default: float
    kind: Kind
    doc: str
    array: str = ""
    """Of which array it is an element"""
    record: type | None = None
    """It is as many of these as there may be arms, and no number"""


def columns(record: type) -> tuple[Column, ...]:
    """A record's numbers, in order."""
    inside: Any = [f for f in dataclasses.fields(record) if "behind" not in f.metadata]
    return tuple(Column(f.name, f.default, **f.metadata) for f in inside)


def names(record: type) -> tuple[str, ...]:
    """The names alone."""
    return tuple(column.name for column in columns(record))
