"""The step's comparison: its contenders do what their names say, and its tables hold them all."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close

from bench import step
from bench.speed import measure, names
from bench.speed.contenders import CLIP_SHARE, CONTENDERS, SIGMA, Contender
from bench.speed.measure import Here
from bench.speed.names import (
    CODED,
    FOREACH,
    FUSED,
    IDLE,
    IN_A_STEP,
    NOISE,
    ON_SMALL_NETS,
    OURS,
    SHORT,
)
from bench.speed.shapes import SHAPES, Workload
from bench.speed.tables import STEP_COLUMNS, Row, joined, median_ratio, with_ratios
from bench.speed.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = Workload("small")
STEPS = [name for name in CONTENDERS if name != IDLE]
NOISY = [name for name in STEPS if CONTENDERS[name].sigma > 0]
QUIET = [name for name in STEPS if name not in NOISY and name not in (SHORT, CODED)]
OPTIONS = ["--parameters", "small", "--rounds", "2", "--device", "cpu"]


def run(name: str, steps: int) -> Workspace:
    """A workspace after some steps of one contender alone."""
    workspace = Workspace(SMALL, CPU)
    stepper = CONTENDERS[name].build(workspace)
    for _ in range(steps):
        workspace.restore_gradients()
        stepper.step()
    return workspace


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def entered_gradient(workspace: Workspace) -> torch.Tensor:
    """The gradient that the first moment saw in the first step, in float64."""
    moments = workspace.moments[torch.float32]
    return flat(first for first, _ in moments).to(torch.float64) / (1 - 0.9)


# What is compared


def test_sets_hold_what_their_names_say() -> None:
    held = {name: (Workload(name).elements, Workload(name).tensors) for name in SHAPES}
    del held["small"]
    assert held == {
        "gpt-10M": (10_342_656, 52),
        "gpt2-small": (124_439_808, 148),
        "1B": (1_017_302_272, 292),
        "1B-in-1": (10**9, 1),
        "9k-in-8": (9_156, 8),
        "1M-in-160": (10**6, 160),
        "1M-in-1000": (10**6, 1000),
    }


def test_contenders_without_noise_end_in_the_same_parameters() -> None:
    expected = flat(run(FUSED, 5).params)
    assert not torch.equal(expected, flat(Workspace(SMALL, CPU).params))
    for name in QUIET:
        if "clipping" not in name and name != names.RAMPING:  # whose rate is hardly above 0
            assert_close(flat(run(name, 5).params), expected, "torch_adamw_float32")


def test_state_in_bfloat16_is_the_gradients_rounded_by_chance() -> None:
    workspace = run(SHORT, 1)
    first = flat(moment for moment, _ in workspace.moments[torch.bfloat16])
    expected = 0.1 * flat(Workspace(SMALL, CPU).gradients)
    assert first.dtype == torch.bfloat16
    assert not torch.equal(first, expected.to(torch.bfloat16))
    assert_close(first.float(), expected, "rounded_bfloat16")
    assert not flat(moment for moment, _ in workspace.moments[torch.float32]).any()


def test_state_in_codes_is_the_optimizers_own() -> None:
    workspace = Workspace(SMALL, CPU)
    stepper = CONTENDERS[CODED].build(workspace)
    optimizer: Any = stepper.optimizer
    before = flat(workspace.params)
    stepper.step()
    kept = [optimizer.state[p]["exp_avg"].numel() for p in workspace.params]
    assert optimizer.memory()["exp_avg"] < 4 * sum(kept)
    assert not torch.equal(flat(workspace.params), before)
    assert not any(flat(pair).any() for lent in workspace.moments.values() for pair in lent)


def rms(gradient: torch.Tensor) -> float:
    return gradient.to(torch.float64).square().mean().sqrt().item()


@pytest.mark.parametrize("name", [*NOISY, *QUIET])
def test_the_gradient_that_enters_is_clipped_and_noisy_as_the_name_says(name: str) -> None:
    pristine = Workspace(SMALL, CPU)
    norm = flat(pristine.gradients).to(torch.float64).norm().item()
    # torch's own clipping adds the 1e-6, and so does ours.
    factor = CLIP_SHARE * pristine.gradient_norm / (norm + 1e-6) if "clipping" in name else 1.0
    entered, expected = entered_gradient(run(name, 1)), factor * flat(pristine.gradients)
    if name in QUIET:
        assert_close(entered, expected, "torch_adamw_float32")
        return
    pieces = (entered - expected).split([p.numel() for p in pristine.params])
    scales = [SIGMA * factor * rms(gradient) for gradient in pristine.gradients]
    xi = torch.cat([piece / scale for piece, scale in zip(pieces, scales, strict=True)])
    # Five standard errors of a mean, a variance and a fourth moment of n normal numbers.
    error = 5 / math.sqrt(xi.numel())
    assert xi.mean().item() == pytest.approx(0, abs=error)
    assert xi.square().mean().item() == pytest.approx(1, abs=error * math.sqrt(2))
    assert xi.pow(4).mean().item() == pytest.approx(3, abs=error * math.sqrt(96))


def test_the_controller_alone_touches_no_parameter() -> None:
    worked, fresh = run(IDLE, 3), Workspace(SMALL, CPU)
    assert torch.equal(flat(worked.params), flat(fresh.params))
    assert not entered_gradient(worked).any()


def test_losses_never_make_the_default_controller_add_noise() -> None:
    stepper = CONTENDERS[OURS].build(Workspace(Workload("9k-in-8"), CPU))
    for _ in range(300):
        stepper.step()
        assert stepper.noise() == 0


# How it is timed


def test_rounds_interleave_the_contenders() -> None:
    order: list[str] = []

    def clock(name: str) -> Callable[[], tuple[float, float]]:
        def call() -> tuple[float, float]:
            order.append(name)
            return 1.0, len(order)

        return call

    times = measure.time_rounds({name: clock(name) for name in "abcdef"}, 4)
    rounds = [order[i : i + 6] for i in range(0, len(order), 6)]
    assert len(rounds) == 4 + measure.WARMUP_ROUNDS
    assert all(sorted(each) == list("abcdef") for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    expected = [(1.0, 6 * r + rounds[r].index("a") + 1) for r in range(measure.WARMUP_ROUNDS, 7)]
    assert times["a"] == expected


def test_of_steps_in_a_row_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Here(Workload("9k-in-8"), [FUSED], CPU, in_a_row=3)
    taken = iter([(9.0, 9.0), (1.0, 1.0), (2.0, 2.0)])
    monkeypatch.setattr(side, "_watch", lambda step: next(taken))
    assert side.time(FUSED) == (2.0, 2.0)


def test_noise_that_is_not_drawn_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENDERS, OURS, Contender(CONTENDERS[OURS].build, SIGMA))
    with pytest.raises(RuntimeError, match=r"'AdaptiveAdamW' ended with σ = 0.0, expected 0.01"):
        measure.measure(SMALL, [Here(SMALL, [OURS], CPU).side()], 2)


# What is shown


def row(name: str, seconds: list[float], of: str = "") -> dict[str, Any]:
    rivals = CONTENDERS[name].rivals
    return {"workload": "w", "of": of, "contender": name, "rivals": rivals, "seconds": seconds}


def test_rows_by_hand() -> None:
    assert median_ratio([2.0, 40.0, 3.0], [1.0, 10.0, 3.0]) == 2.0, "the median of three ratios"
    fused, foreach, ours, theirs, their_fused = with_ratios(
        [
            row(FUSED, [1.0, 2.0, 8.0]),
            row(FOREACH, [2.0, 4.0, 8.0]),
            row(OURS, [0.5, 2.0, 2.0]),
            row(OURS, [1.0, 1.0, 4.0], of="abc"),
            row(FUSED, [4.0, 4.0, 4.0], of="abc"),
        ]
    )
    assert fused["ratio_to_fused"] == 1
    assert foreach["ratio_to_fused"] == 2
    assert foreach["speedups"] == {}
    assert foreach["median_s"] == 4
    assert (foreach["p20_s"], foreach["p80_s"]) == pytest.approx((2.8, 6.4))
    assert ours["ratio_to_fused"] == 0.5
    assert ours["speedups"] == {FUSED: 2}
    # Against another commit: its rows have its own process's fused beside them.
    assert ours["ratio_to_other"] == 0.5
    assert theirs["ratio_to_fused"] == 0.25
    assert theirs["speedups"] == {FUSED: 4}
    assert theirs["ratio_to_other"] is None
    assert their_fused["ratio_to_fused"] == 1


def test_rows_measured_twice_are_joined_round_by_round() -> None:
    """A process that is slower wherever it starts first is as slow as the other once both did."""
    fast, slow = [1.0, 2.0], [4.0, 8.0]

    def rows(ours: list[float], its: list[float]) -> list[Row]:
        return [
            {"of": "", "seconds": ours, "host_seconds": ours},
            {"of": "another", "seconds": its, "host_seconds": its},
        ]

    found = joined(rows(slow, fast), rows(fast, slow))
    assert found == rows([2.0, 4.0], [2.0, 4.0])


def test_saved_files_carry_the_rows_and_what_they_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step.main([*OPTIONS, "--out", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == [], "nothing is written unless asked"
    capsys.readouterr()
    assert step.main([*OPTIONS, "--save", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out

    json_path, markdown_path = sorted(tmp_path.glob("step-small-*"))
    assert json_path.stem == markdown_path.stem
    text = markdown_path.read_text(encoding="utf-8")
    assert text in printed
    assert f"`python -m bench.step {' '.join(OPTIONS)}" in text
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    table = {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines[2:]}
    assert list(table) == list(IN_A_STEP)
    assert {len(cells) for cells in lines} == {len(STEP_COLUMNS)}
    assert table[FUSED][list(STEP_COLUMNS).index("time / fused")] == "1.00"
    assert table[NOISE][-1].count("×") == 2

    rows = json.loads(json_path.read_text(encoding="utf-8"))
    assert [row["contender"] for row in rows] == list(IN_A_STEP)
    for each in rows:
        assert len(each["seconds"]) == each["rounds"] == 2
        assert min(each["seconds"]) > 0
        assert each["elements"] == SMALL.elements
        assert each["threads"] == 1
        assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", each["commit"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", each["date"])
        assert each["torch"] == torch.__version__
        assert each["device"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "big"], r"shapes must be one of gpt2-small, .*, got 'big'"),
        (["--rounds", "1"], "rounds must be 2 or more, got 1"),
        (["--in-a-row", "0"], "--in-a-row must be 1 or more, got 0"),
        (["--against", "/nowhere"], r"--against .* /nowhere/adaptiverl has no compiled operators"),
    ],
)
def test_wrong_arguments_say_so(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step.main([*OPTIONS, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_searches_are_timed_in_the_states_that_their_rows_name() -> None:
    timed = Here(SMALL, names.SEARCHES, CPU)
    for _ in range(3):
        for name in names.SEARCHES:
            timed.time(name)
    ours: dict[str, Any] = {n: s.optimizer for n, s in timed.steppers.items() if n != FUSED}
    held = {name: optimizer.knobs()["held"] for name, optimizer in ours.items()}
    assert held == dict.fromkeys(ours, 0) | dict.fromkeys(
        (names.CLIMBED, names.RAMPED, names.COOLING), 1
    )
    summed = {name for name, one in ours.items() if one._controller._last.aligned}
    assert summed == {names.CLIMBING, names.RAMPING, names.RAMPED}
    assert {optimizer._round._searches for optimizer in ours.values()} == {True, False}
    assert ours[names.RAMPING]._round._searches


@pytest.mark.source_tree
def test_another_checkouts_package_is_timed_in_the_same_rounds(tmp_path: Path) -> None:
    import adaptiverl

    for folder in ("adaptiverl", "kernels"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if not list((ROOT / "adaptiverl").glob("_C*")):
        pytest.skip(f"the package is built elsewhere: {adaptiverl.__file__}")
    rows = step.run(["9k-in-8"], 2, CPU, against=tmp_path)
    assert [row["contender"] for row in rows[::2]] == list(ON_SMALL_NETS)
    assert [row["contender"] for row in rows[1::2]] == list(ON_SMALL_NETS)
    assert {row["of"] for row in rows[::2]} == {""}
    assert {row["of"] for row in rows[1::2]} == {"unknown"}, "no commit: it is no checkout"
    text = step.markdown(rows, "…")
    assert f"| {OURS} @ unknown |" in text
    assert "time / other's" in text


@pytest.mark.source_tree
def test_pytest_benchmark_shows_the_same_rounds(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the comparison's pytest view needs it")
    saved = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "pytest", "bench/speed", "-q", "-p", "no:cacheprovider"]
    # pytest-benchmark measures nothing in a process of pytest-xdist, which is known by these.
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [*command, *OPTIONS, f"--benchmark-json={saved}"],
        cwd=ROOT,
        env={**alone, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks = json.loads(saved.read_text(encoding="utf-8"))["benchmarks"]
    assert [b["params"]["name"] for b in benchmarks] == list(IN_A_STEP)
    for benchmark in benchmarks:
        assert benchmark["stats"]["rounds"] == 2
        assert benchmark["stats"]["median"] == pytest.approx(benchmark["extra_info"]["median_s"])
