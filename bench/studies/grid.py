"""How far off the learning rate may be: every method from many rates, on a set of tasks.

The command line of `bench.lr_robustness` and `bench.alignment_variants`.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.figures import COSINE, IsA, Table, tables
from bench.machine import RESULTS
from bench.methods import METHODS, VARIANTS, Method
from bench.pictures.rates import draw
from bench.requests import Parser, RequestError, chosen, cores, number, runnable, whole
from bench.run.cells import Cell
from bench.run.grid import Engine, complete, current, plan
from bench.run.rows import Row, Rows, RowsError, newest, read, write
from bench.tables import rate_text, report
from bench.tasks import GPTS, LAW_TASKS, QUICK, ROBUSTNESS, Task

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
QUICK_RATES = (1e-4, 1e-3, 1e-2, 1e-1)
SEEDS = (0, 1, 2)
KEPT = "Finished runs are kept, and the same command goes on from there"


@dataclass(frozen=True)
class Study:
    """A grid that has a command of its own: what it is about where the arguments don't say."""

    name: str  # of its files
    module: str  # after python -m
    about: str  # for its --help
    tasks: Mapping[str, Task]
    methods: Mapping[str, Method]  # those there are
    quick: Sequence[str]  # tasks of the quick form
    engine: Engine  # how its cells are run


LR_ROBUSTNESS = Study(
    "lr-robustness",
    "bench.lr_robustness",
    "Train every task with every method from many starting rates, and say how much a wrong rate "
    "costs each. For every seed, rates are chosen on the others. Goes on where an earlier run "
    "stopped.",
    ROBUSTNESS,
    METHODS,
    QUICK,
    "processes",
)
ALIGNMENT = Study(
    "alignment",
    "bench.alignment_variants",
    "The same on the small tasks that the alignment law was made with and on those held out from "
    "it; the cells of each are trained side by side. And on GPTs: --engine processes.",
    LAW_TASKS | GPTS,
    {
        name: METHODS[name]
        for name in (
            *("constant", "cosine", "cooldown", "schedule-free"),
            *("alignment", "alignment-open", "alignment-cosine"),
            *("range-test", "range-test-open", "prodigy"),
        )
    }
    | VARIANTS,
    ("digits",),
    "vmap",
)


def main(study: Study, arguments: Sequence[str]) -> int:
    def run() -> int:
        given = _parser(study).parse_args(arguments)
        if given.report is not None:
            _report_only(given)
            return 0
        return _run(study, given, shlex.join(["python", "-m", study.module, *arguments]))

    return in_a_line(run)


def in_a_line(run: Callable[[], int]) -> int:
    """Run a study's command; what stops it is told in a line, with a status of its own."""
    try:
        return run()
    except (RequestError, RowsError) as error:
        return say(f"{error}", 2)
    except BrokenExecutor as error:
        return say(f"{error} Perhaps memory ran out: try --workers 1. {KEPT}", 1)
    except KeyboardInterrupt:
        return say(f"interrupted. {KEPT}", 130)


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _report_only(given: argparse.Namespace) -> None:
    rows = newest(read(given.report))
    rows = [row for row in rows if not given.tasks or row.task in given.tasks]
    if not rows:
        raise RequestError(
            f"{given.report} holds no rows{' of these tasks' if given.tasks else ''}; give a file "
            "that a run of this command wrote"
        )
    print(report(rows, "", _is_a(given), given.beside), end="")
    if given.picture is not None:
        draw(rows, given.picture)


def _is_a(given: argparse.Namespace) -> IsA | None:
    return frozenset(given.choose_on).__contains__ if given.choose_on else None


def _run(study: Study, given: argparse.Namespace, command: str) -> int:
    cells = requested(study, given)
    with Rows(given.out / "rows.csv") as store:
        if done := len(current(store.rows, cells)):
            print(f"{done} of {len(cells)} runs are done already.", file=sys.stderr)
        failures = []
        if given.choose_on:
            choosing = [cell for cell in cells if cell.seed in given.choose_on]
            failures = complete(store, choosing, given.workers, given.engine, given.together)
            cells = compared(cells, tables(current(store.rows, choosing), _is_a(given)))
        failures += complete(store, cells, given.workers, given.engine, given.together)
        rows = current(store.rows, cells)
    if rows:
        _publish(study, rows, given, command)
    return tell(failures)


