"""bench/gpu.sh, as far as it goes without a GPU: its plan, runner, clock, table and exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.gpu import __main__ as command
from bench.gpu import build as build_module
from bench.gpu import contenders, host, plan
from bench.gpu.__main__ import Runner, Unfit, gather, merged
from bench.gpu.checks import run as run_checks
from bench.gpu.figures import Results, fake_results, figures, median_ratio
from bench.gpu.measure import Stopwatch, copy_bandwidth, describe, measure, summary
from bench.gpu.plan import ALL, CONTENDERS, FUSED, NOISE, OURS, PLAIN, Workload, workloads
from bench.gpu.report import duration, markdown, save, size, slug

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY = Workload("tiny", "float32")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Workload:
    monkeypatch.setitem(plan.SHAPES, "tiny", [(40, 5), (7,), (3, 2)])
    return TINY


def gpu_sh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "bench" / "gpu.sh"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )


# The command


@pytest.mark.source_tree
def test_check_does_all_that_needs_no_gpu() -> None:
    done = gpu_sh("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything that needs no GPU works" in done.stdout
    assert "## Figures to reach" in done.stdout
    for workload in workloads():
        assert str(workload) in done.stdout


@NO_GPU
def test_without_a_gpu_it_ends_at_once_and_says_why() -> None:
    start = time.monotonic()
    done = gpu_sh()
    assert done.returncode == 2
    assert time.monotonic() - start < 30
    assert "no CUDA device" in done.stderr
    assert "--check" in done.stderr
    assert done.stdout == ""


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--minutes", "0"]) == 2
    assert "must be above 0, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.parser().parse_args(["--nothing"])


@pytest.mark.parametrize("missing", ["torch", "triton", "nvcc"])
def test_what_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    find_spec = command.importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util,
        "find_spec",
        lambda name: None if name == missing else find_spec(name) or object(),
    )
    monkeypatch.setattr(command, "_tool", lambda name: None if name == missing else name)
    with pytest.raises(Unfit, match=missing):
        command.check_machine()


# The plan


def test_the_plan_is_what_was_asked_for() -> None:
    elements = {w.shapes: w.elements for w in workloads()}
    assert elements["gpt2-small"] == 124_439_808
    assert 1e9 < elements["1B"] < 1.05e9
    assert elements["1000 of 1000"] == 10**6
    assert elements["one of 10^9"] == 10**9
    assert {w.dtype for w in workloads()} == {"float32", "bfloat16"}
    assert [w.tensors for w in workloads()][:4] == [148, 1000, 292, 1]
    assert max(w.gibibytes for w in workloads()) < 70
    assert set(OURS) < set(CONTENDERS)


def test_the_bytes_are_those_of_the_design(tiny: Workload) -> None:
    """28 per parameter in float32 without noise or clipping, 32 with."""
    assert tiny.bytes_moved(PLAIN) == 28 * tiny.elements == tiny.bytes_moved(FUSED)
    assert tiny.bytes_moved(ALL) == 32 * tiny.elements == tiny.bytes_moved(NOISE)
    assert tiny.bytes_moved("torch foreach") is None
    half = Workload("tiny", "bfloat16")
    assert half.bytes_moved(FUSED) == 14 * half.elements
    assert half.bytes_moved(PLAIN) == 22 * half.elements


# The clock, on the CPU


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_contender_runs_and_is_timed(tiny: Workload, dtype: str) -> None:
    rows = measure(Workload("tiny", dtype), CPU, rounds=2)
    assert [row["contender"] for row in rows] == list(CONTENDERS)
    for row in rows:
        assert len(row["seconds"]) == len(row["host_seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert row["graph_error"] == "not captured"
        assert row["launches"] is None
    assert "ours all" in describe({"rows": rows})
    json.dumps(rows)


def test_contenders_do_the_same_step(tiny: Workload) -> None:
    ends = {}
    for name in (FUSED, "torch foreach", PLAIN):
        memory = contenders.Memory(tiny, CPU)
        stepper = contenders.build(name, memory)
        for _ in range(3):
            memory.restore()
            stepper.step()
        ends[name] = memory.params
    start = contenders.Memory(tiny, CPU).params
    for name in ("torch foreach", PLAIN):
        for p, q, before in zip(ends[name], ends[FUSED], start, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
            assert not torch.equal(p, before)


def test_a_contender_of_the_wrong_noise_stops_the_run(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "noise_of", lambda stepper: 0.5)
    with pytest.raises(RuntimeError, match=r"ended with σ = 0\.5"):
        measure(tiny, CPU, rounds=1)


def test_the_stopwatch_counts_seconds() -> None:
    elapsed, host = Stopwatch(CPU)(lambda: time.sleep(0.02))
    assert 0.02 <= elapsed == host < 0.5
    assert copy_bandwidth(CPU, 2**16) > 1e6


def test_what_the_profiler_saw_is_summed_up() -> None:
    runs = [
        ("void adaptiverl::(anonymous namespace)::advance_kernel(State*)", 4.0),
        ("Memcpy HtoD (Pinned -> Device)", 1.0),
        ("Optimizer.step#AdaptiveAdamW.step", 100.0),
        ("sum_squares_kernel", 40.0),
        ("step_kernel", 150.0),
    ]
    whole = [("void adaptiverl::(anonymous namespace)::observe_kernel(Inbox*)", 6.0), *runs]
    row = summary(["cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync"], runs, whole)
    assert row == {"launches": 3, "controller_share": 10 / 200, "waits": 1}


# The runner of checks


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


def test_checks_need_neither_pytest_nor_hypothesis() -> None:
    program = (
        "import sys\n"
        "sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import gpu_checks, torch\n"
        "gpu_checks.Where.device = torch.device('cpu')\n"
        "gpu_checks.CHECKS['the_controller_is_the_law']()\n"
        "import bench.gpu.checks, bench.gpu.measure\n"
        "print(len(gpu_checks.CHECKS))\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT / "bench",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 18


# Processes


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path, tmp_path / "out")
    made._environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return made


def module(folder: Path, text: str) -> str:
    (folder / "part.py").write_text("import sys, time\nout = open(sys.argv[1], 'w')\n" + text)
    return "part"


def test_what_a_process_wrote_before_it_died_is_kept(runner: Runner, tmp_path: Path) -> None:
    name = module(tmp_path, "print('{\"rows\": [1]}', file=out, flush=True); sys.exit(3)")
    assert runner.lines(name, 30) == [{"rows": [1]}]
    assert runner.problems == ["part ended with 3"]


def test_a_part_without_time_is_not_run(runner: Runner) -> None:
    assert runner.lines("part", -1) == []
    assert runner.problems == ["part was not run: the time was up"]


@pytest.mark.parametrize(
    ("tool", "clean"),
    [
        ("memcheck", "ERROR SUMMARY: 0 errors"),
        ("racecheck", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
    ],
)
def test_a_sanitizers_verdict(runner: Runner, tool: str, clean: str) -> None:
    assert runner._verdict(tool, 0, f"stepped\n========= {clean}\n") == "no errors"
    assert not runner.problems
    assert "could not check" in runner._verdict(tool, 1, "Device not supported")
    assert "could not check" in runner._verdict(tool, 0, clean), "nothing was stepped"
    assert not runner.problems
    assert runner._verdict(tool, 9, "Invalid __global__ write") == "errors"
    assert len(runner.problems) == 1
    assert f"{tool} found errors" in runner.problems[0]


def test_parts_are_put_together() -> None:
    rows = list(fake_results().rows.values())
    parts: list[dict[str, Any]] = [
        {"copy_bandwidth": 3e12},
        {"rows": rows[:2]},
        {"left_out": {"x": "the time was up"}},
        {"rows": rows[2:]},
        {"extra": {"gpt2-small, float32": {"bytes": 5, "chunks": 7}}},
        {"left_out": {"y": "too large"}},
    ]
    results = gather(parts, [])
    assert len(results.rows) == len(rows)
    assert results.copy_bandwidth == 3e12
    assert results.extra["gpt2-small, float32"]["bytes"] == 5
    assert merged(parts, "left_out") == {"x": "the time was up", "y": "too large"}


# Figures and table


def test_every_figure_of_the_table_is_there_and_judged() -> None:
    lines = {figure.name: figure for figure in figures(fake_results())}
    assert len(lines) == 20
    by_kind = {
        "plain, against torch fused: gpt2-small, float32": True,  # 9 / 5 ≥ 1
        "noise + clip, against the stock composition: 1B, float32": True,  # 6 / 2 ≥ 1.7
        "1,000 small tensors, host time over torch fused's: 1000 of 1000, float32": False,  # 5 / 9
        "plain, of copy bandwidth: gpt2-small, float32": False,
        "controller, of the step's time: ours find_lr, gpt2-small, float32": True,
        "launches per step, any number of tensors": True,
        "host synchronisations per step": True,
        "extra memory beyond AdamW's states: gpt2-small, float32": True,
        "extra memory beyond AdamW's states: 1B, float32": None,
        "two runs, same seed": True,
    }
    for name, met in by_kind.items():
        assert lines[name].met is met, lines[name]


def test_nothing_measured_is_nothing_met() -> None:
    for figure in figures(Results([], None, {}, [])):
        assert figure.met is None, figure
        assert figure.measured == "not measured"


def test_a_failed_check_is_a_missed_figure() -> None:
    checks = [{"name": name, "outcome": "passed"} for name in plan.NO_WAIT]
    checks[1]["outcome"] = "failed"
    lines = {f.name: f for f in figures(Results([], None, {}, checks))}
    assert lines["host synchronisations per step"].met is False
    checks[1]["outcome"] = "skipped"
    lines = {f.name: f for f in figures(Results([], None, {}, checks))}
    assert lines["host synchronisations per step"].met is None


def test_the_checks_that_figures_name_exist() -> None:
    from gpu_checks import CHECKS

    assert {*plan.NO_WAIT, *plan.SAME_BITS} <= set(CHECKS)


def test_ratios_are_within_a_round() -> None:
    assert median_ratio([2.0, 40.0, 3.0], [1.0, 10.0, 3.0]) == 2.0


def test_the_report_holds_everything(tmp_path: Path) -> None:
    about = {
        "card": "Some Card 80GB",
        "date": "2026-01-02",
        "torch": "2.11.0",
        "commit": "abc",
        "left_out": {"one of 10^9, float32": "needs 33 GiB, 10 are free"},
        "sanitizer": {"memcheck": "no errors"},
    }
    checks = [
        {"name": "a_check", "outcome": "passed", "seconds": 1.0, "message": ""},
        {"name": "b_check", "outcome": "failed", "seconds": 2.0, "message": "Trace\nError: a | b"},
    ]
    paths = save(fake_results(), about, checks, tmp_path)
    assert [p.name for p in paths] == [
        "some-card-80gb-2026-01-02.json",
        "some-card-80gb-2026-01-02.md",
    ]
    text = paths[1].read_text(encoding="utf-8")
    assert text == markdown(fake_results(), about, checks)
    assert "needs 33 GiB, 10 are free" in text
    assert "| b check | failed | 2.0 s | Error: a \\| b |" in text
    assert "torch 2.11.0, commit abc" in text
    for name in CONTENDERS:
        assert f"| {name} | " in text
    data = json.loads(paths[0].read_text(encoding="utf-8"))
    assert data["card"] == "Some Card 80GB"
    assert len(data["rows"]) == len(fake_results().rows)
    assert [f["met"] for f in data["figures"]] == [f.met for f in figures(fake_results())]


def test_units() -> None:
    assert duration([12e-6, 10e-6, 14e-6]) == "12.0 µs"
    assert duration([0.012]) == "12.000 ms"
    assert (size(None), size(512), size(3 * 2**20)) == ("–", "512 B", "3.00 MiB")
    assert slug("NVIDIA H200 (x1)") == "nvidia-h200-x1"


# The build


def test_the_package_is_laid_out_as_it_is_installed(tmp_path: Path) -> None:
    library = build_module.stage(tmp_path)
    assert (library / "adaptiverl" / "kernels" / "adamw.py").exists()
    assert (library / "adaptiverl" / "optimizer.py").exists()
    assert not list(library.rglob("*.so"))
    assert (tmp_path / "tree" / "setup.py").exists()
    assert (tmp_path / "tree" / "csrc" / "controller.cu").exists()
    assert not (tmp_path / "tree" / "pyproject.toml").exists()
    first = build_module.environment(library)["PYTHONPATH"].split(os.pathsep)[0]
    assert first == str(library)


def test_a_build_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    monkeypatch.setattr(
        build_module.sys, "executable", str(tmp_path / "python")
    )  # ends with an error, as a compiler would
    (tmp_path / "python").write_text("#!/bin/sh\necho no compiler >&2\nexit 7\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(build_module.BuildError, match=r"exit 7(.|\n)*no compiler"):
        build_module.build(tmp_path / "out")


# The host's time


def test_the_hosts_time_is_told_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main(["--tensors", "1", "3"]) == 0
    printed = capsys.readouterr().out
    assert "| microseconds of the host | 1 tensors | 3 tensors |" in printed
    for name in host.parts_of(1, CPU):
        (line,) = (line for line in printed.splitlines() if line.startswith(f"| {name} |"))
        assert all(float(cell) >= 0 for cell in line.split("|")[2:4])
