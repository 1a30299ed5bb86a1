"""Runs test files in Triton's interpreter, in a process of its own, and says what failed.

The interpreter is chosen when triton is imported, so such a file is no `test_*.py`: a test of one
names it to `check`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"


def check(folder: Path, *files: str) -> None:
    """Raise unless all tests of these files ran, and passed with all their parameters."""
    pytest.importorskip(
        "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
    )
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", f"--junitxml={report}", *(str(TESTS / f) for f in files)],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert report.exists(), done.stdout + done.stderr
    failures, ran = [], set()
    for case in ElementTree.parse(report).iter("testcase"):
        ran.add(case.attrib["classname"].split(".")[-1])
        for kind in ("failure", "error", "skipped"):
            failures += [f"{case.attrib['name']}: {f.text}" for f in case.findall(kind)]
    assert not failures, "\n".join(failures)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran == {file.removesuffix(".py") for file in files}, done.stdout
