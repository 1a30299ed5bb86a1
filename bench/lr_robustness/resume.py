"""Which cells have a row already, and running those that have none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from bench.lr_robustness.cells import Cell, Outcome
from bench.lr_robustness.fingerprint import fingerprint
from bench.lr_robustness.rows import Key, Row, Rows, newest
from bench.lr_robustness.runner import Failure, run_all
from bench.machine import commit, processor


def complete(store: Rows, cells: Sequence[Cell], workers: int) -> list[Failure]:
    """Run the cells that have no row of the definition in force; add each row as it is made.

    Args:
        store: Where rows come from and go to.
        cells: Everything that is asked for.
        workers: As of `run_all`.

    Returns:
        The cells that failed.
    """
    have = set(map(_identity_of_row, store.rows))
    missing = [cell for cell in cells if _identity(cell) not in have]
    if not missing:
        return []
    revision = commit()
    return run_all(
        missing, workers, lambda cell, outcome: store.append(make_row(cell, outcome, revision))
    )


def current(rows: Sequence[Row], cells: Sequence[Cell]) -> list[Row]:
    """The rows of these cells, of the definitions in force."""
    wanted = set(map(_identity, cells))
    return newest(row for row in rows if _identity_of_row(row) in wanted)


def stale(rows: Sequence[Row], cells: Sequence[Cell]) -> int:
    """How many rows are of these cells by name, but of another definition."""
    in_force = dict(map(_identity, cells))
    return sum(in_force.get(row.key, row.fingerprint) != row.fingerprint for row in rows)


def key(cell: Cell) -> Key:
    """As of `Row.key`."""
    return cell.task.name, cell.method.name, cell.factor, cell.rate, cell.seed


def make_row(cell: Cell, outcome: Outcome, revision: str) -> Row:
    """A finished cell as it is kept; ``revision`` is the project's commit."""
    name, method, factor, rate, seed = key(cell)
    return Row(
        task=name,
        method=method,
        factor=factor,
        rate=rate,
        seed=seed,
        initial=outcome.initial,
        final=outcome.final,
        seconds=round(outcome.seconds, 3),
        fingerprint=_fingerprint(cell.task, cell.method),
        steps=cell.task.steps,
        device=_processor(cell.task.device),
        torch=torch.__version__,
        commit=revision,
    )


def _identity(cell: Cell) -> tuple[Key, str]:
    return key(cell), _fingerprint(cell.task, cell.method)


def _identity_of_row(row: Row) -> tuple[Key, str]:
    return row.key, row.fingerprint


# There are a few dozen of them, for thousands of cells.
_fingerprint = cache(fingerprint)


@cache
def _processor(device: str) -> str:
    return processor(torch.device(device))
