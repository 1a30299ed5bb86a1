"""The tables, in Markdown that reads well in a terminal too; every verdict is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.lr_robustness.figures import COSINE, RIVALS, Cell, Estimate, Series, Table, tables
from bench.lr_robustness.methods import METHODS
from bench.lr_robustness.rows import Row
from bench.lr_robustness.tasks import TASKS

HORIZON, OPEN, OVER_COSINE = "alignment", "alignment-open", "alignment-cosine"
NOTHING = "–"

HOW_TO_READ = """\
- A cell is the final held-out loss, the mean over the seeds; 2.237(3) is 2.237 with a standard
  error of 0.003. Bold: the best-tuned cosine, the lowest of its means.
- † marks runs that diverged: their final loss is above the one before training, or not finite.
  Where one is not finite there is no mean.
- Ratios and their errors are of paired runs: the same seed gives every method and rate the same
  weights and the same batches.
- A best-tuned value is the lowest of several noisy means, which favours the baseline; a worst
  cell is the highest, which counts against whoever is judged. ✓ and ✗ go by the number itself,
  whatever its error."""


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        heading: Of its column.
        meaning: The same in words.
        limit: The highest value that reaches it.
        measure: The figure of a task; ``None`` where runs are missing.
        text: How it is written.
    """

    heading: str
    meaning: str
    limit: float
    measure: Callable[[Table], Estimate | None]
    text: Callable[[Estimate], str]


def report(rows: Sequence[Row], about: str = "") -> str:
    """Everything, from the rows of one request.

    Args:
        rows: At least one.
        about: A last line: when and by what command.
    """
    every = tables(rows)
    parts = ["# How far off the learning rate may be", HOW_TO_READ]
    for table in every:
        parts += [f"## {_task_title(table)}", task_table(table)]
    parts += ["## Worst cell ÷ best-tuned cosine", overview(every)]
    parts += ["## The figures to reach, alignment law", goals(every), verdicts(every)]
    parts.append(" ".join([provenance(rows), about]).strip())
    return "\n\n".join(parts) + "\n"


def _task_title(table: Table) -> str:
    title = TASKS[table.task].title if table.task in TASKS else table.task
    return f"{table.task}: {title}, {table.steps:,} steps, starts at {table.initial:.3f}"


def task_table(table: Table) -> str:
    """A line per method, a column per starting rate, and what the line comes to."""
    tuned = table.best_tuned([COSINE])
    digits = _decimals(table.cells[tuned].mean if tuned else table.initial)
    headings = [
        "method",
        *map(_rate, table.rates),
        "worst ÷ best cosine",
        "at cosine's best",
        "diverged",
    ]
    lines = []
    for series in table.series:
        cells = [
            _cell(table.cells.get((series, rate)), digits, (series, rate) == tuned)
            for rate in table.rates
        ]
        worst = _or_nothing(table.worst_over_best(series, [COSINE]), _ratio)
        regret = _or_nothing(table.regret(series), _percent)
        count, of = table.diverged(series)
        lines.append([_title(series), *cells, worst, regret, f"{count} of {of}"])
    return _markdown(headings, lines)


def overview(every: Sequence[Table]) -> str:
    """A line per method, a column per task."""
    lines = []
    for series in dict.fromkeys(series for table in every for series in table.series):
        worst = [table.worst_over_best(series, [COSINE]) for table in every]
        lines.append([_title(series), *(_or_nothing(w, _ratio) for w in worst)])
    return _markdown(["method", *(table.task for table in every)], lines)


def _ratio(estimate: Estimate) -> str:
    return _with_error(estimate, 3)


def _percent(estimate: Estimate) -> str:
    percent = Estimate(100 * estimate.value, 100 * estimate.error)
    sign = "" if not percent.value > 0 else "+"
    return f"{sign}{_with_error(percent, 1)} %"


def _count(estimate: Estimate) -> str:
    return f"{estimate.value:.0f}"


def _diverged(table: Table) -> Estimate | None:
    lines = [s for s in table.series if s.method in (HORIZON, OPEN, OVER_COSINE)]
    if not lines:
        return None
    return Estimate(sum(table.diverged(series)[0] for series in lines), math.nan)


