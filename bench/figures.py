"""From rows to numbers, by an estimator without bias.

What is chosen is chosen on seeds A: the rate of the reference, which is AdamW with a cosine, and
each method's best and worst start. What is reported is measured on seeds B, paired: the log of a
loss over the reference's loss of the same seed.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from bench.methods import METHODS
from bench.run.rows import Row
from bench.tasks import TASKS

COSINE = "cosine"
SHARE_A = 0.4
"""Of a file's seeds, where nobody says which are A: the lowest ones."""

Measure = Callable[[Row], float]
IsA = Callable[[int], bool]
Logs = Mapping[int, float]
"""By seed."""


class Series(NamedTuple):
    """A line of the table: a method's name, and the horizon it was told over the run's steps."""

    method: str
    factor: float = 1.0


class Estimate(NamedTuple):
    """A number and its standard error; the error is NaN where there is but one seed."""

    value: float
    error: float

    def exponential(self) -> "Estimate":
        value = math.exp(self.value)
        return Estimate(value, value * self.error)


# What is measured of a run ------------------------------------------------------------------------


def final(row: Row) -> float:
    """The held-out loss at the end; that before training, where the run diverged."""
    return row.initial if row.diverged else row.final


def area(row: Row) -> float:
    """The mean height of the held-out curve over the steps, by trapezoids."""
    return statistics.fmean((a + b) / 2 for a, b in pairwise(heights(row)))


def heights(row: Row) -> list[float]:
    """The curve from before training on; a loss above that or not finite counts as that."""
    return [row.initial, *(min(x, row.initial) if x < math.inf else row.initial for x in row.curve)]


def time_to(row: Row, target: float) -> float:
    """The share of the run until the curve is at the target, by straight lines; ∞: never."""
    losses = heights(row)
    for at, (a, b) in enumerate(pairwise(losses)):
        if b <= target:
            part = 0.0 if a <= target else (a - target) / (a - b)
            return (at + part) / (len(losses) - 1)
    return math.inf


# A task's table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A task, a line and a rate: the runs by seed, those of seeds A apart."""

    chosen_by: Mapping[int, Row]
    runs: Mapping[int, Row]

    def mean(self, measure: Measure = final) -> Estimate:
        return estimate([measure(row) for row in self.runs.values()])

    @property
    def diverged(self) -> int:
        return sum(row.diverged for row in self.runs.values())

    def on_a(self) -> float:
        return statistics.fmean(map(final, self.chosen_by.values()))


@dataclass(frozen=True)
class Table:
    task: str  # its name
    steps: int  # of its runs
    rates: list[float]  # all starting rates, rising, without those that only the cosine has
    series: list[Series]  # the lines, in the order of the report
    cells: dict[tuple[Series, float], Cell]  # by line and rate
    initial: float  # mean held-out loss before the first step

    def line(self, series: Series) -> dict[float, Cell]:
        """By rate, where there are runs; a method of a fixed rate is at all rates the same."""
        method = METHODS.get(series.method)
        if method is not None and method.fixed_rate is not None:
            only = self.cells.get((series, method.fixed_rate))
            return {} if only is None else dict.fromkeys(self.rates, only)
        return {r: self.cells[series, r] for r in self.rates if (series, r) in self.cells}

    def start(self, series: Series, which: Callable[..., float]) -> float | None:
        """The rate with the lowest or highest mean on seeds A; None where one was not run."""
        line = self.line(series)
        if len(line) < len(self.rates) or not all(cell.chosen_by for cell in line.values()):
            return None
        return which(line, key=lambda rate: line[rate].on_a())

    @property
    def reference_rate(self) -> float | None:
        """The cosine's best, of all its rates, on seeds A."""
        cells = {
            rate: cell
            for (series, rate), cell in self.cells.items()
            if series == Series(COSINE) and cell.chosen_by and cell.runs
        }
        return min(cells, key=lambda rate: cells[rate].on_a()) if cells else None

    @property
    def reference(self) -> Cell | None:
        rate = self.reference_rate
        return None if rate is None else self.cells[Series(COSINE), rate]

    def logs(self, cells: Iterable[Cell], measure: Measure = final) -> Logs | None:
        """By seed B: the mean over the cells of the log of a loss over the reference's."""
        reference, cells = self.reference, list(cells)
        if reference is None or not cells:
            return None
        seeds = set(reference.runs).intersection(*(cell.runs for cell in cells))
        if not seeds:
            return None
        below = {seed: math.log(measure(reference.runs[seed])) for seed in seeds}
        return {
            seed: statistics.fmean(math.log(measure(cell.runs[seed])) for cell in cells)
            - below[seed]
            for seed in sorted(seeds)
        }

    def over_all_starts(self, series: Series, measure: Measure = final) -> Logs | None:
        line = self.line(series)
        return self.logs(line.values(), measure) if len(line) == len(self.rates) else None

    def from_start(
        self, series: Series, which: Callable[..., float], measure: Measure = final
    ) -> Logs | None:
        rate = self.start(series, which)
        return None if rate is None else self.logs([self.line(series)[rate]], measure)

    def diverged(self, series: Series) -> tuple[int, int]:
        line = {id(cell): cell for cell in self.line(series).values()}.values()
        return sum(cell.diverged for cell in line), sum(len(cell.runs) for cell in line)

    def target(self) -> float | None:
        """The constant rate's mean final loss at its best rate, by seeds A."""
        rate = self.start(Series("constant"), min)
        return None if rate is None else self.cells[Series("constant"), rate].on_a()


