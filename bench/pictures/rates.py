"""The picture: final loss against starting rate, one line a method, one panel a task."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from bench.figures import Series, Table, tables
from bench.methods import METHODS
from bench.pictures import picture
from bench.run.rows import Row

# Colour, dashes, width of the line, size of its dots. Okabe and Ito's colours, told apart by every
# kind of colour vision; where one serves twice, the dashes differ.
PLAIN, SECOND, FIRST = (1.3, 2.5), (1.8, 3.0), (2.2, 3.5)
STYLES: dict[str, tuple[str, str, tuple[float, float]]] = {
    "default": ("#bbbbbb", "-", PLAIN),
    "constant": ("#7a7a7a", "-", PLAIN),
    "cosine": ("#e69f00", "-", PLAIN),
    "linear": ("#b8860b", "--", PLAIN),
    "cooldown": ("#d55e00", "-", PLAIN),
    "plateau": ("#7a7a7a", "--", PLAIN),
    "greedy": ("#009e73", "-", PLAIN),
    "schedule-free": ("#cc79a7", "-", PLAIN),
    "prodigy": ("#8c564b", "-", PLAIN),
    "prodigy-constant": ("#8c564b", ":", PLAIN),
    "loss-horizon": ("#56b4e9", ":", SECOND),
    "distilled": ("#000000", "-", FIRST),
    "bandit": ("#009e73", "--", SECOND),
    "loss": ("#56b4e9", "-", SECOND),
    "loss-cosine": ("#56b4e9", "--", SECOND),
    "alignment": ("#0072b2", "-", (3.0, 4.5)),
    "alignment-open": ("#0072b2", ":", FIRST),
    "alignment-cosine": ("#0072b2", "--", FIRST),
    "range-test": ("#e31a1c", "-", (3.0, 4.5)),
    "range-test-open": ("#e31a1c", ":", FIRST),
}
COLUMNS = 3
LINEAR_UP_TO = 5.0
"""Where the top of a panel is more than so many times its bottom, the loss is on a log scale."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows and write a PNG; methods that were told a wrong horizon are left out."""
    draw_tables(tables(rows), path, **{"font.size": 10})


def draw_tables(every: Sequence[Table], path: Path, **style: Any) -> None:
    with grid_of(len(every), path, **style) as (figure, grid):
        for axes, table in zip(grid, every, strict=True):
            _panel(axes, table)
        handles = {h.get_label(): h for a in figure.axes for h in a.get_lines() if _is_named(h)}
        columns = 1 + min(COLUMNS, len(every))
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=columns)


@contextmanager
def grid_of(count: int, path: Path, **style: Any) -> Iterator[tuple[Figure, list[Axes]]]:
    """A picture of as many panels, `COLUMNS` a line."""
    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    size = (4.6 * columns + 0.4, 3.9 * lines + 1.3)
    with picture(path, *size, dpi=120, **style) as figure:
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes in grid[count:]:
            axes.remove()
        yield figure, grid[:count]


def _is_named(line: Any) -> bool:
    return not str(line.get_label()).startswith("_")


def _panel(axes: Axes, table: Table) -> None:
    finite: list[float] = []
    for series in table.series:
        if series.factor == 1:
            finite += _line(axes, table, series)
    axes.set_title(table.task)
    axes.set_xscale("log")
    axes.set_xlabel("starting learning rate")
    axes.set_ylabel("final held-out loss")
    if finite:
        limit(axes, min(finite), min(max(finite), table.initial))


def _line(axes: Axes, table: Table, series: Series) -> list[float]:
    cells = table.line(series)
    means = [cell.mean().value for cell in cells.values() if cell.runs]
    rates = [rate for rate, cell in cells.items() if cell.runs]
    method = METHODS.get(series.method)
    colour, dashes, (width, dot) = STYLES.get(series.method, ("black", "-", PLAIN))
    axes.plot(
        rates,
        [mean if math.isfinite(mean) else math.nan for mean in means],
        color=colour,
        linestyle=dashes,
        linewidth=width,
        marker="o",
        markersize=dot,
        zorder=2 + width / 10,
        label=method.title if method is not None else series.method,
    )
    return [mean for mean in means if math.isfinite(mean) and mean > 0]


def limit(axes: Axes, low: float, high: float) -> None:
    """From the lowest loss to that of an untrained model, or to the highest where that is lower."""
    if high > LINEAR_UP_TO * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.05 * (high - low) or 0.05 * low
        axes.set_ylim(low - margin, high + margin)
