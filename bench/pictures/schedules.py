"""Schedules that were made in hindsight: α and μ over the run, a column for each task."""

from collections.abc import Mapping
from pathlib import Path

from adaptiverl.hindsight import Schedule
from adaptiverl.trace import Trace
from bench.pictures import picture

COLOURS = {"smoothing": "#0072b2", "hypergradients": "#d55e00"}


def draw(tasks: Mapping[str, Mapping[str, Schedule]], path: Path) -> None:
    """Schedules by task and by way."""
    with picture(path, 2.4 * len(tasks) + 0.6, 4.2, 100) as figure:
        grid = figure.subplots(2, len(tasks), sharex=True, sharey="row", squeeze=False)
        for column, (task, ways) in enumerate(tasks.items()):
            above, below = grid[0, column], grid[1, column]
            for way, schedule in ways.items():
                lr, momentum, _ = schedule.knobs().T
                above.plot(lr, color=COLOURS[way], label=way)
                below.plot(momentum, color=COLOURS[way])
            above.set_title(task, fontsize=10)
            above.set_yscale("log")
            below.set_xlabel("step")
        grid[0, 0].set_ylabel("learning rate α")
        grid[1, 0].set_ylabel("momentum μ")
        grid[0, 0].legend(fontsize=8)


def draw_rates(traces: Mapping[str, Trace], title: str, path: Path) -> None:
    """α of runs that differ in where they start."""
    with picture(path, 5.5, 3.4, 90) as figure:
        axes = figure.subplots()
        for name, trace in traces.items():
            axes.plot(trace["step"], trace["lr"], label=name)
        axes.set_yscale("log")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate α")
        axes.legend(fontsize=8)
