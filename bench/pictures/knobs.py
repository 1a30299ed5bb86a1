"""The knobs over a run of a scenario, and hunting over the cadence."""

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
    """Draw the line of hunting over K, a curve for each setting."""
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row.setting for row in rows):
        points = [(row.every, row.line) for row in rows if row.setting == name]
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    cadences = sorted({row.every for row in rows})
    axes.set_xticks(cadences, [str(every) for every in cadences], minor=False)
    axes.minorticks_off()
    axes.set_title("largest line of the spectrum over chance:\nabove 1, α hunts", fontsize=11)
    axes.set_xlabel("K, steps between two updates")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)
