"""From rows to numbers, by an estimator without bias.

What is chosen is chosen on seeds A: the rate of the reference, which is AdamW with a cosine, and
each method's best and worst start. What is reported is measured on seeds B, paired: the log of a
loss over the reference's loss of the same seed. Where nobody says which seeds are A, every seed is
B once, and all others are A to it.
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
Measure = Callable[[Row], float]
IsA = Callable[[int], bool]
Which = Callable[..., float]  # min or max
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


class Fold(NamedTuple):
    """Seeds that choose, and others that what is chosen is measured on."""

    a: frozenset[int]
    b: frozenset[int]


@dataclass(frozen=True)
class Cell:
    """A task, a line and a rate: its runs by seed."""

    every: Mapping[int, Row]
    folds: Sequence[Fold]  # the table's

    @property
    def runs(self) -> dict[int, Row]:
        """Those of seeds B."""
        compared = frozenset().union(*(fold.b for fold in self.folds))
        return {seed: row for seed, row in self.every.items() if seed in compared}

    def mean(self, measure: Measure = final) -> Estimate:
        return estimate([measure(row) for row in self.runs.values()])

    @property
    def diverged(self) -> int:
        return sum(row.diverged for row in self.runs.values())

    def on_a(self, fold: Fold) -> float | None:
        """The mean final loss of its runs on seeds A; None where there is none."""
        losses = [final(row) for seed, row in self.every.items() if seed in fold.a]
        return statistics.fmean(losses) if losses else None


@dataclass(frozen=True)
class Table:
    task: str  # its name
    steps: int  # of its runs
    rates: list[float]  # all starting rates, rising, without those that only the cosine has
    series: list[Series]  # the lines, in the order of the report
    cells: dict[tuple[Series, float], Cell]  # by line and rate
    initial: float  # mean held-out loss before the first step
    folds: list[Fold]

    def line(self, series: Series) -> dict[float, Cell]:
        """By rate, where there are runs; a method of a fixed rate is at all rates the same."""
        method = METHODS.get(series.method)
        if method is not None and method.fixed_rate is not None:
            only = self.cells.get((series, method.fixed_rate))
            return {} if only is None else dict.fromkeys(self.rates, only)
        return {r: self.cells[series, r] for r in self.rates if (series, r) in self.cells}

    def start(self, series: Series, which: Which, fold: Fold) -> float | None:
        """The rate with the lowest or highest mean on seeds A; None where one was not run."""
        line = self.line(series)
        return _chosen(line, which, fold) if len(line) == len(self.rates) else None

    def reference_rate(self, fold: Fold) -> float | None:
        """The cosine's best, of all its rates, on seeds A."""
        cells = {rate: c for (series, rate), c in self.cells.items() if series == Series(COSINE)}
        return _chosen(cells, min, fold) if cells else None

    def reference(self) -> Cell | None:
        """The cosine's cell that most folds choose; for people: each fold has its own.

        None where one cannot choose, or where the study was stopped before any seed B.
        """
        rates = [rate for f in self.folds if (rate := self.reference_rate(f)) is not None]
        if len(rates) < len(self.folds) or not rates:
            return None
        cell = self.cells[Series(COSINE), statistics.mode(rates)]
        return cell if cell.runs else None

    def over_all_starts(self, series: Series, measure: Measure = final) -> Logs | None:
        line = self.line(series)
        complete = len(line) == len(self.rates)
        return self._logs(lambda fold: list(line.values()) if complete else [], measure)

    def from_start(self, series: Series, which: Which, measure: Measure = final) -> Logs | None:
        line = self.line(series)

        def chosen(fold: Fold) -> list[Cell]:
            rate = self.start(series, which, fold)
            return [] if rate is None else [line[rate]]

        return self._logs(chosen, measure)

    def _logs(self, cells_of: Callable[[Fold], list[Cell]], measure: Measure) -> Logs | None:
        """By seed B: the mean over a fold's cells of the log of a loss over the reference's."""
        found: dict[int, float] = {}
        for fold in self.folds:
            rate, cells = self.reference_rate(fold), cells_of(fold)
            if rate is None or not cells:
                return None
            below = self.cells[Series(COSINE), rate]
            for seed in sorted(fold.b):
                if all(seed in cell.every for cell in (below, *cells)):
                    logs = [math.log(measure(cell.every[seed])) for cell in cells]
                    found[seed] = statistics.fmean(logs) - math.log(measure(below.every[seed]))
        return found or None

    def runs_from(self, series: Series, which: Which) -> list[Row]:
        """On seeds B, each from the start that its fold chose."""
        line, found = self.line(series), []
        for fold in self.folds:
            rate = self.start(series, which, fold)
            if rate is not None:
                found += [row for seed, row in line[rate].every.items() if seed in fold.b]
        return found

    def diverged(self, series: Series) -> tuple[int, int]:
        line = {id(cell): cell for cell in self.line(series).values()}.values()
        return sum(cell.diverged for cell in line), sum(len(cell.runs) for cell in line)

    def times(self, series: Series) -> list[float] | None:
        """Of every run on seeds B, to the constant rate's mean loss at its best on seeds A."""
        found = []
        for fold in self.folds:
            rate = self.start(Series("constant"), min, fold)
            if rate is None:
                return None
            target = self.cells[Series("constant"), rate].on_a(fold)
            assert target is not None
            runs = [row for cell in self.line(series).values() for row in cell.every.values()]
            found += [time_to(row, target) for row in runs if row.seed in fold.b]
        return found


def _chosen(line: Mapping[float, Cell], which: Which, fold: Fold) -> float | None:
    means = {rate: cell.on_a(fold) for rate, cell in line.items()}
    if None in means.values() or not means:
        return None
    return which(means, key=means.__getitem__)


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
    """By task. Without ``is_a`` every seed is compared once, and the others choose."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    names = sorted(by_task, key=_place(TASKS))
    return [_table(task, by_task[task], is_a) for task in names]


def _folds(seeds: frozenset[int], is_a: IsA | None) -> list[Fold]:
    if is_a is None:
        return [Fold(seeds - {seed}, frozenset({seed})) for seed in sorted(seeds)]
    a = frozenset(filter(is_a, seeds))
    return [Fold(a, seeds - a)]


def _table(task: str, rows: list[Row], is_a: IsA | None) -> Table:
    groups: dict[tuple[Series, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((Series(row.method, row.factor), row.rate), []).append(row)
    place = _place(METHODS)
    lines = {series for series, _ in groups}
    folds = _folds(frozenset(row.seed for row in rows), is_a)
    fixed = {name for name, method in METHODS.items() if method.fixed_rate is not None}
    return Table(
        task=task,
        steps=max(row.steps for row in rows),
        rates=sorted(
            {row.rate for row in rows if row.method not in {*fixed, COSINE}}
            or {row.rate for row in rows}
        ),
        series=sorted(lines, key=lambda s: (s.factor != 1, place(s.method), s)),
        cells={key: Cell({row.seed: row for row in group}, folds) for key, group in groups.items()},
        initial=statistics.fmean({row.seed: row.initial for row in rows}.values()),
        folds=folds,
    )


def _place(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    order = list(names)
    return lambda name: (order.index(name) if name in order else len(order), name)
