"""What the benches' command lines share: numbers that are checked, names that are looked up."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar


class Runnable(Protocol):
    """A task or a method that may not run everywhere."""

    @property
    def name(self) -> str:
        """On the command line and in the tables."""

    def missing(self) -> str | None:
        """Why it cannot run here; ``None`` where it can."""


Named = TypeVar("Named")
Possible = TypeVar("Possible", bound=Runnable)


class RequestError(Exception):
    """What was asked for cannot be run; the message says why and what can."""


def chosen(kind: str, registry: Mapping[str, Named], names: Sequence[str] | None) -> list[Named]:
    """What is asked for by name, in the registry's order; all of it where nothing is named.

    Raises:
        RequestError: A name that is not there.
    """
    unknown = [name for name in names or () if name not in registry]
    if unknown:
        raise RequestError(f"no {kind} is called {unknown[0]!r}; there are {', '.join(registry)}")
    return [item for name, item in registry.items() if not names or name in names]


def runnable(kind: str, items: Sequence[Possible]) -> list[Possible]:
    """Those that can run here; the others are named on standard error, with their reason.

    Raises:
        RequestError: None can.
    """
    found = []
    for item in items:
        reason = item.missing()
        if reason is None:
            found.append(item)
        else:
            print(f"The {kind} {item.name} is left out: {reason}.", file=sys.stderr)
    if not found:
        raise RequestError(f"no {kind} is left to run; ask for another with --{kind}s")
    return found


def positive(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """A whole number from ``least`` to 2^62, for argparse: seeds have others added to them."""

    def parsed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= 2**62:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to 2^62, got {text!r}"
            )
        return value

    return parsed
