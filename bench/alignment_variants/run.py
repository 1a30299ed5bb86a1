"""From a task and a law to rows."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bench.alignment_variants.cells import Cells
from bench.alignment_variants.laws.base import Law
from bench.alignment_variants.rows import Row
from bench.alignment_variants.sensor import Floats, Reading
from bench.alignment_variants.tasks import Task


def run(
    task: Task,
    name: str,
    make: Callable[[], Law],
    rates: Sequence[float],
    seeds: Sequence[int],
) -> list[Row]:
    """Train a task from every rate with every seed.

    Args:
        task: What is learnt.
        name: The law's.
        make: Makes a fresh law.
        rates: Starting rates.
        seeds: Of weights and batches.

    Returns:
        A row per rate and seed.
    """
    cells, law = Cells(task, rates, seeds), make()
    readings = cells.train(law)
    columns = zip(
        cells.names,
        cells.held_out_losses(),
        cells.train_losses(),
        law.found,
        law.held_at,
        *(_mean_score(readings, first, last) for first, last in _windows(task.steps)),
        strict=True,
    )
    made = _made()
    return [
        Row(task=task.name, law=name, rate=rate, seed=seed, made=made, **_named(rest))
        for (rate, seed), *rest in columns
    ]


def _made() -> str:
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return f"{day} with torch {torch.__version__} and Python {platform.python_version()}"


def _named(values: Sequence[np.float64]) -> dict[str, float]:
    names = ("held_out", "train", "found", "held_at", "early", "middle", "late")
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _windows(steps: int) -> list[tuple[int, int]]:
    """First and last step of the three parts that scores are averaged over."""
    return [(21, 100), (101, steps // 2), (steps // 2 + 1, steps)]


def _mean_score(readings: Sequence[Reading], first: int, last: int) -> Floats:
    """Of every cell, from what was read before these steps; NaN where there are none."""
    scores = [reading.score for reading in readings[first - 1 : last]]
    mean: Floats = np.mean(scores, axis=0) if scores else np.full(readings[0].score.shape, np.nan)
    return mean