def requested(study: Study, given: argparse.Namespace) -> list[Cell]:
    """The cells that the arguments ask for; what cannot run here is named on standard error."""
    if given.quick and given.tasks:
        raise RequestError("--quick chooses the tasks; give it or --tasks, not both")
    if 1 in given.horizon_factor:
        raise RequestError("--horizon-factor: 1 is the right horizon, which is always run")
    if both := set(given.choose_on).intersection(given.seeds):
        raise RequestError(
            f"--choose-on and --seeds both have {min(both)}; nothing may be compared on a seed "
            "that something is chosen on"
        )
    names = list(study.quick) if given.quick else given.tasks
    tasks = runnable("task", chosen("task", study.tasks, names))
    tasks = [longer(task, given.longer) for task in tasks]
    methods = runnable("method", chosen("method", study.methods, given.methods))
    rates = given.rates or (QUICK_RATES if given.quick else RATES)
    asked = (rates, given.seeds, given.horizon_factor, given.choose_on, given.cosine_rates)
    rates, seeds, factors, choose_on, cosine_rates = (list(dict.fromkeys(x)) for x in asked)
    if not choose_on:
        return plan(tasks, methods, rates, seeds, factors)
    others, cosine = [m for m in methods if m.name != COSINE], [METHODS[COSINE]]
    several = len(rates) > 1  # or there is no start to choose
    return [
        *plan(tasks, cosine, cosine_rates, choose_on),
        *plan(tasks, others if several else [], rates, choose_on, factors),
        *plan(tasks, cosine, cosine_rates, seeds),
        *plan(tasks, others, rates, seeds, factors),
    ]


def longer(task: Task, times: int) -> Task:
    """The same task with so many times its steps, under a name of its own."""
    if times == 1:
        return task
    steps, seconds = times * task.steps, times * task.seconds
    return replace(task, name=f"{task.name}-{times}x", steps=steps, seconds=seconds)


def compared(cells: Sequence[Cell], on_a: Sequence[Table]) -> list[Cell]:
    """Without the cosines that seeds A did not choose, but for those that they chose from."""
    best = {table.task: table.reference_rate(table.folds[0]) for table in on_a}
    a = frozenset(seed for table in on_a for seed in table.folds[0].a)
    return [
        cell
        for cell in cells
        if cell.method.name != COSINE or cell.seed in a or cell.rate == best.get(cell.task.name)
    ]


def _publish(study: Study, rows: list[Row], given: argparse.Namespace, command: str) -> None:
    day = today()
    text = report(rows, f"{day}. `{command}`", _is_a(given), given.beside)
    print(f"\n{text}")
    pages = [given.out / "report.md"]
    pictures = [given.out / "picture.png", *filter(None, [given.picture])]
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        stem = given.results / f"{study.name}-{'quick-' if given.quick else ''}{day}"
        write(rows, Path(f"{stem}.csv"))
        pages.append(Path(f"{stem}.md"))
    for page in pages:
        page.write_text(text, encoding="utf-8")
    for picture in pictures:
        draw(rows, picture)
    print("Wrote " + ", ".join(map(str, [given.out / "rows.csv", *pages, *pictures])))


def tell(failures: Sequence[tuple[Cell, str]]) -> int:
    if not failures:
        return 0
    cell, message = failures[0]
    print(message, file=sys.stderr)
    name = " ".join(map(str, cell.key))
    return say(f"{len(failures)} runs failed, the first of them {name}, as above. {KEPT}", 1)


def _parser(study: Study) -> Parser:
    parser = Parser(prog=f"python -m {study.module}", description=study.about, allow_abbrev=False)
    add: Callable[..., Any] = parser.add_argument
    positive = number(1e-12, 1e12)
    out = Path("runs") / study.name
    few = ", ".join(map(rate_text, QUICK_RATES))
    add("--quick", action="store_true", help=f"only {', '.join(study.quick)}, only from {few}")
    add("--tasks", nargs="+", metavar="NAME", help=f"of {', '.join(study.tasks)} (all)")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(study.methods)} (all)")
    add("--rates", nargs="+", type=positive, metavar="RATE")
    add("--seeds", nargs="+", type=whole(0), default=SEEDS, metavar="SEED")
    add(
        "--choose-on",
        nargs="+",
        type=whole(0),
        default=(),
        metavar="SEED",
        help="seeds that choose the cosine's rate, of --cosine-rates, and best and worst starts; "
        "all is then compared on --seeds alone (without: on each, and the others choose)",
    )
    add("--cosine-rates", nargs="+", type=positive, default=RATES, metavar="RATE")
    add(
        "--longer",
        type=whole(1, 1000),
        default=1,
        metavar="TIMES",
        help="the tasks with so many times their steps",
    )
    add("--beside", metavar="METHOD", help="compare all with this method as well, seed by seed")
    add(
        "--horizon-factor",
        nargs="+",
        type=positive,
        default=(),
        metavar="FACTOR",
        help="also tell every method that has a horizon this many times the steps of the run",
    )
    add("--workers", type=whole(1), default=cores(), help="processes (one a core)")
    add(
        "--together",
        type=whole(1, 1000),
        metavar="RUNS",
        help="with vmap, train so many runs of a task side by side, of all methods: it is quicker",
    )
    add("--engine", choices=("processes", "vmap"), default=study.engine, help="how cells are run")
    add("--out", type=Path, default=out, help=f"folder of the rows and the report ({out})")
    add("--save", action="store_true", help="also keep rows and report in bench/results")
    add("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    add("--picture", type=Path, metavar="FILE", help="also draw the picture there")
    add("--report", type=Path, metavar="FILE", help="run nothing: print the report of these rows")
    return parser
