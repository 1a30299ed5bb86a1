"""The command line: every check before anything is run, then the runs, then the report."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from bench.lr_robustness.cells import Cell
from bench.lr_robustness.methods import METHODS
from bench.lr_robustness.picture import draw
from bench.lr_robustness.plan import plan
from bench.lr_robustness.report import report
from bench.lr_robustness.resume import complete, current, key, stale
from bench.lr_robustness.rows import Row, Rows, RowsError, newest, read, write
from bench.lr_robustness.runner import Failure
from bench.lr_robustness.tasks import QUICK, TASKS
from bench.machine import ROOT
from bench.requests import RequestError, chosen, positive, runnable, whole

OUT = Path("runs/lr-robustness")
RESULTS = ROOT / "bench" / "results"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, then report.

    Returns:
        The exit status. 0: all is there. 1: some runs failed. 2: bad input. 130: interrupted.
        After 1 and 130 the same command goes on where it was.
    """
    given = _parser().parse_args(arguments)
    try:
        if given.report is not None:
            _report_only(given.report, given.picture)
            return 0
        return _run(given, shlex.join(["python", "-m", "bench.lr_robustness", *arguments]))
    except (RequestError, RowsError) as error:
        return _say(f"{error}", 2)
    except BrokenExecutor as error:
        return _say(f"{error} Perhaps memory ran out: try --workers 1. {KEPT}", 1)
    except KeyboardInterrupt:
        return _say(f"interrupted. {KEPT}", 130)


KEPT = "Finished runs are kept, and the same command goes on from there"


def _say(sentence: str, status: int) -> int:
    print(f"lr_robustness: {sentence}", file=sys.stderr)
    return status


def _report_only(path: Path, picture: Path | None) -> None:
    rows = newest(read(path))
    if not rows:
        raise RequestError(f"{path} holds no rows; give a file that a run of this command wrote")
    print(report(rows), end="")
    if picture is not None:
        draw(rows, picture)


def _run(given: argparse.Namespace, command: str) -> int:
    cells = requested(given)
    with Rows(given.out / "rows.csv") as store:
        _tell_what_is_there(store.rows, cells)
        failures = complete(store, cells, given.workers)
        rows = current(store.rows, cells)
    if rows:
        _publish(rows, given, command)
    return _tell(failures)


def _tell_what_is_there(rows: Sequence[Row], cells: Sequence[Cell]) -> None:
    old = stale(rows, cells)
    if old:
        print(
            f"{old} rows are of an earlier definition of their task or method; they stay in the "
            "file and do not count.",
            file=sys.stderr,
        )
    done = len(current(rows, cells))
    if done:
        print(f"{done} of {len(cells)} runs are done already.", file=sys.stderr)


def requested(given: argparse.Namespace) -> list[Cell]:
    """The cells that the arguments ask for; what cannot run here is named on standard error.

    Raises:
        RequestError: Arguments that contradict each other or name what is not there; nothing left.
    """
    if given.quick and given.tasks:
        raise RequestError("--quick chooses the tasks; give it or --tasks, not both")
    names = list(QUICK) if given.quick else given.tasks
    tasks = runnable("task", chosen("task", TASKS, names))
    methods = runnable("method", chosen("method", METHODS, given.methods))
    rates, seeds, factors = (
        list(dict.fromkeys(values)) for values in (given.rates, given.seeds, given.horizon_factor)
    )
    return plan(tasks, methods, rates, seeds, factors)


def _publish(rows: list[Row], given: argparse.Namespace, command: str) -> None:
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    text = report(rows, f"{day}. `{command}`")
    print(f"\n{text}")
    written = [given.out / "report.md", given.out / "picture.png"]
    written[0].write_text(text, encoding="utf-8")
    draw(rows, written[1])
    if given.picture is not None:
        draw(rows, given.picture)
        written.append(given.picture)
    if given.save:
        stem = f"lr-robustness-{'quick-' if given.quick else ''}{day}"
        files = [given.results / f"{stem}{ending}" for ending in (".csv", ".md")]
        given.results.mkdir(parents=True, exist_ok=True)
        write(rows, files[0])
        files[1].write_text(text, encoding="utf-8")
        written += files
    print("Wrote " + ", ".join(map(str, [given.out / "rows.csv", *written])))


def _tell(failures: Sequence[Failure]) -> int:
    if not failures:
        return 0
    first = failures[0]
    print(first.message, file=sys.stderr)
    name = " ".join(map(str, key(first.cell)))
    return _say(f"{len(failures)} runs failed, the first of them {name}, as above. {KEPT}", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lr_robustness",
        description="Train every task with every method from seven starting rates, and say how "
        "much a wrong rate costs each. Goes on where an earlier run stopped.",
        allow_abbrev=False,
    )
    add: Callable[..., Any] = parser.add_argument
    add("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    add("--tasks", nargs="+", metavar="NAME", help=f"of {', '.join(TASKS)} (all)")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)} (all)")
    add("--rates", nargs="+", type=positive, default=RATES, metavar="RATE")
    add("--seeds", nargs="+", type=whole(0), default=SEEDS, metavar="SEED")
    add(
        "--horizon-factor",
        nargs="+",
        type=_wrong_factor,
        default=(),
        metavar="FACTOR",
        help="also tell every method that has a horizon this many times the steps of the run",
    )
    add("--workers", type=whole(1), default=_cores(), help="processes (one a core)")
    add("--out", type=Path, default=OUT, help=f"folder of the rows and the report ({OUT})")
    add("--save", action="store_true", help="also keep rows and report in bench/results")
    add("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    add("--picture", type=Path, metavar="FILE", help="also draw the picture there")
    add("--report", type=Path, metavar="FILE", help="run nothing: print the report of these rows")
    return parser


def _wrong_factor(text: str) -> float:
    value = positive(text)
    if value == 1:
        raise argparse.ArgumentTypeError("1 is the right horizon, which is always run")
    return value


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