def estimate(values: Iterable[float]) -> Estimate:
    values = list(values)
    several = len(values) > 1
    error = statistics.stdev(values) / math.sqrt(len(values)) if several else math.nan
    return Estimate(statistics.fmean(values), error)


def ratio(logs: Logs | None) -> Estimate | None:
    return None if logs is None else estimate(logs.values()).exponential()


def together(every: Sequence[Logs | None]) -> Estimate | None:
    """The geometric mean over tasks, each alike; their errors are independent."""
    parts = [None if logs is None else estimate(logs.values()) for logs in every]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    error = math.sqrt(math.fsum(part.error**2 for part in known)) / len(known)
    return Estimate(statistics.fmean(part.value for part in known), error).exponential()


def difference(one: Logs | None, other: Logs | None) -> Logs | None:
    """Seed by seed."""
    if one is None or other is None:
        return None
    return {seed: one[seed] - other[seed] for seed in one if seed in other} or None


# From rows ----------------------------------------------------------------------------------------


def tables(rows: Iterable[Row], is_a: IsA | None = None) -> list[Table]:
    """By task. Without ``is_a`` the lowest `SHARE_A` of a task's seeds are A, one at least."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    names = sorted(by_task, key=_place(TASKS))
    return [_table(task, by_task[task], is_a or _lowest(by_task[task])) for task in names]


def _lowest(rows: Sequence[Row]) -> IsA:
    """None are where there is no cosine, and so nothing to choose, or a single seed."""
    seeds = sorted({row.seed for row in rows})
    chooses = len(seeds) > 1 and any(row.method == COSINE for row in rows)
    return set(seeds[: max(1, round(SHARE_A * len(seeds)))] if chooses else []).__contains__


def _table(task: str, rows: list[Row], is_a: IsA) -> Table:
    groups: dict[tuple[Series, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((Series(row.method, row.factor), row.rate), []).append(row)
    place = _place(METHODS)
    lines = {series for series, _ in groups}
    fixed = {name for name, method in METHODS.items() if method.fixed_rate is not None}
    return Table(
        task=task,
        steps=max(row.steps for row in rows),
        rates=sorted(
            {row.rate for row in rows if row.method not in {*fixed, COSINE}}
            or {row.rate for row in rows}
        ),
        series=sorted(lines, key=lambda s: (s.factor != 1, place(s.method), s)),
        cells={
            key: Cell(
                {row.seed: row for row in group if is_a(row.seed)},
                {row.seed: row for row in group if not is_a(row.seed)},
            )
            for key, group in groups.items()
        },
        initial=statistics.fmean({row.seed: row.initial for row in rows}.values()),
    )


def _place(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    order = list(names)
    return lambda name: (order.index(name) if name in order else len(order), name)
