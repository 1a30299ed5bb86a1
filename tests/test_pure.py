"""Without the compiled part: a controller in Python, a step in plain torch, the same numbers."""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pure_runs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_twin import LR, MOMENTUM, numbers
from pure_runs import CASES
from streams import Step, alignment_stream, loss_stream, observed, reward_stream
from tolerances import assert_close
from torch import Tensor

from adaptiverl import Control, backends
from adaptiverl.backends import operators, placement, pure
from adaptiverl.law.numbers import packed
from adaptiverl.layout import FIELDS, LAWS, TRACE_COLUMNS

# --- Operators: bit for bit those of C++ --------------------------------------------------------

COMPILED = SimpleNamespace(
    **{name: getattr(torch.ops.adaptiverl, name).default for name in pure.SCHEMAS}
)
PURE = SimpleNamespace(**{name: function for name, (_, function) in pure.SCHEMAS.items()})
CAPACITY = 7
"""Rows of the trace's ring: few, so that it comes round"""


class Machine:
    """A controller's memory, and one kind of operators on it."""

    def __init__(self, operators: Any, control: Control, groups: Tensor, seed: int = 2**63 + 5):
        row = packed(numbers(control))
        self.do, self.by_epoch, self.groups = operators, control.every is None, groups
        self.numbers = torch.tensor(row, dtype=torch.float64)
        self.state = torch.empty(len(FIELDS), dtype=torch.float64)
        self.inbox = torch.zeros(4, dtype=torch.float64)
        self.trace = torch.zeros(1 + CAPACITY, len(TRACE_COLUMNS), dtype=torch.float64)
        self.effective = torch.zeros(len(groups), 2, dtype=torch.float64)
        start = (control.start_lr(LR), MOMENTUM, float(seed & 0xFFFFFFFF), float(seed >> 32))
        self.do.start_(self.state, self.numbers, *start)

    def take(self, step: Step) -> None:
        """One optimizer step, told twice what was observed; of epoch-wise control an update too."""
        if step.loss is not None and not self.by_epoch:
            self.observe(step)
            self.do.observe_numbers_(self.inbox, 0.75 * step.loss, None)
        found_inf = torch.tensor(float(step.skipped))
        self.do.advance_(
            *(self.state, self.numbers, self.inbox, self.trace, self.groups, self.effective),
            *([], found_inf),
        )
        if self.by_epoch and step.loss is not None:
            self.observe(step)
            self.do.update_(self.state, self.numbers, self.inbox, self.trace)
            self.do.read_groups_(self.state, self.groups, self.effective)
        if step.sums is not None:
            rows = torch.tensor([step.sums, (1e-3, 0.25, 1e-9)], dtype=torch.float64)
            self.do.reduce_alignment_(self.state, [rows[:1], rows[1:]])
        if step.loss is not None:
            held_out = [2 * step.loss + 0.02 * float(self.state[1]), 2.0, 3.0, float(step.skipped)]
            self.do.pulse_(self.state, self.numbers, torch.tensor(held_out, dtype=torch.float64))

    def observe(self, step: Step) -> None:
        assert step.loss is not None
        reward = None if step.reward is None else torch.tensor(step.reward, dtype=torch.float64)
        self.do.observe_(self.inbox, torch.tensor(step.loss, dtype=torch.float32), reward)

    def memory(self) -> dict[str, Any]:
        names = ("state", "inbox", "trace", "effective")
        return {name: getattr(self, name).numpy() for name in names}


def assert_same_courses(control: Control, steps: list[Step], groups: Tensor) -> Machine:
    compiled, plain = (Machine(o, control, groups) for o in (COMPILED, PURE))
    for step in steps:
        compiled.take(step)
        plain.take(step)
        for name, expected in compiled.memory().items():
            np.testing.assert_array_equal(plain.memory()[name], expected, err_msg=name)
    return plain


GROUPS = torch.tensor(
    [[1e-3, 0.9, 0.99, 1e-8, 0.0], [0.5, 0.0, 0.9, 1e-6, 0.1]], dtype=torch.float64
)
COURSES = {
    "loss": (Control(every=3, noise_bounds=(0.0, 0.1)), observed(loss_stream(300, 0))),
    "rewards": (
        Control(every=2, reward="given"),
        observed(loss_stream(300, 1), reward_stream(300, 1)),
    ),
    "alignment": (Control.climb(400), alignment_stream(400, 150, 2)),
    "range test": (Control.find_lr(400), alignment_stream(400, 50, 2)),
    "alignment and rewards": (
        Control(law="alignment", every=4, reward="given"),
        alignment_stream(300, 100, 3, rewarded=True),
    ),
    "epochs": (Control(every=None), observed(loss_stream(100, 4))),
    "bandit": (
        Control.bandit([Control(every=2), Control(every=1, gain_lr_loss=0.1)], window=4),
        observed(loss_stream(300, 6)),
    ),
    "bandit, epochs": (
        replace(Control.epochwise(), law="bandit", window=3, reward="given"),
        observed(loss_stream(100, 7), reward_stream(100, 7)),
    ),
    "distilled": (Control.distilled(400), alignment_stream(400, 150, 8)),
    "modulate": (Control(mode="modulate"), observed(loss_stream(100, 5))),
}


