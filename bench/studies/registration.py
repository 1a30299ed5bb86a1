"""Was it run as it was written down? The protocol's commit, and what departs from it."""

import subprocess
from collections.abc import Sequence
from functools import cache

from bench.machine import ROOT
from bench.run.rows import Row
from bench.studies.plan import FIRST_A, FULL, cells_of

PROTOCOL = "bench/studies/protocol.md"


def registered() -> str:
    """The last commit that changed the protocol, and when."""
    found = _git("log", "-1", "--format=%h of %cs", "--", PROTOCOL)
    return f"commit {found}" if found else "its commit is unknown here: this is no checkout"


def deviations(rows: Sequence[Row]) -> list[str]:
    """One line each, for the report; a line that says so where there are none."""
    if not any(row.seed >= FIRST_A for row in rows):
        return ["These are the quick form's rows, of other seeds and fewer: for a look only."]
    found = [*_early(rows), *_left_out(rows)]
    return found or ["None: every run of the protocol is here, from commits after it."]


def _early(rows: Sequence[Row]) -> list[str]:
    protocol = _git("log", "-1", "--format=%H", "--", PROTOCOL)
    if not protocol:
        return ["- No checkout: whether the rows are from commits after the protocol is not known."]
    lines = []
    for commit in sorted({row.commit for row in rows}):
        count = sum(row.commit == commit for row in rows)
        name = commit.removesuffix("+")
        if not is_ancestor(protocol, name):
            lines.append(
                f"- {count} rows are of commit {commit}, not known to follow the protocol."
            )
        elif name != commit:
            lines.append(f"- {count} rows are of commit {name} with files that differed from it.")
    return lines


@cache
def is_ancestor(first: str, second: str) -> bool:
    return _git("merge-base", "--is-ancestor", first, second) is not None


def _left_out(rows: Sequence[Row]) -> list[str]:
    have = {row.key for row in rows}
    missing: dict[str, int] = {}
    for cell in cells_of(FULL):
        if cell.key not in have:
            missing[cell.task.name] = missing.get(cell.task.name, 0) + 1
    return [
        f"- {name}: {count} of the protocol's runs are missing." for name, count in missing.items()
    ]


def _git(*arguments: str) -> str | None:
    """What it prints; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
