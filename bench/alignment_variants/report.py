"""From rows to Markdown: what every variant came to on every task, and then every cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from bench.alignment_variants.rows import Row
from bench.alignment_variants.tasks import TASKS
from bench.alignment_variants.variants import FINAL, SCHEDULES, VARIANTS
from bench.lr_robustness.figures import Cell, Estimate, ratio

NOTHING = "–"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
ROLES = ("development", "looked at", "held out")

HOW_TO_READ = """\
The worst cell is the highest mean over the seeds, of the starting rates that a law was run from;
the best-tuned baseline is the lowest mean of its own rates. 1.43(8) is 1.43 with a standard error
of 0.08, of paired runs. A worst cell is the highest of several noisy means and a best-tuned one
the lowest: both count against the laws."""


class PageError(Exception):
    """A page cannot take the tables; the message says why and what to do."""


class Board:
    """The rows of one task, by law and rate.

    Args:
        rows: At least one; all of the same task.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.task = rows[0].task
        self.rows: dict[str, dict[float, list[Row]]] = {}
        for row in rows:
            self.rows.setdefault(row.law, {}).setdefault(row.rate, []).append(row)
        self.schedules = [name for name in SCHEDULES if name in self.rows]
        self.variants = [name for name in VARIANTS if name in self.rows]

    def cells(self, law: str) -> dict[float, Cell]:
        """Held-out losses by rate and seed."""
        return {
            rate: Cell({row.seed: row.held_out for row in rows}, 0)
            for rate, rows in sorted(self.rows.get(law, {}).items())
        }

    def best(self, law: str) -> tuple[float, Cell] | None:
        """The rate with the lowest mean, and its cell; ``None`` where the law was not run."""
        cells = self.cells(law)
        return min(cells.items(), key=lambda item: item[1].mean) if cells else None

    def worst_over(self, law: str, baseline: str) -> Estimate | None:
        """The worst cell of a law over the best of a baseline."""
        cells, tuned = self.cells(law), self.best(baseline)
        if not cells or tuned is None:
            return None
        return ratio(max(cells.values(), key=lambda cell: cell.mean), tuned[1])

    def mean_over(self, law: str, baseline: str) -> Estimate | None:
        """The mean of a law's cells over the best of a baseline."""
        cells, tuned = list(self.cells(law).values()), self.best(baseline)
        if not cells or tuned is None:
            return None
        seeds = cells[0].finals
        over_rates = {s: statistics.fmean(cell.finals[s] for cell in cells) for s in seeds}
        return ratio(Cell(over_rates, 0), tuned[1])

    def means(self, law: str, column: Callable[[Row], float]) -> dict[float, float]:
        """Another column's means over the seeds, by rate."""
        rows = sorted(self.rows.get(law, {}).items())
        return {rate: statistics.fmean(map(column, group)) for rate, group in rows}

    def all_rows(self, law: str) -> list[Row]:
        """Of every rate and seed."""
        return [row for group in self.rows.get(law, {}).values() for row in group]