@pytest.mark.parametrize("name", COURSES)
def test_a_course_is_the_compiled_one_to_the_bit(name: str) -> None:
    machine = assert_same_courses(*COURSES[name], GROUPS)
    written = machine.trace[0, 0].item()
    assert written > CAPACITY
    assert machine.state[FIELDS.index("updates")] > 0 or COURSES[name][0].rests
    assert not torch.equal(machine.effective, GROUPS[:, :2])


def test_every_law_has_a_course() -> None:
    assert {control.law for control, _ in COURSES.values()} == set(LAWS)


@given(
    losses=st.lists(st.one_of(st.floats(width=32), st.none()), min_size=1, max_size=12),
    lr=st.sampled_from([0.0, 1e-3]),
    every=st.sampled_from([1, 2]),
)
def test_any_losses_do_what_they_do_to_the_compiled_one(
    losses: list[float | None], lr: float, every: int
) -> None:
    groups = torch.tensor([[lr, 0.9, 0.99, 1e-8, 0.0]], dtype=torch.float64)
    steps = [Step(None, loss, skipped=i % 5 == 4) for i, loss in enumerate(losses)]
    assert_same_courses(Control(every=every), steps, groups)


@pytest.mark.parametrize("name", pure.SCHEMAS)
def test_an_operator_takes_what_the_compiled_one_takes(name: str) -> None:
    compiled = str(getattr(torch.ops.adaptiverl, name).default._schema)
    assert compiled == f"adaptiverl::{name}{pure.SCHEMAS[name][0]}"


def test_only_compiled_code_walks_addresses() -> None:
    machine = Machine(PURE, Control(), GROUPS)
    before = machine.state.numpy().tobytes()
    with pytest.raises(RuntimeError, match="nothing that walks addresses"):
        PURE.advance_(
            *(machine.state, machine.numbers, machine.inbox, machine.trace, GROUPS),
            *(machine.effective, [torch.zeros(1, 13, dtype=torch.int64)], None),
        )
    assert machine.state.numpy().tobytes() == before


# --- Optimizers, in a process that has nothing compiled ------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], Any]:
    return {case: pure_runs.whole(*case) for case in CASES}


