"""bench/gpu.sh, as far as it goes without a GPU: plan, parts, measurements, report, exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.speed import build, card, figures, gpu, shapes
from bench.speed.checks import run as run_checks
from bench.speed.figures import NO_WAIT, SAME_BITS, Results, fake_results
from bench.speed.names import ALIGNMENT, ON_A_CARD, PLAIN
from bench.speed.parts import Parts
from bench.speed.shapes import CARD_WORKLOADS, Workload

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
NOTHING = Results([], None, {}, {})


# The command


@pytest.mark.source_tree
@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--check"], 0, ["Everything that needs no GPU works", "## Figures to reach"], []),
        pytest.param([], 2, [], ["no CUDA device", "--check"], marks=NO_GPU),
        (["--minutes", "0"], 2, [], ["--minutes must be above 0, got 0"]),
        (["--nothing"], 2, [], ["unrecognized arguments: --nothing"]),
    ],
)
def test_the_command_ends_as_it_says(
    arguments: list[str], status: int, out: list[str], err: list[str]
) -> None:
    done = subprocess.run(
        [str(ROOT / "bench" / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert all(text in done.stdout for text in out)
    assert all(text in done.stderr for text in err)
    assert bool(done.stdout) == bool(out)
    if arguments == ["--check"]:
        assert all(str(workload) in done.stdout for workload in CARD_WORKLOADS)


@pytest.mark.parametrize("missing", ["torch", "triton", "nvcc"])
def test_what_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = gpu.importlib.util.find_spec
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        gpu.importlib.util,
        "find_spec",
        lambda name: None if name == missing else find_spec(name) or object(),
    )
    monkeypatch.setattr(gpu, "find_tool", lambda name: None if name == missing else name)
    with pytest.raises(gpu.Unfit, match=missing):
        gpu.check_machine()


def test_the_command_imports_nothing_that_is_not_built_yet() -> None:
    program = "import sys, bench.speed.gpu; assert not {'adaptiverl', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


# The plan, and what it measures


def test_the_plan_is_what_was_asked_for() -> None:
    assert [w.shapes for w in CARD_WORKLOADS[:4]] == ["gpt2-small", "1M-in-1000", "1B", "1B-in-1"]
    assert [w.dtype for w in CARD_WORKLOADS] == ["float32"] * 4 + ["bfloat16"] * 4
    assert max(w.gibibytes for w in CARD_WORKLOADS) < 70


def test_bytes_that_a_step_moves_by_hand() -> None:
    half, whole = Workload("1B-in-1", "bfloat16"), Workload("1B-in-1")
    # Parameter read and written, gradient, two moments read and written; again the gradient.
    assert figures.bytes_moved(whole, figures.FUSED) == 28 * 10**9
    assert figures.bytes_moved(whole, PLAIN) == 28 * 10**9
    assert figures.bytes_moved(whole, figures.ALL) == 32 * 10**9
    assert figures.bytes_moved(half, figures.FUSED) == 14 * 10**9
    assert figures.bytes_moved(half, figures.SHORT) == 14 * 10**9
    assert figures.bytes_moved(whole, figures.SHORT) == 20 * 10**9
    assert figures.bytes_moved(half, figures.NOISE) == 24 * 10**9
    assert figures.bytes_moved(whole, figures.STOCK) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_workload_is_measured_whatever_the_device(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", [(40, 5), (7,), (3, 2)])
    rows = card.rows_of(Workload("tiny", dtype), CPU, rounds=2)
    assert [row["contender"] for row in rows] == list(ON_A_CARD)
    for row in rows:
        assert len(row["seconds"]) == len(row["host_seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["launches"] is None
    assert "with noise and clipping" in card.describe({"rows": rows})
    json.dumps(rows)
    assert card.copy_bandwidth(CPU, 2**16) > 1e6


def test_what_the_profiler_saw_is_summed_up() -> None:
    runs = [
        ("void adaptiverl::(anonymous namespace)::advance_kernel(State*)", 4.0),
        ("Memcpy HtoD (Pinned -> Device)", 1.0),
        ("Optimizer.step#AdaptiveAdamW.step", 100.0),
        ("sum_squares_kernel", 40.0),
        ("adamw_step_kernel", 150.0),
    ]
    whole = [("void adaptiverl::(anonymous namespace)::observe_kernel(Inbox*)", 6.0), *runs]
    assert card.summary(runs, whole) == {"launches": 3, "controller_share": 10 / 200}


# The checks and the processes


class Skipped(Exception):
    pass


def test_checks_run_without_pytest_whatever_the_others_do() -> None:
    def passes() -> None:
        pass

    def fails() -> None:
        raise AssertionError("1 is not 2")

    def skips() -> None:
        raise Skipped("no memory")

    outcomes: list[Any] = []
    checks = {"a": passes, "b": fails, "c": skips, "d": passes}
    run_checks(checks, Skipped, time.monotonic() + 60, outcomes.append)
    assert [o["outcome"] for o in outcomes] == ["passed", "failed", "skipped", "passed"]
    assert "1 is not 2" in outcomes[1]["message"]
    assert outcomes[2]["message"] == "no memory"
    late: list[Any] = []
    run_checks(checks, Skipped, time.monotonic() - 1, late.append)
    assert [o["outcome"] for o in late] == ["left out"] * 4


def test_the_parts_need_neither_pytest_nor_hypothesis(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import gpu_checks, torch, bench.speed.card\n"
        "gpu_checks.Where.device = torch.device('cpu')\n"
        "name = 'the_controller_is_the_law'\n"
        "gpu_checks.CHECKS = {name: gpu_checks.CHECKS[name]}\n"
        "runpy.run_module('bench.speed.checks', run_name='__main__')\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out.jsonl")],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT / "bench",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (outcome,) = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert (outcome["name"], outcome["outcome"]) == ("the_controller_is_the_law", "passed")


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)}, tmp_path / "out")


def test_what_a_process_wrote_before_it_died_is_kept(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(
        "import sys\nprint('{\"rows\": [1]}', file=open(sys.argv[1], 'w'), flush=True)\nsys.exit(3)"
    )
    assert parts.run("part", 30) == [{"rows": [1]}]
    assert parts.problems == ["part ended with 3"]
    assert parts.run("part", -1) == []
    assert parts.problems[1:] == ["part was not run: the time was up"]


@pytest.mark.parametrize(
    ("tool", "clean"),
    [
        ("memcheck", "ERROR SUMMARY: 0 errors"),
        ("racecheck", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
    ],
)
def test_a_sanitizers_verdict(parts: Parts, tool: str, clean: str) -> None:
    assert parts.verdict(tool, 0, f"stepped\n========= {clean}\n") == "no errors"
    assert "could not check" in parts.verdict(tool, 1, "Device not supported")
    assert "could not check" in parts.verdict(tool, 0, clean), "nothing was stepped"
    assert not parts.problems
    assert parts.verdict(tool, 9, "Invalid __global__ write") == "errors"
    assert len(parts.problems) == 1
    assert f"{tool} found errors" in parts.problems[0]


def test_parts_are_put_together() -> None:
    rows = list(fake_results().rows)
    measured: list[dict[str, Any]] = [
        {"copy_bandwidth": 3e12},
        {"rows": rows[:2]},
        {"left_out": {"x": "the time was up"}},
        {"rows": rows[2:]},
        {"extra": {"gpt2-small, float32": {"bytes": 5, "chunks": 7}}},
        {"left_out": {"y": "too large"}},
    ]
    results = gpu.gather(measured, [{"name": "a", "outcome": "failed"}])
    assert results.rows == rows
    assert results.copy_bandwidth == 3e12
    assert results.extra["gpt2-small, float32"]["bytes"] == 5
    assert results.checks == {"a": "failed"}
    assert gpu.merged(measured, "left_out") == {"x": "the time was up", "y": "too large"}


# The figures and the report


def met(results: Results) -> dict[str, bool | None]:
    return {figure.name: figure.met for figure in figures.figures(results)}


def test_every_figure_is_there_and_judged() -> None:
    lines = met(fake_results())
    assert len(lines) == 24
    assert (
        lines.items()
        >= {
            "plain, against torch fused: gpt2-small, float32": True,  # 10 / 6 ≥ 1
            "noise + clip, against the stock composition: 1B, float32": True,  # 7 / 2 ≥ 1.7
            # 6 / 10 > 0.3
            "1,000 small tensors, host time over torch fused's: 1M-in-1000, float32": False,
            "plain, of copy bandwidth: gpt2-small, float32": False,
            f"controller, of the step's time: {ALIGNMENT}, gpt2-small, float32": True,
            "launches per step, any number of tensors": True,
            "host synchronisations per step": True,
            "extra memory beyond AdamW's states: gpt2-small, float32": True,
            "extra memory beyond AdamW's states: 1B, float32": None,
            "two runs, same seed": True,
        }.items()
    )


def test_nothing_measured_is_nothing_met() -> None:
    for figure in figures.figures(NOTHING):
        assert (figure.met, figure.measured) == (None, "not measured"), figure


@pytest.mark.parametrize(("outcome", "judged"), [("failed", False), ("skipped", None)])
def test_a_failed_check_is_a_missed_figure(outcome: str, judged: bool | None) -> None:
    checks = dict.fromkeys(NO_WAIT, "passed") | {NO_WAIT[1]: outcome}
    assert met(replace(NOTHING, checks=checks))["host synchronisations per step"] is judged


def test_the_checks_that_figures_name_exist() -> None:
    from gpu_checks import CHECKS

    assert {*NO_WAIT, *SAME_BITS} <= set(CHECKS)


def test_the_report_holds_everything(tmp_path: Path) -> None:
    about = {
        "card": "Some Card 80GB",
        "date": "2026-01-02",
        "torch": "2.11.0",
        "commit": "abc",
        "left_out": {"1B-in-1, float32": "needs 33 GiB, 10 are free"},
        "sanitizer": {"memcheck": "no errors"},
    }
    checks = [
        {"name": "a_check", "outcome": "passed", "seconds": 1.0, "message": ""},
        {"name": "b_check", "outcome": "failed", "seconds": 2.0, "message": "Trace\nError: a | b"},
    ]
    paths = gpu.save_report(fake_results(), about, checks, tmp_path)
    stem = "some-card-80gb-2026-01-02"
    assert [path.name for path in paths] == [f"{stem}.json", f"{stem}.md"]
    text = paths[1].read_text(encoding="utf-8")
    assert "needs 33 GiB, 10 are free" in text
    assert "| b check | failed | 2.0 s | Error: a \\| b |" in text
    assert "torch 2.11.0, commit abc" in text
    assert "| memcheck on a small case | no errors |" in text
    assert all(f"| {name} | " in text for name in ON_A_CARD)
    # By hand, of the made-up numbers: 6.12 ms beside fused's 10.2, moving 28 bytes a number.
    line = "| 6.12 ms | 0.60 | 14.2% | 612 µs | 4 | 1.0% |"
    assert f"| {PLAIN} {line}" in text
    data = json.loads(paths[0].read_text(encoding="utf-8"))
    assert data["card"] == "Some Card 80GB"
    assert len(data["rows"]) == len(fake_results().rows)
    assert [f["met"] for f in data["figures"]] == list(met(fake_results()).values())


# The build


def test_the_package_is_laid_out_as_it_is_installed(tmp_path: Path) -> None:
    library = build.stage(tmp_path)
    assert (library / "adaptiverl" / "kernels" / "__init__.py").exists()
    assert (library / "adaptiverl" / "optimizer.py").exists()
    assert not list(library.rglob("*.so"))
    assert (tmp_path / "tree" / "setup.py").exists()
    assert (tmp_path / "tree" / "csrc" / "controller.cu").exists()
    assert not (tmp_path / "tree" / "pyproject.toml").exists()
    first = build.environment(library)["PYTHONPATH"].split(os.pathsep)[0]
    assert first == str(library)


def test_a_build_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no compiler >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(build.sys, "executable", str(python))
    with pytest.raises(build.BuildError, match=r"exit 7(.|\n)*no compiler"):
        build.build(tmp_path / "out")
