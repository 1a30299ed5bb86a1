"""The tables, in Markdown that reads well in a terminal too; every number is computed."""

import math
from collections.abc import Iterable, Sequence

from bench.figures import COSINE, Cell, Estimate, Series, Table, tables
from bench.methods import METHODS
from bench.run.rows import Row
from bench.tasks import TASKS

NOTHING = "–"

HOW_TO_READ = """\
- A cell is the final held-out loss, the mean over the seeds; 2.237(3) is 2.237 with a standard
  error of 0.003. Bold: the best-tuned cosine, the lowest of its means.
- † marks runs that diverged: their final loss is above the one before training, or not finite.
  Where one is not finite there is no mean.
- Ratios and their errors are of paired runs: the same seed gives every method and rate the same
  weights and the same batches.
- A best-tuned value is the lowest of several noisy means, which favours the baseline; a worst
  cell is the highest, which counts against whoever is judged."""


def report(rows: Sequence[Row], about: str = "") -> str:
    every = tables(rows)
    parts = ["# How far off the learning rate may be", HOW_TO_READ]
    for table in every:
        parts += [f"## {_task_title(table)}", task_table(table)]
    for rival, name in ((COSINE, "cosine"), ("constant", "constant rate")):
        if rival == COSINE or any(table.best_tuned(rival) for table in every):
            parts += [f"## Worst cell ÷ best-tuned {name}", overview(every, rival)]
    parts.append(" ".join([provenance(rows), about]).strip())
    return "\n\n".join(parts) + "\n"


def _task_title(table: Table) -> str:
    task = TASKS.get(table.task)
    title = task.title if task else table.task
    role = f" ({task.role})" if task and task.role else ""
    return f"{table.task}: {title}{role}, {table.steps:,} steps, starts at {table.initial:.3f}"


def task_table(table: Table) -> str:
    tuned = table.best_tuned(COSINE)
    digits = _decimals(table.cells[tuned].mean if tuned else table.initial)
    figures = ["worst ÷ best cosine", "at cosine's best", "diverged"]
    lines = []
    for series in table.series:
        cells = [
            _cell(table.cells.get((series, rate)), digits, (series, rate) == tuned)
            for rate in table.rates
        ]
        worst, regret = table.worst_over_best(series, COSINE), table.regret(series)
        count, of = table.diverged(series)
        last = [_ratio(worst), _percent(regret), f"{count} of {of}"]
        lines.append([_title(series), *cells, *last])
    return markdown(["method", *map(_rate, table.rates), *figures], lines)


def overview(every: Sequence[Table], rival: str) -> str:
    lines = [
        [_title(series), *(_ratio(table.worst_over_best(series, rival)) for table in every)]
        for series in dict.fromkeys(series for table in every for series in table.series)
    ]
    return markdown(["method", *(table.task for table in every)], lines)


def provenance(rows: Sequence[Row]) -> str:
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
    text = with_error(Estimate(cell.mean, cell.error), decimals) + dagger
    return f"**{text}**" if bold else text


def _ratio(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else with_error(estimate, 3)


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    percent = Estimate(100 * estimate.value, 100 * estimate.error)
    return f"{'+' if percent.value > 0 else ''}{with_error(percent, 1)} %"


def with_error(estimate: Estimate, decimals: int) -> str:
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


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up as plain text; all but the first to the right."""
    rows = [headings, *lines]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        f"| {' | '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])} |"
        for row in [headings, rule, *lines]
    )