@pytest.fixture(scope="module")
def plain(
    compiled: dict[tuple[str, str], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pure")
    torch.save(compiled, folder / "given.pt")
    subprocess.run(
        [sys.executable, pure_runs.__file__, folder / "given.pt", folder / "made.pt"],
        env=os.environ | {"ADAPTIVERL_PURE": "1"},
        check=True,
        timeout=300,
    )
    return torch.load(folder / "made.pt", weights_only=True)


def assert_same_end(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """To the table: the controller's numbers by the law's row, the tensors by the step's.

    The alignment law reads sums of what float32 holds, so its numbers go by their row.
    """
    aligned = expected["knobs"]["alignment"] != 0
    for name, value in expected["knobs"].items():
        if not math.isnan(value):
            compare_number(name, actual["knobs"][name], value, aligned)
    for name, column in expected["trace"].items():
        assert torch.equal(actual["trace"][name].isnan(), column.isnan())
        compare_number(name, actual["trace"][name].nan_to_num(), column.nan_to_num(), aligned)
    (actual_memory, actual_values), (memory, values) = actual["state"], expected["state"]
    for a, e in zip(actual_values, values, strict=True):
        assert_close(a, e, "step_float32")
    for i, state in memory["state"].items():
        assert actual_memory["state"][i].keys() == state.keys()
        for name, tensor in state.items():
            assert_close(actual_memory["state"][i][name], tensor, "step_float32")


def compare_number(name: str, actual: Any, expected: Any, aligned: bool) -> None:
    # Cosines, which pass through zero.
    scale = 1.0 if name.startswith("alignment") else None
    assert_close(actual, expected, "statistics" if aligned else "law", scale=scale)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_run_without_the_compiled_part_gives_the_same_numbers(
    case: tuple[str, str], compiled: dict[tuple[str, str], Any], plain: dict[str, Any]
) -> None:
    found, expected = plain["runs"][case], compiled[case]
    assert (found["whole"]["backends"], expected["whole"]["backends"]) == (["reference"], ["cpu"])
    assert_same_end(found["whole"], expected["whole"])
    start = pure_runs.Run(*case)
    assert not torch.allclose(found["whole"]["state"][1][1], start.params[1])
    if case[1] == "loss":
        assert found["whole"]["knobs"]["noise"] > 0  # so that noise was compared


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_checkpoint_goes_on_in_the_other(
    case: tuple[str, str], compiled: dict[tuple[str, str], Any], plain: dict[str, Any]
) -> None:
    theirs, ours = plain["runs"][case], compiled[case]
    assert_same_end(theirs["continued"], ours["whole"] | {"trace": theirs["continued"]["trace"]})
    back = pure_runs.continued(*case, theirs["half"])
    assert_same_end(back, ours["whole"] | {"trace": back["trace"]})


def test_it_is_said_what_is_slower(plain: dict[str, Any]) -> None:
    said = [line for line in plain["log"] if "compiled part" in line]
    assert said == [
        "INFO adaptiverl runs without its compiled part (ADAPTIVERL_PURE=1), so it is slower: the "
        "controller is Python on the CPU, where a GPU waits for every loss, and the step of "
        "tensors on the CPU is plain torch."
    ]
    assert "CPU pass plain torch (ADAPTIVERL_PURE=1)" in plain["describe"]
    assert "CUDA controller on the CPU (" in plain["describe"]


# --- Whether the compiled part is there ----------------------------------------------------------


@pytest.mark.parametrize(("choice", "there"), [("", True), ("0", True), ("1", False)])
def test_the_environment_may_ask_for_less(
    monkeypatch: pytest.MonkeyPatch, choice: str, there: bool
) -> None:
    monkeypatch.setenv("ADAPTIVERL_PURE", choice)
    assert (operators.load_operators() is None) == there


def test_a_wrong_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVERL_PURE", "yes")
    with pytest.raises(ValueError, match="ADAPTIVERL_PURE must be 0 or 1, got 'yes'"):
        operators.load_operators()


def test_a_copy_without_a_compiled_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adaptiverl._C", None)
    assert operators.load_operators() == "nothing was compiled when it was installed"


def test_one_place_loads_it() -> None:
    """Elsewhere it would be loaded where it is not wanted, and register its operators twice."""
    package = Path(operators.__file__).parents[1]
    sources = [p for p in package.rglob("*.py") if re.search(r"adaptiverl\._C\b", p.read_text())]
    assert sources == [Path(operators.__file__)]


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_one_that_does_not_load_says_why(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(name: str) -> Any:
        raise error(f"{name}: undefined symbol: torch_of_tomorrow")

    monkeypatch.setattr(importlib, "import_module", fail)
    reason = operators.load_operators()
    assert reason is not None
    assert f"does not load with torch {torch.__version__}: " in reason
    assert "undefined symbol: torch_of_tomorrow" in reason


@pytest.fixture
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (operators, placement, backends):
        monkeypatch.setattr(module, "WHY_PURE", "a reason")
    caches = (
        operators.say_what_is_slower,
        placement.controller_device,
        placement.cuda_architectures,
    )
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.mark.usefixtures("_nothing_compiled")
@pytest.mark.parametrize(
    ("platform", "source", "said"),
    [
        ("darwin", True, "compiled on Linux only, and this is darwin."),
        ("win32", False, "compiled on Linux only, and this is win32."),
        ("linux", True, "`pip install -e .` there compiles it"),
        ("linux", False, "(Debian, Ubuntu: apt-get install g++ python3-dev) there, install it"),
    ],
)
def test_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    platform: str,
    source: bool,
    said: str,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(operators, "SOURCE", tmp_path)
    if source:
        (tmp_path / "csrc").mkdir()
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        for device in ("cpu", "cpu", "mps"):
            placement.controller_device(torch.device(device))
    (line,) = [r for r in caplog.records if "compiled part (a reason)" in r.getMessage()]
    assert line.levelno == logging.WARNING
    assert said in line.getMessage()
    assert "\n" not in line.getMessage()


@pytest.mark.usefixtures("_nothing_compiled")
def test_what_is_missing_is_described() -> None:
    said = backends.describe()
    assert "CPU pass plain torch (a reason); CUDA controller on the CPU (" in said
    assert "\n" not in said
    resolution = backends.resolve("cpu", torch.float32, torch.float32)
    assert (resolution.backend.name, "a reason" in resolution.reason) == ("reference", True)
