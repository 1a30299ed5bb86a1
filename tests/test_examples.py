"""examples/: each pair runs, before and after, and docs/frameworks.md shows how the two differ."""

from __future__ import annotations

import ast
import csv
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.migration import EXAMPLES, NAMES, differences

PAGE = EXAMPLES.parent / "docs/frameworks.md"
NEEDED = {
    "plain_loop": ("transformers",),
    "hf_trainer": ("transformers", "accelerate"),
    "accelerate_loop": ("transformers", "accelerate", "tensorboard"),
    "lightning_module": ("transformers", "lightning.pytorch"),
}


@pytest.fixture(autouse=True)
def _fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its devices and trackers per process."""
    yield
    if "accelerate" in sys.modules:
        state = importlib.import_module("accelerate.state")
        state.AcceleratorState._reset_state(True)
        state.GradientState._reset_state()


def printed(variables: dict[str, Any], out: str) -> list[dict[str, float]]:
    lines = [ast.literal_eval(line) for line in out.splitlines() if line.startswith("{")]
    return [line for line in lines if "loss" in line]


def log_history(variables: dict[str, Any], out: str) -> list[dict[str, float]]:
    return [entry for entry in variables["trainer"].state.log_history if "loss" in entry]


def csv_log(variables: dict[str, Any], out: str) -> list[dict[str, float]]:
    path = Path(variables["trainer"].logger.log_dir) / "metrics.csv"
    with path.open() as stream:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)]


LOGS: dict[str, Callable[[dict[str, Any], str], list[dict[str, float]]]] = {
    "plain_loop": printed,
    "hf_trainer": log_history,
    "accelerate_loop": printed,
    "lightning_module": csv_log,
}


@pytest.mark.filterwarnings(
    # Lightning's own use of a name in torch that is on its way out.
    "ignore:.isinstance.treespec, LeafSpec.:FutureWarning",
    # Advice about speed, for a few numbers in memory.
    "ignore:.*does not have many workers",
    "ignore:GPU available but not used",
    # torch's, where there is no GPU to pin memory for.
    "ignore:.*pin_memory. argument is set as true but no accelerator is found",
)
@pytest.mark.parametrize("name", NAMES)
def test_both_run_and_differ_by_the_controller(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in NEEDED[name]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as `python examples/x.py` has it
    logs = {}
    for which in ("before", "after"):
        capsys.readouterr()
        variables = runpy.run_path(str(EXAMPLES / f"{name}_{which}.py"), run_name="__main__")
        logs[which] = LOGS[name](variables, capsys.readouterr().out)
    before, after = ([entry["loss"] for entry in logs[w]] for w in ("before", "after"))
    assert len(before) == len(after) == 4
    assert before[-1] < before[0] - 0.5, "it learns"
    # Until the controller first acts, at the tenth step, it is the same run.
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert after[-1] != pytest.approx(before[-1], rel=1e-3)
    knobs = {"lr"} if name == "plain_loop" else {"adaptive/lr", "adaptive/alpha"}
    assert all(knobs <= entry.keys() for entry in logs["after"])


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_how_the_files_differ(name: str) -> None:
    block = f"```diff\n{differences(name)}\n```"
    page = PAGE.read_text("utf-8")
    assert block in page, (
        f"docs/frameworks.md is to show, as `python -m bench.migration` prints:\n{block}"
    )
    for which in ("before", "after"):
        assert f"[{which}](../examples/{name}_{which}.py)" in page
