"""A grid of cells: their order, which of them have a row already, and running the others."""

import platform
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import cache
from typing import Literal

import torch
from tqdm import tqdm

from bench.machine import commit, processor
from bench.methods import Method
from bench.run.cells import Cell, Key, Outcome
from bench.run.fingerprint import fingerprint
from bench.run.processes import Result, in_processes
from bench.run.rows import Row, Rows, newest
from bench.run.side_by_side import side_by_side
from bench.tasks import Task

Engine = Literal["processes", "vmap"]


def plan(
    tasks: Iterable[Task],
    methods: Sequence[Method],
    rates: Sequence[float],
    seeds: Iterable[int],
    factors: Sequence[float] = (),
) -> list[Cell]:
    """The runs, in their order: seed by seed, the longest task first.

    What is interrupted has then whole tables of fewer seeds, and no core is left with a long task.
    """
    longest_first = sorted(tasks, key=lambda task: -task.seconds)
    return [
        Cell(task, method, rate, seed, factor)
        for seed in seeds
        for task in longest_first
        for rate in rates
        for method in methods
        for factor in (1.0, *(factors if method.has_horizon else ()))
    ]


def complete(
    store: Rows, cells: Sequence[Cell], workers: int, engine: Engine = "processes"
) -> list[tuple[Cell, str]]:
    """Run the cells that have no row of the definition in force; add each row as it is made."""
    have = {(row.key, row.fingerprint) for row in store.rows}
    missing = [cell for cell in cells if _identity(cell) not in have]
    if not missing:
        return []
    failures = []
    revision = commit()
    with _bar(missing) as bar, closing(_results(missing, workers, engine)) as results:
        for done, (cell, result) in enumerate(results, 1):
            if isinstance(result, Outcome):
                store.append(make_row(cell, result, revision, engine))
            else:
                failures.append((cell, result))
            bar.set_postfix_str(f"{done} of {len(missing)} runs", refresh=False)
            bar.update(cell.task.seconds)
    return failures


def _results(cells: Sequence[Cell], workers: int, engine: Engine) -> Generator[Result]:
    return side_by_side(cells) if engine == "vmap" else in_processes(cells, workers)


def current(rows: Sequence[Row], cells: Sequence[Cell]) -> list[Row]:
    wanted = set(map(_identity, cells))
    return newest(row for row in rows if (row.key, row.fingerprint) in wanted)


def make_row(cell: Cell, outcome: Outcome, revision: str, engine: Engine) -> Row:
    measured = outcome.initial, outcome.final, round(outcome.seconds, 3)
    made_by = _fingerprint(cell.task, cell.method), cell.task.steps
    made_on = _processor(cell.task.device), torch.__version__, revision
    return Row(*cell.key, *measured, *made_by, *made_on, 1, platform.python_version(), engine)


def _identity(cell: Cell) -> tuple[Key, str]:
    return cell.key, _fingerprint(cell.task, cell.method)


# There are a few dozen of them, for thousands of cells.
_fingerprint = cache(fingerprint)


@cache
def _processor(device: str) -> str:
    return processor(torch.device(device))


def _bar(cells: Sequence[Cell]) -> tqdm:
    """A bar over the tasks' estimated seconds: one run of a task takes fifty of another's."""
    return tqdm(
        total=sum(cell.task.seconds for cell in cells),
        desc="runs",
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
    )