def boards(rows: Iterable[Row]) -> list[Board]:
    """One a task, in the order of the registry."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return [Board(by_task[name]) for name in TASKS if name in by_task]


def report(rows: Sequence[Row]) -> str:
    """Everything; rows of tasks and laws that the registries no longer have are left out."""
    every = boards(rows)
    parts = [
        "## Worst cell ÷ best-tuned cosine",
        HOW_TO_READ,
        overview(every, lambda board, law: board.worst_over(law, "cosine")),
        "## Mean of the cells ÷ best-tuned cosine",
        overview(every, lambda board, law: board.mean_over(law, "cosine")),
        "## Without a horizon: worst cell ÷ best-tuned constant rate",
        overview(every, _open_over_constant),
        "## The variants",
        descriptions(every),
        "## Every cell",
        *(task_section(board) for board in every),
        provenance(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _open_over_constant(board: Board, law: str) -> Estimate | None:
    return board.worst_over(law, "constant") if law in VARIANTS and VARIANTS[law].is_open else None


def overview(every: Sequence[Board], figure: Callable[[Board, str], Estimate | None]) -> str:
    """A line per law, a column per task, the tasks by what they were used for."""
    ordered = sorted(every, key=lambda board: ROLES.index(TASKS[board.task].role))
    lines = []
    for law in (*SCHEDULES, *VARIANTS):
        found = [figure(board, law) for board in ordered]
        if any(estimate is not None for estimate in found):
            lines.append([_bold(law), *(_or_nothing(estimate) for estimate in found)])
    headings = [f"{board.task}{_role_mark(board.task)}" for board in ordered]
    return f"{_markdown(['law', *headings], lines)}\n\n{_ROLES_EXPLAINED}"


_ROLES_EXPLAINED = (
    "Without a mark: a development task. †: looked at while choosing. ‡: held out from it."
)


def _role_mark(task: str) -> str:
    return {"development": "", "looked at": " †", "held out": " ‡"}[TASKS[task].role]


def descriptions(every: Sequence[Board]) -> str:
    """What each variant that was run does, and why it was tried."""
    run = {law for board in every for law in board.variants}
    lines = [[_bold(v.name), v.what, v.why] for v in VARIANTS.values() if v.name in run]
    return _markdown(["variant", "what it does", "why"], lines, "---")


def provenance(rows: Sequence[Row]) -> str:
    """What the rows were made with."""
    seeds = ", ".join(map(str, sorted({row.seed for row in rows})))
    made = "; ".join(sorted({row.made for row in rows}))
    return (
        f"{len(rows):,} runs, seeds {seeds}; made {made}, one thread. The text is that Python's "
        "standard library, its first modules by name."
    )


def task_section(board: Board) -> str:
    """One task: the schedules by rate, what h says at constant rates, and the variants."""
    task = TASKS[board.task]
    heading = f"### {task.name}: {task.title}; {task.role}"
    size = f"{task.steps:,} steps of {task.batch} examples."
    parts = [heading, size, schedule_table(board)]
    if "constant" in board.rows:
        parts += [SCORES_EXPLAINED, score_table(board)]
    if board.variants:
        parts.append(variant_table(board))
    return "\n\n".join(parts)


def schedule_table(board: Board) -> str:
    """Held-out and training losses, a column per rate."""
    rates = _rates(board, board.schedules)
    digits = _decimals(board)
    lines = []
    for law in board.schedules:
        cells, train = board.cells(law), board.means(law, lambda row: row.train)
        lines.append([law, *(_mean(cells.get(rate), digits) for rate in rates)])
        lines.append(
            [f"{law}, training loss", *(_number(train.get(rate), digits) for rate in rates)]
        )
    return _markdown(["schedule", *map(_rate, rates)], lines)


SCORES_EXPLAINED = (
    "Mean of h over its RMS, each step's limited to ±2, at constant rates (after the warm-up of 5 "
    "%): below 0, updates overshoot."
)


def score_table(board: Board) -> str:
    """The three windows of the runs at constant rates, a column per rate."""
    rates = _rates(board, ["constant"])
    half = TASKS[board.task].steps // 2
    windows: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("steps 21 to 100", lambda row: row.early),
        (f"steps 101 to {half:,}", lambda row: row.middle),
        (f"steps {half + 1:,} on", lambda row: row.late),
    )
    lines = []
    for name, column in windows:
        means = board.means("constant", column)
        lines.append([name, *(_signed(means[rate]) for rate in rates)])
    return _markdown(["mean score", *map(_rate, rates)], lines)


def variant_table(board: Board) -> str:
    """The variants' held-out losses by rate, and what they came to."""
    rates = _rates(board, board.variants)
    digits = _decimals(board)
    figures = ["worst ÷", "mean ÷", "worst run", "training", "log₁₀ α found", "held at"]
    lines = []
    for law in board.variants:
        cells, train = board.cells(law), board.means(law, lambda row: row.train)
        lines.append(
            [
                _bold(law),
                *(_mean(cells.get(rate), digits) for rate in rates),
                _or_nothing(board.worst_over(law, "cosine")),
                _or_nothing(board.mean_over(law, "cosine")),
                _number(_worst_run(board.all_rows(law)), digits),
                _number(statistics.fmean(train.values()), digits),
                _spread(board.all_rows(law)),
                _held(board.all_rows(law)),
            ]
        )
    return _markdown(["variant", *map(_rate, rates), *figures], lines)


def _worst_run(rows: Sequence[Row]) -> float:
    """The highest held-out loss of all; infinite where one is not finite."""
    return max(row.held_out if math.isfinite(row.held_out) else math.inf for row in rows)


def _rates(board: Board, laws: Iterable[str]) -> list[float]:
    return sorted({rate for law in laws for rate in board.rows[law]})


def _bold(law: str) -> str:
    return f"**{law}**" if law == FINAL else law


def _decimals(board: Board) -> int:
    """Enough for three significant digits of the lowest mean, and three at least."""
    least = min(cell.mean for law in board.rows for cell in board.cells(law).values())
    return max(3, 2 - math.floor(math.log10(least))) if 0 < least < math.inf else 3


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged"


def _mean(cell: Cell | None, digits: int) -> str:
    return _number(None if cell is None else cell.mean, digits)


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else NOTHING


def _or_nothing(estimate: Estimate | None) -> str:
    """The value and, in brackets, its standard error in units of the last digit."""
    if estimate is None:
        return NOTHING
    value, error = estimate
    if not math.isfinite(value):
        return "diverged"
    digits = 2
    while digits > 0 and (value >= 10 ** (3 - digits) or error * 10**digits >= 99.5):
        digits -= 1
    text = f"{value:.{digits}f}"
    return text if math.isnan(error) else f"{text}({round(error * 10**digits)})"


def _spread(rows: Sequence[Row]) -> str:
    """Mean, lowest and highest of the rates' logarithms."""
    found = [math.log10(row.found) for row in rows]
    return f"{statistics.fmean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def _held(rows: Sequence[Row]) -> str:
    """Mean step of those that were held, and how many were not."""
    held = [row.held_at for row in rows if not math.isnan(row.held_at)]
    if not held:
        return "never"
    never = len(rows) - len(held)
    return f"{statistics.fmean(held):.0f}" + (f", {never} of {len(rows)} never" if never else "")


def _rate(rate: float) -> str:
    """1e-4, not 0.0001 nor 1e-04."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]], side: str = "---:") -> str:
    """A table whose columns after the first stand to this side."""
    rule = ["---", *[side] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, rule, *lines])


def placed(tables: str, page: str | None) -> str:
    """A page with these tables between its markers.

    Args:
        tables: The report.
        page: What the page says now; ``None`` where there is none.

    Raises:
        PageError: A page without both markers: its text is somebody's.
    """
    if page is None:
        return f"{BEGIN}\n\n{tables}\n{END}\n"
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PageError(
            f"it has no lines {BEGIN} and {END} for the tables to stand between; put them where "
            "the tables belong, or name another file"
        )
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"
