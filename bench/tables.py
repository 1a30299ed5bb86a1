"""The tables, in Markdown that reads well in a terminal too; every number is computed."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bench.figures import (
    Cell,
    Estimate,
    IsA,
    Logs,
    Series,
    Table,
    difference,
    ratio,
    tables,
    together,
)
from bench.methods import ABLATIONS, METHODS, VARIANTS
from bench.run.rows import Row
from bench.tasks import TASKS

NOTHING = "–"

HOW_TO_READ = """\
- A cell is the final held-out loss, the mean over the seeds; 2.237(3) is 2.237 with a standard
  error of 0.003. † marks runs that diverged: their loss ended above the one before training, or not
  finite, and counts as the one before training.
- "All starts", "worst start" and "best start" are ratios to the reference, AdamW with a cosine at
  its best rate (bold): geometric means over the starting rates, and at the rate with the highest
  and lowest mean.
- No lowest or highest of several noisy means is a result: for every seed the best and worst rates
  are chosen on the other seeds. Runs are paired; errors are over seeds."""

CHOSEN_ON_A = HOW_TO_READ.replace(
    "for every seed the best and worst rates\n  are chosen on the other seeds",
    "the best and worst rates are\n  chosen on seeds that nothing is compared on",
)


def report(
    rows: Sequence[Row], about: str = "", is_a: IsA | None = None, beside: str | None = None
) -> str:
    """The page; with ``beside`` all methods are also compared with that one, seed by seed."""
    every = tables(rows, is_a)
    parts = ["# How far off the learning rate may be", HOW_TO_READ if is_a is None else CHOSEN_ON_A]
    for table in every:
        parts += [f"## {task_title(table)}", task_table(table)]
    if any(table.reference() for table in every):
        parts += ["## All starts ÷ best-tuned cosine", overview(every, Table.over_all_starts)]
        parts += ["## Worst start ÷ best-tuned cosine", overview(every, worst_start)]
    if beside is not None:
        title = title_of(Series(beside))
        parts += [f"## All starts ÷ {title}", overview(every, partial(compared, beside))]
    parts.append(" ".join([provenance(rows), about]).strip())
    return "\n\n".join(parts) + "\n"


def compared(beside: str, table: Table, series: Series) -> Logs | None:
    """Over all starts, of each seed, less another method's."""
    return difference(table.over_all_starts(series), table.over_all_starts(Series(beside)))


def worst_start(table: Table, series: Series) -> Logs | None:
    return table.from_start(series, max)


def best_start(table: Table, series: Series) -> Logs | None:
    return table.from_start(series, min)


FIGURES: tuple[tuple[str, Callable[[Table, Series], Logs | None]], ...] = (
    ("all starts", Table.over_all_starts),
    ("worst start", worst_start),
    ("best start", best_start),
)


def task_title(table: Table) -> str:
    task = TASKS.get(table.task)
    title = task.title if task else table.task
    role = f" ({task.role})" if task and task.role else ""
    return f"{table.task}: {title}{role}, {table.steps:,} steps, starts at {table.initial:.3f}"


def task_table(table: Table) -> str:
    return markdown(*task_lines(table))


def task_lines(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and lines."""
    reference = table.reference()
    digits = _decimals(reference.mean().value if reference else table.initial)
    lines = []
    for series in table.series:
        line = table.line(series)
        cells = [_cell(line.get(rate), digits, line.get(rate) is reference) for rate in table.rates]
        ratios = [ratio_text(ratio(logs(table, series))) for _, logs in FIGURES]
        count, of = table.diverged(series)
        lines.append([title_of(series), *cells, *ratios, f"{count} of {of}"])
    rates = map(rate_text, table.rates)
    return ["method", *rates, *(name for name, _ in FIGURES), "diverged"], lines


def overview(every: Sequence[Table], figure: Callable[[Table, Series], Logs | None]) -> str:
    return markdown(*overview_lines(every, figure))


def overview_lines(
    every: Sequence[Table], figure: Callable[[Table, Series], Logs | None]
) -> tuple[list[str], list[list[str]]]:
    """A column a task, and their geometric mean where the method has all of them."""
    lines, several = [], len(every) > 1
    for series in dict.fromkeys(series for table in every for series in table.series):
        logs = [figure(table, series) for table in every]
        ratios = [ratio_text(ratio(one)) for one in logs]
        all_of_them = [ratio_text(together(logs))] if several else []
        lines.append([title_of(series), *ratios, *all_of_them])
    return ["method", *(table.task for table in every), *["together"] * several], lines


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


def title_of(series: Series) -> str:
    method = (METHODS | ABLATIONS | VARIANTS).get(series.method)
    title = method.title if method else series.method
    return title if series.factor == 1 else f"{title}, told {series.factor:g}·T"


def rate_text(rate: float) -> str:
    """1e-4, not 0.0001 nor 1e-04."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _decimals(value: float) -> int:
    """Enough for three significant digits of the best value, and three at least."""
    return max(3, 2 - math.floor(math.log10(value))) if 0 < value < math.inf else 3


def _cell(cell: Cell | None, decimals: int, bold: bool) -> str:
    if cell is None or not cell.runs:
        return NOTHING
    text = with_error(cell.mean(), decimals) + "†" * bool(cell.diverged)
    return f"**{text}**" if bold else text


def ratio_text(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else with_error(estimate, 3)


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
