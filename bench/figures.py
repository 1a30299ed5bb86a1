"""From rows to numbers: means over seeds, ratios of paired runs, worst cells, regret."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.methods import METHODS
from bench.run.rows import Row
from bench.tasks import TASKS

COSINE = "cosine"


class Series(NamedTuple):
    """A line of the table: a method's name, and the horizon it was told over the run's steps."""

    method: str
    factor: float = 1.0


class Estimate(NamedTuple):
    """A number and its standard error; the error is NaN where there is but one seed."""

    value: float
    error: float


@dataclass(frozen=True)
class Cell:
    """A task, a line and a rate: final losses by seed, and how many of the runs diverged."""

    finals: dict[int, float]
    diverged: int

    @property
    def mean(self) -> float:
        values = list(self.finals.values())
        return statistics.fmean(values) if all(map(math.isfinite, values)) else math.inf

    @property
    def error(self) -> float:
        return _error(list(self.finals.values())) if math.isfinite(self.mean) else math.nan


@dataclass(frozen=True)
class Table:
    task: str  # its name
    steps: int  # of its runs
    rates: list[float]  # all starting rates, rising
    series: list[Series]  # the lines, in the order of the report
    cells: dict[tuple[Series, float], Cell]  # by line and rate
    initial: float  # mean held-out loss before the first step

    def line(self, series: Series) -> dict[float, Cell]:
        return {r: self.cells[series, r] for r in self.rates if (series, r) in self.cells}

    def extreme(self, series: Series, which: Callable[..., float]) -> float | None:
        line = self.line(series)
        return which(line, key=lambda r: line[r].mean) if len(line) == len(self.rates) else None

    def best_tuned(self, method: str) -> tuple[Series, float] | None:
        """A method's line and its rate with the lowest mean."""
        rate = self.extreme(Series(method), min)
        return None if rate is None else (Series(method), rate)

    def worst_over_best(self, series: Series, rival: str) -> Estimate | None:
        """A line's worst cell over the best cell of the rival's."""
        rate, tuned = self.extreme(series, max), self.best_tuned(rival)
        if rate is None or tuned is None:
            return None
        return ratio(self.cells[series, rate], self.cells[tuned])

    def regret(self, series: Series, rival: str = COSINE) -> Estimate | None:
        """(Ours − theirs)/theirs at the rival's best rate."""
        rate = self.extreme(Series(rival), min)
        if rate is None or (series, rate) not in self.cells:
            return None
        both = ratio(self.cells[series, rate], self.cells[Series(rival), rate])
        return None if both is None else Estimate(both.value - 1, both.error)

    def diverged(self, series: Series) -> tuple[int, int]:
        line = self.line(series).values()
        return sum(cell.diverged for cell in line), sum(len(cell.finals) for cell in line)


def ratio(above: Cell, below: Cell) -> Estimate | None:
    """The ratio of two means over the seeds that both have, and its standard error.

    The runs are paired, so the error is that of Σ(aᵢ − R·bᵢ)/Σbᵢ: what both share cancels.
    """
    seeds = sorted(above.finals.keys() & below.finals.keys())
    if not seeds:
        return None
    a, b = ([cell.finals[seed] for seed in seeds] for cell in (above, below))
    if not all(map(math.isfinite, [*a, *b])) or sum(b) == 0:
        return Estimate(math.nan if not all(map(math.isfinite, b)) else math.inf, math.nan)
    value = sum(a) / sum(b)
    rests = [x - value * y for x, y in zip(a, b, strict=True)]
    return Estimate(value, _error(rests) / abs(statistics.fmean(b)))


def tables(rows: Iterable[Row]) -> list[Table]:
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    return [_table(task, by_task[task]) for task in sorted(by_task, key=_place(TASKS))]


def _table(task: str, rows: list[Row]) -> Table:
    groups: dict[tuple[Series, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((Series(row.method, row.factor), row.rate), []).append(row)
    place = _place(METHODS)
    lines = {series for series, _ in groups}
    return Table(
        task=task,
        steps=max(row.steps for row in rows),
        rates=sorted({row.rate for row in rows}),
        series=sorted(lines, key=lambda s: (s.factor != 1, place(s.method), s)),
        cells={
            key: Cell({row.seed: row.final for row in group}, sum(row.diverged for row in group))
            for key, group in groups.items()
        },
        initial=statistics.fmean({row.seed: row.initial for row in rows}.values()),
    )


def _place(names: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    order = list(names)
    return lambda name: (order.index(name) if name in order else len(order), name)


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
