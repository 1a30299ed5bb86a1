"""Does it work? The pre-registered study (protocol.md): its command, from cells to files."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.machine import RESULTS, ROOT
from bench.pictures import study as pictures
from bench.requests import Parser, RequestError, chosen, cores, whole
from bench.run.grid import complete, current
from bench.run.rows import Row, Rows, newest, read, write
from bench.studies import diagnostics, study_page
from bench.studies.grid import in_a_line, tell, today
from bench.studies.plan import (
    ALL,
    FIRST_B,
    FULL,
    LARGE,
    QUICK,
    QUICK_A,
    QUICK_B,
    Part,
    cells_of,
    engine_of,
)
from bench.studies.study_report import Study, report

PAGE = ROOT / "docs" / "study.md"


def main(arguments: Sequence[str]) -> int:
    def run() -> int:
        given = _parser().parse_args(arguments)
        if given.report is not None:
            return _report_only(given)
        return _run(given, shlex.join(["python", "-m", "bench.study", *arguments]))

    return in_a_line(run)


def parts_of(given: argparse.Namespace) -> list[Part]:
    """The tasks that the arguments ask for, with their numbers of seeds."""
    usual = {part.task: part for part in (FULL if given.full else QUICK)}
    others = {
        part.task: part if given.full else replace(part, first=(QUICK_A, QUICK_B))
        for part in (*FULL, *LARGE)
    }
    parts = chosen("task", others | usual, given.tasks) if given.tasks else list(usual.values())
    return [
        replace(
            part,
            choose=given.choose or part.choose,
            compare=given.seeds or part.compare,
        )
        for part in parts
    ]


def _run(given: argparse.Namespace, command: str) -> int:
    begin = time.monotonic()
    chosen("method", dict.fromkeys(ALL, ""), given.methods)
    cells = cells_of(parts_of(given), given.methods)
    for task in {cell.task.name: cell.task for cell in cells}.values():
        task.prepare()
    with Rows(given.out / "rows.csv") as store:
        if done := len(current(store.rows, cells)):
            print(f"{done} of {len(cells)} runs are done already.", file=sys.stderr)
        failures = complete(store, cells, given.workers, engine_of)
        rows = current(store.rows, cells)
    if rows:
        minutes = (time.monotonic() - begin) / 60
        about = f"{today()}. `{command}` took {minutes:.0f} minutes on {given.workers} cores"
        about += f", {done} of its runs having been there already." if done else "."
        traces = diagnostics.record(FIRST_B if given.full else QUICK_B)
        study = Study(rows, traces, about)
        written = publish(study, given.out)
        if given.save:
            written += _save(study, given)
        print("Wrote " + ", ".join(map(str, [given.out / "rows.csv", *written])))
    return tell(failures)


def publish(study: Study, out: Path) -> list[Path]:
    """The pictures, the page and the tables, in this folder; prints the tables."""
    out.mkdir(parents=True, exist_ok=True)
    sections = report(study, pictures.draw(study, out))
    text = study_page.markdown(sections)
    print(f"\n{text}")
    paths = [out / "study.html", out / "study.md"]
    for path, content in zip(paths, (study_page.html(sections), text), strict=True):
        path.write_text(content, encoding="utf-8")
    return paths


def _save(study: Study, given: argparse.Namespace) -> list[Path]:
    given.results.mkdir(parents=True, exist_ok=True)
    rows = given.results / f"study-{'' if given.full else 'quick-'}{today()}.csv"
    write(study.rows, rows)
    diagnostics.write(study.traces, diagnostics.beside(rows))
    page: Path = given.page
    page.write_text((given.out / "study.md").read_text(encoding="utf-8"), encoding="utf-8")
    return [rows, diagnostics.beside(rows), page]


def _report_only(given: argparse.Namespace) -> int:
    rows: list[Row] = newest(read(given.report))
    if not rows:
        raise RequestError(f"{given.report} holds no rows; give a file that this command wrote")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"--out {given.out} must be a folder that can be written: {error}"
        ) from None
    traces = diagnostics.read(diagnostics.beside(given.report))
    print("Wrote " + ", ".join(map(str, publish(Study(rows, traces, ""), given.out))))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m bench.study",
        description="Run the study of bench/studies/protocol.md, or its quick form, and report. "
        "Goes on where an earlier run stopped.",
        allow_abbrev=False,
    )
    add: Callable[..., Any] = parser.add_argument
    out = Path("runs") / "study"
    tasks = ", ".join(part.task for part in (*FULL, *LARGE))
    add("--full", action="store_true", help="the whole study: an hour on two cores")
    add("--tasks", nargs="+", metavar="NAME", help=f"only these, of {tasks}")
    add("--methods", nargs="+", metavar="NAME", help=f"only these, of {', '.join(ALL)}")
    add("--choose", type=whole(1, 1000), metavar="N", help="seeds A, which choose (the protocol's)")
    add("--seeds", type=whole(1, 1000), metavar="N", help="seeds B, which are reported")
    add("--workers", type=whole(1), default=cores(), help="processes (one a core)")
    add("--out", type=Path, default=out, help=f"folder of the rows and the report ({out})")
    add("--save", action="store_true", help="also keep rows in bench/results, tables in docs")
    add("--report", type=Path, metavar="FILE", help="run nothing: the report of these rows")
    add("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    add("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    return parser