GOALS = (
    Goal(
        "worst ÷ cosine",
        "With horizon: the worst cell over the best-tuned cosine",
        1.03,
        lambda table: table.worst_over_best(Series(HORIZON), [COSINE]),
        _ratio,
    ),
    Goal(
        "worst ÷ best of three",
        "With horizon: the worst cell over the best of tuned cosine, cooldown and Schedule-Free",
        1.0,
        lambda table: table.worst_over_best(Series(HORIZON), RIVALS),
        _ratio,
    ),
    Goal(
        "regret",
        "With horizon: how far above the cosine it ends from the cosine's best rate",
        0.01,
        lambda table: table.regret(Series(HORIZON)),
        _percent,
    ),
    Goal(
        "diverged",
        "With horizon, without, and over a cosine: runs that diverged",
        0.0,
        _diverged,
        _count,
    ),
    Goal(
        "open: worst ÷ constant",
        "Without horizon: the worst cell over the best-tuned constant rate",
        1.03,
        lambda table: table.worst_over_best(Series(OPEN), ["constant"]),
        _ratio,
    ),
)


def goals(every: Sequence[Table]) -> str:
    """A line per task, a column per figure, each with whether it is reached."""
    lines = []
    for table in every:
        found = [(goal, goal.measure(table)) for goal in GOALS]
        lines.append([table.task, *(_judged(goal, figure) for goal, figure in found)])
    return _markdown(["task", *(f"{goal.heading} ≤ {_limit(goal)}" for goal in GOALS)], lines)


def _judged(goal: Goal, figure: Estimate | None) -> str:
    if figure is None:
        return NOTHING
    return f"{goal.text(figure)} {'✓' if _reached(figure, goal) else '✗'}"


def verdicts(every: Sequence[Table]) -> str:
    """A line per figure: on how many tasks it is reached, and where it is not."""
    return "\n".join(
        f"- {goal.meaning}, at most {_limit(goal)}: {_verdict(goal, every)}." for goal in GOALS
    )


def _verdict(goal: Goal, every: Sequence[Table]) -> str:
    figures = {table.task: goal.measure(table) for table in every}
    known = {task: figure for task, figure in figures.items() if figure is not None}
    if not known:
        return "not measured"
    failed = [task for task, figure in known.items() if not _reached(figure, goal)]
    where = f", not on {', '.join(failed)}" if failed else ""
    return f"reached on {len(known) - len(failed)} of {len(known)} tasks{where}"


def _reached(found: Estimate, goal: Goal) -> bool:
    """By the number itself, whatever its error; NaN reaches nothing."""
    return found.value <= goal.limit


def _limit(goal: Goal) -> str:
    if goal.text is _percent:
        return f"{100 * goal.limit:g} %"
    return f"{goal.limit:.2f}" if goal.text is _ratio else f"{goal.limit:g}"


def provenance(rows: Iterable[Row]) -> str:
    """What the rows were taken with."""
    rows = list(rows)
    seeds = sorted({row.seed for row in rows})
    seconds = math.fsum(row.seconds for row in rows)
    return (
        f"{len(rows):,} runs, seeds {_listed(seeds)}; {seconds / 60:,.0f} minutes of runs; "
        f"{_listed({row.device for row in rows})}; torch {_listed({row.torch for row in rows})}; "
        f"commit {_listed({row.commit for row in rows})}."
    )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, sorted(values, key=str)))


def _title(series: Series) -> str:
    title = METHODS[series.method].title if series.method in METHODS else series.method
    return title if series.factor == 1 else f"{title}, told {series.factor:g}·T"


def _rate(rate: float) -> str:
    """1e-4, not 0.0001 nor 1e-04."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _decimals(value: float) -> int:
    """Enough for three significant digits of the best value, and three at least."""
    return max(3, 2 - math.floor(math.log10(value))) if 0 < value < math.inf else 3


def _cell(cell: Cell | None, decimals: int, bold: bool) -> str:
    if cell is None:
        return NOTHING
    dagger = "†" if cell.diverged else ""
    if not math.isfinite(cell.mean):
        return f"diverged{dagger}"
    text = _with_error(Estimate(cell.mean, cell.error), decimals) + dagger
    return f"**{text}**" if bold else text


def _with_error(estimate: Estimate, decimals: int) -> str:
    """The value and, in brackets, its error in units of the last digit shown."""
    value, error = estimate
    if not math.isfinite(value):
        return "∞" if value > 0 else "?"
    if abs(value) >= 1e4:
        return f"{value:.2e}"
    # Digits that the error makes meaningless are left out.
    while decimals > 0 and error * 10**decimals >= 99.5:
        decimals -= 1
    text = f"{value:.{decimals}f}"
    return text if math.isnan(error) else f"{text}({round(error * 10**decimals)})"


def _or_nothing(estimate: Estimate | None, text: Callable[[Estimate], str]) -> str:
    return NOTHING if estimate is None else text(estimate)


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up as plain text; all but the first to the right."""
    rows = [headings, *lines]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |"
        for row in [headings, rule, *lines]
    )
