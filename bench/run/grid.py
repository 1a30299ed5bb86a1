"""A grid of cells: their order, which of them have a row already, and running the others."""

import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cache
from typing import Any, Literal

import torch
from tqdm import tqdm

from bench.machine import commit, processor
from bench.methods import Method
from bench.run.cells import Cell, Key, Outcome
from bench.run.fingerprint import fingerprint
from bench.run.processes import in_processes
from bench.run.rows import Row, Rows, newest, shortened
from bench.tasks import Task

Engine = Literal["processes", "vmap"]
Engines = Callable[[Cell], Engine]
TOGETHER = 28
"""So many cells are trained side by side at most, if one seed has no more."""


def plan(
    tasks: Iterable[Task],
    methods: Sequence[Method],
    rates: Sequence[float],
    seeds: Iterable[int],
    factors: Sequence[float] = (),
    looks: int = 0,
) -> list[Cell]:
    """The runs, in their order: seed by seed, the longest task first.

    A method of a fixed rate has one run where others have one a rate. What is interrupted has then
    whole tables of fewer seeds, and no core is left with a long task.
    """
    longest_first = sorted(tasks, key=lambda task: -task.seconds)
    return [
        Cell(
            task,
            method,
            rate if method.fixed_rate is None else method.fixed_rate,
            seed,
            factor,
            looks,
        )
        for seed in seeds
        for task in longest_first
        for at, rate in enumerate(rates)
        for method in methods
        if at == 0 or method.fixed_rate is None
        for factor in (1.0, *(factors if method.has_horizon else ()))
    ]


def complete(
    store: Rows,
    cells: Sequence[Cell],
    workers: int,
    engine: Engine | Engines = "processes",
    together: int | None = None,
) -> list[tuple[Cell, str]]:
    """Run the cells that have no row of the definition in force; add each row as it is made.

    Cells that are trained side by side are so in the same company whatever was interrupted: their
    sums round the same way. With `together`, so many of a task are, whatever their methods: it is
    quicker, and how a run rounds then depends on which other methods are asked for.
    """
    engines: Engines = engine if callable(engine) else lambda cell: engine
    have = set(map(_of_row, store.rows))
    missing = {cell.key: cell for cell in cells if _identity(cell) not in have}
    if not missing:
        return []
    failures = []
    revision = commit()
    todo = [
        job for job in jobs(cells, engines, together) if any(cell.key in missing for cell in job)
    ]
    with _bar(todo) as bar, closing(in_processes(todo, workers)) as results:
        for cell, result in results:
            bar.update(cell.task.seconds)
            if cell.key not in missing:
                continue
            del missing[cell.key]
            if isinstance(result, Outcome):
                store.append(make_row(cell, result, revision, engines(cell)))
            else:
                failures.append((cell, result))
            bar.set_postfix_str(f"{len(missing)} runs to go", refresh=False)
    return failures


def jobs(cells: Sequence[Cell], engines: Engines, together: int | None = None) -> list[list[Cell]]:
    """Each cell alone, or with those of its task and method that are trained side by side.

    With `together` with those of its task, so many at most.
    """
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        alone = engines(cell) == "processes"
        kind = (cell.method.name, cell.factor) if together is None else ()
        groups.setdefault(cell.key if alone else (cell.task.name, *kind), []).append(cell)
    most = TOGETHER if together is None else together
    return [job for group in groups.values() for job in _by_seeds(group, most)]


def _by_seeds(cells: Sequence[Cell], most: int) -> list[list[Cell]]:
    """Whole seeds together, so that more seeds make more groups and leave the first ones alone."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    several = max(1, most * len(seeds) // len(cells))
    blocks = [set(seeds[at : at + several]) for at in range(0, len(seeds), several)]
    return [[cell for cell in cells if cell.seed in block] for block in blocks]


def current(rows: Sequence[Row], cells: Sequence[Cell]) -> list[Row]:
    wanted = set(map(_identity, cells))
    return newest(row for row in rows if _of_row(row) in wanted)


def make_row(cell: Cell, outcome: Outcome, revision: str, engine: Engine) -> Row:
    measured = outcome.initial, outcome.final, round(outcome.seconds, 3)
    made_by = _fingerprint(cell.task, cell.method), cell.task.steps
    made_on = _processor(cell.task.device), torch.__version__, revision
    curve = tuple(map(shortened, outcome.curve))
    version = platform.python_version()
    return Row(*cell.key, *measured, *made_by, *made_on, 1, version, engine, curve)


Identity = tuple[Key, str, int]


def _identity(cell: Cell) -> Identity:
    looks = len(cell.stretches) if cell.looks else 0
    return cell.key, _fingerprint(cell.task, cell.method), looks


def _of_row(row: Row) -> Identity:
    return row.key, row.fingerprint, len(row.curve)


# There are a few dozen of them, for thousands of cells.
_fingerprint = cache(fingerprint)


@cache
def _processor(device: str) -> str:
    return processor(torch.device(device))


def _bar(todo: Iterable[Sequence[Cell]]) -> tqdm:
    """A bar over the tasks' estimated seconds: one run of a task takes fifty of another's."""
    return tqdm(
        total=sum(cell.task.seconds for job in todo for cell in job),
        desc="runs",
        mininterval=0.1 if sys.stderr.isatty() else 30.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
    )
