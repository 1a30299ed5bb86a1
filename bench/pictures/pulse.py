"""One run with pulses and one without: the held-out loss, the training loss and the rate."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.pictures import picture

COLOURS = ("#999999", "#0072b2")


def draw(runs: Mapping[str, Sequence[tuple[float, ...]]], path: Path) -> None:
    """Draw rows of step, held-out loss, mean training loss and rate, by the run's name."""
    with picture(path, 9, 3, 100) as figure:
        held_out, training, rate = figure.subplots(1, 3)
        for (name, rows), colour in zip(runs.items(), COLOURS, strict=True):
            steps, *columns = zip(*rows, strict=True)
            for axes, column in zip((held_out, training, rate), columns, strict=True):
                axes.plot(steps, column, color=colour, label=name, linewidth=1.4)
        held_out.set_title("held-out loss that pulses see")
        training.set_title("training loss, its average")
        rate.set_title("learning rate")
        usual = statistics.median(row[1] for rows in runs.values() for row in rows)
        held_out.set_ylim(0, 2 * usual)
        training.set_ylim(0, 6 * usual)
        rate.set_yscale("log")
        rate.set_ylim(bottom=1e-5)
        held_out.legend(fontsize=8)
        for axes in (held_out, training, rate):
            axes.set_xlabel("step")
