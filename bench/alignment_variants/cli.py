"""The command line: which tasks and laws, the runs, the tables."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.alignment_variants.report import (
    Board,
    PageError,
    boards,
    overview,
    placed,
    report,
    task_section,
)
from bench.alignment_variants.rows import Row, RowsError, read, write
from bench.alignment_variants.run import run
from bench.alignment_variants.tasks import QUICK, TASKS, Task
from bench.alignment_variants.variants import SCHEDULES, VARIANTS, Variant
from bench.requests import RequestError, chosen, positive, runnable, whole

RATES = (1e-4, 1e-3, 1e-2, 1e-1)
BASELINE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""The baselines are tuned over more rates than the laws are tried from."""
SEEDS = (0, 1, 2)


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for, print it, and write it down where that was asked for too.

    Returns:
        The exit status: 0, or 2 for bad input.
    """
    given = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    try:
        # A page that cannot take the tables is told of before the training, not after it.
        _text(given.out)
        rows = read(given.report) if given.report else _trained(given)
        _publish(rows, given.out)
    except (RequestError, RowsError, PageError) as error:
        print(f"alignment_variants: {error}", file=sys.stderr)
        return 2
    return 0


def _trained(given: argparse.Namespace) -> list[Row]:
    """All rows; each task's tables are printed as soon as they are complete."""
    if given.quick and given.tasks:
        raise RequestError("--quick chooses the task; give it or --tasks, not both")
    tasks = runnable("task", chosen("task", TASKS, [QUICK] if given.quick else given.tasks))
    variants = chosen("variant", VARIANTS, given.variants)
    rates, seeds = dict.fromkeys(given.rates), dict.fromkeys(given.seeds)
    rows: list[Row] = []
    for task in tasks:
        named = [v for v in variants if given.variants or v.is_main or not task.is_long]
        board = list(_rows_of(task, named, [*rates], [*seeds]))
        print(f"{task_section(Board(board))}\n", flush=True)
        rows += board
        if given.rows:
            write(rows, given.rows)
    return rows


def _rows_of(
    task: Task, variants: Sequence[Variant], rates: Sequence[float], seeds: Sequence[int]
) -> Iterator[Row]:
    for name, law in SCHEDULES.items():
        yield from _told(run(task, name, law, BASELINE_RATES, seeds))
    for variant in variants:
        yield from _told(run(task, variant.name, variant.law, rates, seeds))


def _told(rows: list[Row]) -> list[Row]:
    """The rows, after a line on standard error for whoever waits."""
    worst = max(row.held_out if math.isfinite(row.held_out) else math.inf for row in rows)
    print(f"{rows[0].task} {rows[0].law}: worst run {worst:.4g}", file=sys.stderr, flush=True)
    return rows


def _publish(rows: Sequence[Row], page: Path | None) -> None:
    print(overview(boards(rows), lambda board, law: board.worst_over(law, "cosine")))
    if page is not None:
        text = placed(report(rows), _text(page))
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")


def _text(path: Path | None) -> str | None:
    """What a page says now; ``None`` where there is none.

    Raises:
        PageError: It has no place for tables, or cannot be read.
    """
    if path is None or not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        placed("", text)
    except (OSError, UnicodeDecodeError, PageError) as error:
        raise PageError(f"{path}: {error}") from None
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.alignment_variants",
        description="Train small tasks with every variant of the alignment law that was tried.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"only {QUICK}, a minute")
    add("--tasks", nargs="+", metavar="NAME", help=f"of {', '.join(TASKS)} (all)")
    add(
        "--variants",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(VARIANTS)} (all; on the long tasks the main ones)",
    )
    add("--rates", nargs="+", type=positive, default=RATES, metavar="RATE")
    add("--seeds", nargs="+", type=whole(0), default=SEEDS, metavar="SEED")
    add("--out", type=Path, metavar="FILE", help="write the tables between this page's markers")
    add("--rows", type=Path, metavar="FILE", help="also keep every run, as CSV")
    add("--report", type=Path, metavar="FILE", help="run nothing: take these rows")
    return parser
