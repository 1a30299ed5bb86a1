"""Fewer combinations of arguments than all: every two values of two arguments meet in one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(
    possible: Callable[..., bool] = lambda *_: True, /, **values: Collection[Any]
) -> pytest.MarkDecorator:
    """Parametrise by pairs: what goes wrong only where three arguments meet is not looked for.

    Args:
        possible: Whether there is such a combination, in the order of the names.
        values: Every argument's values, by its name.
    """
    return pytest.mark.parametrize(
        list(values), covering(*values.values(), possible=possible), ids=_called
    )


def covering(
    *lists: Collection[Any], possible: Callable[..., bool] = lambda *_: True
) -> list[tuple[Any, ...]]:
    """Few rows of values, one of each list, with every pair that is possible."""
    numbered = product(*map(enumerate, lists))
    rows = [row for row in numbered if possible(*(value for _, value in row))]
    pairs = [set(combinations(enumerate(i for i, _ in row), 2)) for row in rows]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(rows)), key=lambda n: len(pairs[n] & missing))
        missing -= pairs[best]
        chosen.append(tuple(value for _, value in rows[best]))
    return chosen


def _called(value: Any) -> str:
    return value.__name__ if callable(value) else str(value)
