"""The study's pictures, as SVG for its page."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.figures import Series, Table, heights, together
from bench.methods import METHODS
from bench.pictures import picture
from bench.pictures.rates import PLAIN, STYLES, draw_tables, grid_of, limit
from bench.studies.diagnostics import Update, by_task, points
from bench.studies.plan import FEW
from bench.studies.study_report import Study
from bench.tables import best_start, worst_start

# Letters as shapes: a browser's own would be wider than the room left for them.
SVG: dict[str, Any] = {"svg.fonttype": "path", "font.size": 10}


def draw(study: Study, folder: Path) -> dict[str, Path]:
    """By name; those for which there are no numbers are not drawn."""
    every = study.tables
    paths = {name: folder / f"{name}.svg" for name in ("rates", "curves", "overview")}
    draw_tables(every, paths["rates"], **_style("rates"))
    _curves(every, paths["curves"])
    _overview(every, paths["overview"])
    if study.traces:
        paths |= {name: folder / f"{name}.svg" for name in ("knobs", "scatters")}
        _knobs(study.traces, paths["knobs"])
        _scatters(study.traces, paths["scatters"])
    return paths


def _style(name: str) -> dict[str, Any]:
    """Names inside the pictures differ, since all of them come to stand on one page."""
    return SVG | {"svg.hashsalt": name}


def _overview(every: Sequence[Table], path: Path) -> None:
    """A line a method: all starts, worst and best, over the tasks that have the methods of FEW."""
    names = [name for name in METHODS if name in FEW]
    figures = (
        ("all starts", Table.over_all_starts, "o"),
        ("worst start", worst_start, ">"),
        ("best start", best_start, "<"),
    )
    with picture(path, 9.5, 0.45 * len(names) + 1.3, dpi=100, **_style("overview")) as figure:
        axes = figure.subplots()
        for label, logs, marker in figures:
            found = [together([logs(table, Series(name)) for table in every]) for name in names]
            places = [(x, at) for at, x in enumerate(found) if x is not None]
            axes.errorbar(
                [x.value for x, _ in places],
                [at for _, at in places],
                xerr=[x.error for x, _ in places],
                fmt=marker,
                markersize=7,
                capsize=3,
                label=label,
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), [METHODS[name].title for name in names])
        axes.invert_yaxis()
        axes.set_xscale("log")
        ticks = [t for t in (0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10) if _within(axes, t)]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("final held-out loss ÷ that of the best-tuned cosine")
        axes.legend()


def _within(axes: Axes, value: float) -> bool:
    low, high = axes.get_xlim()
    return low <= value <= high


def _curves(every: Sequence[Table], path: Path) -> None:
    with grid_of(len(every), path, **_style("curves")) as (figure, grid):
        for axes, table in zip(grid, every, strict=True):
            shown = [loss for name in FEW for loss in _curve(axes, table, name)]
            if shown:
                limit(axes, min(shown), max(shown))
            axes.set_title(table.task)
            axes.set_xlabel("step")
            axes.set_ylabel("held-out loss")
        named = {h.get_label(): h for axes in grid for h in axes.get_lines()}
        if named:
            figure.legend(
                handles=list(named.values()),
                loc="outside lower center",
                ncols=min(3, len(every) + 1),
            )


def _curve(axes: Axes, table: Table, name: str) -> list[float]:
    """Draw it, and give the middle line's losses after the first tenth of the run."""
    lines = [heights(row) for row in table.runs_from(Series(name), min) if row.curve]
    if not lines or len(set(map(len, lines))) > 1:
        return []
    steps = [table.steps * look / (len(lines[0]) - 1) for look in range(len(lines[0]))]
    colour, dashes, (width, _) = STYLES.get(name, ("black", "-", PLAIN))
    by_look = list(zip(*lines, strict=True))
    axes.fill_between(steps, [*map(min, by_look)], [*map(max, by_look)], color=colour, alpha=0.12)
    middle = [statistics.median(losses) for losses in by_look]
    label = METHODS[name].title
    axes.plot(steps, middle, color=colour, linestyle=dashes, linewidth=width, label=label)
    return middle[len(middle) // 10 :]


def _knobs(traces: Sequence[Update], path: Path) -> None:
    tasks = by_task(traces)
    with picture(path, 4 * len(tasks), 8.5, dpi=100, **_style("knobs")) as figure:
        panels = figure.subplots(4, len(tasks), squeeze=False, sharex="col")
        for column, (task, updates) in enumerate(tasks.items()):
            steps = [update.step for update in updates]
            loss, rate, momentum, noise = (line[column] for line in panels)
            loss.set_title(task)
            loss.plot(steps, [u.loss for u in updates], color="#7a7a7a", linewidth=1, label="loss")
            reward = loss.twinx()
            reward.plot(steps, [u.reward for u in updates], color="#e69f00", linewidth=0.8)
            reward.set_ylabel("reward" if column == len(tasks) - 1 else "", color="#e69f00")
            reward.grid(visible=False)
            for axes, name in ((rate, "lr"), (momentum, "momentum"), (noise, "noise")):
                axes.step(steps, [getattr(u, name) for u in updates], where="post", color="#0072b2")
            noise.set_xlabel("step")
        for axes, name in zip(panels[:, 0], ("loss", "α", "μ", "σ"), strict=True):
            axes.set_ylabel(name)


def _scatters(traces: Sequence[Update], path: Path) -> None:
    tasks = by_task(traces)
    with picture(path, 4 * len(tasks), 6.6, dpi=100, **_style("scatters")) as figure:
        panels = figure.subplots(2, len(tasks), squeeze=False)
        for column, (task, updates) in enumerate(tasks.items()):
            change, reward, worsening = points(updates)
            above, below = (line[column] for line in panels)
            above.set_title(task)
            _dots(above, reward, change, "Δr (normalised)", "Δ log α")
            _dots(below, worsening, [-x for x in change], "max(Δ̃ℓ, 0)", "−Δ log α")


def _dots(axes: Axes, x: Sequence[float], y: Sequence[float], across: str, up: str) -> None:
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    axes.plot(x, y, "o", markersize=3.5, alpha=0.5, color="#0072b2")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
