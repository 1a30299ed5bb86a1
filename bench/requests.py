"""What the command lines share: numbers that are checked, names that are looked up."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

Named = TypeVar("Named")


class RequestError(Exception):
    """What was asked for cannot be run; the message is one line, why and what can."""


class Parser(argparse.ArgumentParser):
    """One that raises `RequestError` instead of leaving."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(message)


def chosen(kind: str, registry: Mapping[str, Named], names: Sequence[str] | None) -> list[Named]:
    """What is asked for by name, in the registry's order; all of it where nothing is named."""
    unknown = [name for name in names or () if name not in registry]
    if unknown:
        raise RequestError(f"no {kind} is called {unknown[0]!r}; there are {', '.join(registry)}")
    return [item for name, item in registry.items() if not names or name in names]


def runnable(kind: str, items: Sequence[Any]) -> list[Any]:
    """The tasks or methods that can run here; the others are named, with their reason."""
    reasons = [item.missing() for item in items]
    for item, reason in zip(items, reasons, strict=True):
        if reason is not None:
            print(f"The {kind} {item.name} is left out: {reason}.", file=sys.stderr)
    if None not in reasons:
        raise RequestError(f"no {kind} is left to run; ask for another with --{kind}s")
    return [item for item, reason in zip(items, reasons, strict=True) if reason is None]


def cores() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def number(low: float, high: float) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a number from {low:g} to {high:g}, got {text!r}"
            )
        return value

    return parsed


def whole(low: int, high: int = 2**62) -> Callable[[str], int]:
    """A whole number in a range, for argparse; 2^62 leaves room: seeds have others added."""

    def parsed(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {low} to {high}, got {text!r}"
            )
        return int(text)

    return parsed
