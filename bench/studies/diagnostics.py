"""§8's diagnostics: what the loss law's knobs did, and whether they answer the sensors."""

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from bench.methods import METHODS
from bench.run.cells import Cell, train
from bench.run.processes import in_one_thread
from bench.studies.plan import ABLATED
from bench.tasks import TASKS

RATE = 1e-3


@dataclass(frozen=True)
class Update:
    """A row of the trace: the knobs' update after this step."""

    task: str
    step: int
    loss: float
    reward: float
    lr: float
    momentum: float
    noise: float
    reward_direction: float
    loss_direction: float


class Correlations(NamedTuple):
    """Pearson's, over the updates; NaN where one of the two never changes."""

    reward: float  # Δ̃r with Δ log α: §8 says positive
    loss: float  # max(Δ̃ℓ, 0) with −Δ log α: §8 says positive
    after: float  # Δ log α with the Δ̃r of the next update: of which §8 says nothing
    updates: int


def record(seed: int, tasks: Sequence[str] = ABLATED) -> list[Update]:
    """Train each with the loss law, from one rate."""
    with in_one_thread():
        return [update for name in tasks for update in _of(name, seed)]


def _of(name: str, seed: int) -> Iterable[Update]:
    cell = Cell(TASKS[name], METHODS["loss"], RATE, seed)
    problem = cell.task.start(cell.seed)
    stepper = cell.stepper(problem.objective.parameters())
    train(problem, stepper, range(cell.task.steps))
    trace = stepper.optimizer.trace()
    columns = [trace[field.name].tolist() for field in fields(Update)[1:]]
    for step, *rest in zip(*columns, strict=True):
        yield Update(name, int(step), *rest)


class Points(NamedTuple):
    """Of each update but the first: what the scatters show."""

    change: list[float]  # Δ log α
    reward: list[float]  # Δ̃r
    worsening: list[float]  # max(Δ̃ℓ, 0)


def points(updates: Sequence[Update]) -> Points:
    logs = [math.log(update.lr) for update in updates]
    return Points(
        [after - before for before, after in itertools.pairwise(logs)],
        [update.reward_direction for update in updates[1:]],
        [max(update.loss_direction, 0.0) for update in updates[1:]],
    )


def correlations(updates: Sequence[Update]) -> Correlations:
    change, reward, worsening = points(updates)
    cooling = [-x for x in change]
    return Correlations(
        _correlation(reward, change),
        _correlation(worsening, cooling),
        _correlation(change[:-1], reward[1:]),
        len(change),
    )


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    try:
        return statistics.correlation(x, y)
    except statistics.StatisticsError:
        return math.nan


def by_task(updates: Iterable[Update]) -> dict[str, list[Update]]:
    found: dict[str, list[Update]] = {}
    for update in updates:
        found.setdefault(update.task, []).append(update)
    return found


# Their file ---------------------------------------------------------------------------------------


def beside(rows: Path) -> Path:
    """Where the updates are that belong to a file of rows."""
    return rows.with_name(f"{rows.stem}-knobs.csv")


def write(updates: Iterable[Update], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Update)])
        for task, step, *rest in map(astuple, updates):
            writer.writerow([task, step, *(f"{value:.7g}" for value in rest)])


def read(path: Path) -> list[Update]:
    """None where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        lines = csv.reader(stream)
        next(lines)
        return [Update(task, int(step), *map(float, rest)) for task, step, *rest in lines]
