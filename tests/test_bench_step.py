"""The step's comparison: its contenders do what their names say, and its table holds them all."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.step import measure as measure_module
from bench.step.__main__ import main
from bench.step.contenders import CLIP_SHARE, CONTENDERS, FUSED, SIGMA, Contender
from bench.step.machine import slug
from bench.step.measure import Measurement, measure
from bench.step.shapes import MODELS
from bench.step.table import BASELINE_COLUMN, make_rows, markdown
from bench.step.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SHAPES = MODELS["small"].shapes
NOISY = [name for name, contender in CONTENDERS.items() if contender.sigma > 0]
NOISY_STEPS = [name for name in NOISY if name != "the controller alone"]
QUIET = [name for name in CONTENDERS if name not in NOISY]
CLIPPING = [name for name in NOISY_STEPS if "clipping" in name]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return measure("small", 3, CPU)


def run(name: str, steps: int) -> Workspace:
    """A workspace after some steps of one contender alone."""
    workspace = Workspace(SHAPES, CPU)
    stepper = CONTENDERS[name].build(workspace)
    for _ in range(steps):
        workspace.restore_gradients()
        stepper.step()
    return workspace


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def entered_gradient(workspace: Workspace) -> torch.Tensor:
    """The gradient that the first moment saw in the first step, in float64."""
    return flat(workspace.exp_avg).to(torch.float64) / (1 - 0.9)


def test_gpt2_small_has_its_parameters() -> None:
    gpt2 = MODELS["gpt2-small"]
    assert (gpt2.elements, len(gpt2.shapes)) == (124_439_808, 148)


def test_every_kind_of_contender_is_there() -> None:
    names = " | ".join(CONTENDERS)
    for kind in ("fused", "foreach", "single-tensor", "AdaptiveAdamW", "noise", "controller"):
        assert kind in names
    assert "alignment law" in names
    assert len(QUIET) == 5
    assert len(NOISY_STEPS) == 5
    assert len(CLIPPING) == 2


def test_contenders_without_noise_end_in_the_same_parameters() -> None:
    expected = flat(run(FUSED, 5).params)
    start = flat(Workspace(SHAPES, CPU).params)
    assert not torch.equal(expected, start)
    for name in QUIET:
        assert_close(flat(run(name, 5).params), expected, "torch_adamw_float32")


@pytest.mark.parametrize("name", NOISY_STEPS)
def test_noise_has_the_promised_size_and_is_noise(name: str) -> None:
    workspace = run(name, 1)
    pristine = Workspace(SHAPES, CPU)
    clipping = CLIP_SHARE if name in CLIPPING else 1.0
    raw_norm = flat(pristine.gradients).to(torch.float64).norm().item()
    factor = clipping * pristine.gradient_norm / raw_norm if name in CLIPPING else 1.0

    noise = entered_gradient(workspace) - factor * flat(pristine.gradients)
    sizes = [p.numel() for p in pristine.params]
    pieces = zip(noise.split(sizes), pristine.gradients, strict=True)
    xi = torch.cat([piece / (SIGMA * factor * rms(gradient)) for piece, gradient in pieces])

    # Five standard errors of a mean, a variance and a fourth moment of n normal numbers.
    error = 5 / math.sqrt(xi.numel())
    assert xi.mean().item() == pytest.approx(0, abs=error)
    assert xi.square().mean().item() == pytest.approx(1, abs=error * math.sqrt(2))
    assert xi.pow(4).mean().item() == pytest.approx(3, abs=error * math.sqrt(96))


def rms(gradient: torch.Tensor) -> float:
    return gradient.to(torch.float64).square().mean().sqrt().item()


@pytest.mark.parametrize("name", QUIET)
def test_no_noise_means_none(name: str) -> None:
    workspace = run(name, 1)
    expected = flat(Workspace(SHAPES, CPU).gradients)
    assert_close(entered_gradient(workspace), expected, "torch_adamw_float32")


def test_the_controller_alone_touches_no_parameter() -> None:
    worked, fresh = run("the controller alone", 3), Workspace(SHAPES, CPU)
    assert torch.equal(flat(worked.params), flat(fresh.params))
    assert torch.equal(flat(worked.exp_avg), flat(fresh.exp_avg))


def test_losses_never_make_the_default_controller_add_noise() -> None:
    workspace = Workspace([(4,)], CPU)
    stepper = CONTENDERS["AdaptiveAdamW"].build(workspace)
    for _ in range(300):
        stepper.step()
        assert stepper.noise() == 0


def test_gradients_are_restored() -> None:
    workspace = Workspace(SHAPES, CPU)
    before = flat(workspace.gradients)
    for gradient in workspace.gradients:
        gradient.mul_(2)
    workspace.restore_gradients()
    assert torch.equal(flat(workspace.gradients), before)


def test_every_contender_is_timed_in_every_round(measurement: Measurement) -> None:
    assert list(measurement.seconds) == list(CONTENDERS)
    assert {len(seconds) for seconds in measurement.seconds.values()} == {3}
    assert all(s > 0 for seconds in measurement.seconds.values() for s in seconds)


def test_rounds_interleave_the_contenders() -> None:
    order: list[str] = []

    class Logging:
        def __init__(self, name: str) -> None:
            self.name = name

        def step(self) -> None:
            order.append(self.name)

        def noise(self) -> float:
            return 0.0

    steppers = {name: Logging(name) for name in "abcdef"}
    measure_module.time_rounds(Workspace([(4,)], CPU), steppers, 4)
    rounds = [order[i : i + 6] for i in range(0, len(order), 6)]
    assert len(rounds) == 4 + measure_module.WARMUP_ROUNDS
    assert all(sorted(each) == list("abcdef") for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


def test_rows_by_hand(measurement: Measurement) -> None:
    seconds = {name: [2.0, 4.0, 8.0] for name in CONTENDERS}
    seconds[FUSED] = [1.0, 2.0, 8.0]
    seconds["AdaptiveAdamW"] = [0.5, 2.0, 2.0]
    rows = {row["name"]: row for row in make_rows(replace(measurement, seconds=seconds))}

    assert rows[FUSED]["ratio_to_fused"] == 1
    assert rows["torch AdamW, foreach"]["ratio_to_fused"] == 2
    ours = rows["AdaptiveAdamW"]
    assert ours["speedups"] == {FUSED: 2}
    assert ours["ratio_to_fused"] == 0.5
    foreach = rows["torch AdamW, foreach"]
    assert foreach["median_s"] == 4
    assert (foreach["p20_s"], foreach["p80_s"]) == pytest.approx((2.8, 6.4))


def test_table_has_a_line_for_each(measurement: Measurement) -> None:
    text = markdown(make_rows(measurement), "python -m bench.step")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = {c[0]: c for c in ([x.strip() for x in line.split("|")[1:-1]] for line in lines[2:])}

    assert list(table) == list(CONTENDERS)
    assert {len(line.split("|")) for line in lines} == {len(lines[0].split("|"))}
    assert table[FUSED][BASELINE_COLUMN] == "1.00"
    assert table["AdaptiveAdamW with noise"][-1].count("×") == 2
    assert "`python -m bench.step`" in text


def test_saved_files_carry_the_rows_and_what_they_depend_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--parameters", "small", "--rounds", "2", "--device", "cpu"]
    assert main([*arguments, "--save", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out

    (json_path,) = tmp_path.glob("step-small-*.json")
    (markdown_path,) = tmp_path.glob("step-small-*.md")
    assert json_path.stem == markdown_path.stem
    assert markdown_path.read_text(encoding="utf-8") in printed
    rows = json.loads(json_path.read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == list(CONTENDERS)
    for row in rows:
        assert len(row["seconds"]) == row["rounds"] == 2
        assert row["elements"] == MODELS["small"].elements
        assert row["threads"] == 1
        assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", row["commit"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["torch"] == torch.__version__
        assert row["device"]


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    arguments = ["--parameters", "small", "--rounds", "2", "--device", "cpu"]
    main([*arguments, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_noise_that_is_not_drawn_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Contender(CONTENDERS["AdaptiveAdamW"].build, SIGMA)
    monkeypatch.setitem(CONTENDERS, "AdaptiveAdamW", silent)
    with pytest.raises(RuntimeError, match=r"'AdaptiveAdamW' ended with σ = 0.0, expected 0.01"):
        measure("small", 2, CPU)


def test_wrong_arguments_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="parameters must be one of gpt2-small, small, got 'big'"):
        measure("big", 2, CPU)
    with pytest.raises(ValueError, match="rounds must be 2 or more, got 1"):
        measure("small", 1, CPU)
    with pytest.raises(SystemExit):
        main(["--rounds", "1"])
    assert "--rounds" in capsys.readouterr().err


def test_slug() -> None:
    assert slug("AMD EPYC 9B45 (AVX512) 2 threads") == "amd-epyc-9b45-avx512-2-threads"


@pytest.mark.source_tree
def test_pytest_benchmark_shows_the_same_rounds(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the comparison's pytest view needs it")
    saved = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "pytest", "bench/step", "-q", "-p", "no:cacheprovider"]
    options = ["--parameters", "small", "--rounds", "3", "--device", "cpu"]
    done = subprocess.run(
        [*command, *options, f"--benchmark-json={saved}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks = json.loads(saved.read_text(encoding="utf-8"))["benchmarks"]
    assert [b["params"]["name"] for b in benchmarks] == list(CONTENDERS)
    for benchmark in benchmarks:
        stats = benchmark["stats"]
        assert stats["rounds"] == 3
        assert stats["median"] == pytest.approx(benchmark["extra_info"]["median_s"])
