"""Runs test files in Triton's interpreter, each in a process of its own, and says what failed.

The interpreter is chosen when triton is imported, so such a file is no `test_*.py`: one names its
tests one by one and looks up here what became of them.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"


def names_in(file: str) -> list[str]:
    """The tests of a file of this folder."""
    return [
        node.name
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def run(report: Path, *arguments: str, path: Path | None = None) -> str:
    """pytest, interpreted; `path` comes first where modules are looked for. What it printed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", f"--junitxml={report}", *arguments],
        cwd=report.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert report.exists(), done.stdout + done.stderr
    return done.stdout


def failures_in(report: Path) -> dict[str, list[str]]:
    """What a report says of each test: failures, none of which may be there; by its bare name."""
    outcomes: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = outcomes.setdefault(case.attrib["name"].split("[")[0], [])
        for kind in ("failure", "error", "skipped"):
            failures += [f"{case.attrib['name']}: {f.text}" for f in case.findall(kind)]
    return outcomes


@cache
def outcomes_of(file: str, folder: Path) -> dict[str, list[str]]:
    """Failures of each test of a file of this folder; a test that did not run is not there."""
    report = folder / f"{file}.xml"
    run(report, str(TESTS / file))
    return failures_in(report)


def check(file: str, name: str, factory: pytest.TempPathFactory) -> None:
    """Raise unless the test ran, and passed with all its parameters."""
    pytest.importorskip(
        "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
    )
    outcomes = outcomes_of(file, factory.getbasetemp())
    assert name in outcomes, "it did not run"
    assert not outcomes[name], "\n".join(outcomes[name])
