"""Which runs a request is made of, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.lr_robustness.cells import Cell
from bench.lr_robustness.methods import Method
from bench.lr_robustness.tasks import Task


def plan(
    tasks: Iterable[Task],
    methods: Sequence[Method],
    rates: Sequence[float],
    seeds: Iterable[int],
    factors: Sequence[float] = (),
) -> list[Cell]:
    """The runs, in their order: seed by seed, the longest task first.

    A run that is interrupted has then whole tables of fewer seeds, and what compares with what is
    run next to each other. Within a seed long tasks come first, so that no core is left with one
    at the end.

    Args:
        tasks: What to learn.
        methods: How.
        rates: Starting learning rates.
        seeds: At least one.
        factors: Wrong horizons, beside the right one, for the methods that have one.
    """
    longest_first = sorted(tasks, key=lambda task: -task.seconds)
    return [
        Cell(task, method, rate, seed, factor)
        for seed in seeds
        for task in longest_first
        for rate in rates
        for method in methods
        for factor in (1.0, *(factors if method.has_horizon else ()))
    ]
