"""Rows as tables in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bench.rl.environments import TASKS
from bench.rl.methods import METHODS
from bench.rl.rows import Row


def report(rows: Sequence[Row]) -> str:
    """Every task's table of the final returns, and of the areas, for each length of run."""
    parts = []
    for task, steps in dict.fromkeys((row.task, row.steps) for row in rows):
        mine = [row for row in rows if (row.task, row.steps) == (task, steps)]
        seeds = sorted({row.seed for row in mine})
        spread = TASKS[task]
        parts.append(
            f"### {task}\n\n{steps:,} steps, seeds {seeds[0]} to {seeds[-1]}. CleanRL's, after "
            f"500,000 steps: {spread.published:g} ± {spread.spread:g}.\n"
        )
        for what, name in (("final", "Return of the last 100 episodes"), ("area", "Mean return")):
            parts.append(f"{name}:\n\n{table(mine, what)}\n")
    return "\n".join(parts)


def table(rows: Sequence[Row], what: str) -> str:
    """A line for each method, a column for each rate, and the worst of them."""
    rates = sorted({row.rate for row in rows})
    lines = [
        "| method | " + " | ".join(f"from {rate:g}" for rate in rates) + " | worst run |",
        "| --- |" + " ---: |" * (len(rates) + 1),
    ]
    for name in METHODS:
        cells = []
        for rate in rates:
            mine = [getattr(r, what) for r in rows if (r.method, r.rate) == (name, rate)]
            cells.append(mean_and_error(mine))
        everything = [getattr(row, what) for row in rows if row.method == name]
        if everything:
            worst = min(everything, key=lambda x: -math.inf if math.isnan(x) else x)
            lines.append(f"| {METHODS[name].title} | {' | '.join(cells)} | {worst:.0f} |")
    return "\n".join(lines)


def mean_and_error(values: Sequence[float]) -> str:
    """Mean ± its standard error; a dash where there is nothing."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.0f}"
    return f"{mean:.0f} ± {statistics.stdev(values) / math.sqrt(len(values)):.0f}"
