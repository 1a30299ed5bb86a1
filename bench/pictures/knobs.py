"""The knobs over a run of a scenario, and hunting over the cadence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adaptiverl import plots
from bench.studies.scenarios import Outcome
from bench.studies.timescales import Watched

DPI = 75
SHADE: dict[str, Any] = {"color": "#d55e00", "alpha": 0.12, "linewidth": 0}


def draw(outcome: Outcome, path: Path) -> None:
    scenario = outcome.scenario
    figure = plots.knobs(outcome.trace, title=scenario.title)
    if scenario.disturbance[0] <= scenario.disturbance[1]:
        for axes in figure.axes:
            axes.axvspan(*scenario.disturbance, **SHADE)
    figure.savefig(path, dpi=DPI)


def draw_timescales(rows: Sequence[Watched], path: Path) -> None:
    """Draw α's course where nothing but the loop moves it, and the line of hunting over K."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    course, lines = figure.subplots(1, 2)
    first = rows[0].setting
    for row in rows:
        if row.setting == first and row.every in (1, 2, 10, 20):
            count = 800 // row.every
            values = row.log_lr[-count:]
            middle = math.fsum(values) / len(values)
            steps = [i * row.every for i in range(len(values))]
            course.plot(steps, [value - middle for value in values], label=f"K = {row.every}")
    course.set_title(f"α in the last 800 steps\n({first})", fontsize=11)
    course.set_xlabel("step")
    course.set_ylabel("log α, its mean taken away")
    course.legend(fontsize=9)
    for name in dict.fromkeys(row.setting for row in rows):
        points = [(row.every, row.line) for row in rows if row.setting == name]
        lines.plot(*zip(*points, strict=True), "o-", label=name)
    lines.axhline(1, color="black", linewidth=0.8)
    lines.set_xscale("log")
    cadences = sorted({row.every for row in rows})
    lines.set_xticks(cadences, [str(every) for every in cadences], minor=False)
    lines.minorticks_off()
    lines.set_title("largest line of the spectrum over chance:\nabove 1, α hunts", fontsize=11)
    lines.set_xlabel("K, steps between two updates")
    lines.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)
