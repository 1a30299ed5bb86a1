"""What torchrun starts: a run that survives a killed rank, and the demo on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ranks import elastic
from bench.studies import demo

ROOT = Path(__file__).parent.parent
SIZES = {"layers": 1, "width": 32, "context": 32, "batch": 4}
LIMIT = 120

pytestmark = pytest.mark.skipif(
    os.environ.get("ADAPTIVERL_EXPECT_WHEEL") == "1",
    reason="bench/ is not part of the wheel, and torchrun would find the source tree's package",
)


def words(**sizes: int) -> list[str]:
    return [w for name, value in sizes.items() for w in (f"--{name.replace('_', '-')}", str(value))]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run from the repository's root; everything is killed after the limit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_run_survives_a_killed_rank_with_the_same_log() -> None:
    done = run(["bash", "bench/ranks/check.sh", *words(steps=24, **SIZES)])
    assert done.returncode == 0, done.stderr
    assert "attempt 1: from step 10 on" in done.stdout
    assert "24 steps, the same losses, rates and noise to the byte" in done.stdout


def test_the_demo_on_two_ranks_is_the_demo(tmp_path: Path) -> None:
    sizes = words(steps=20, heads=2, eval_every=10, eval_batches=2, **SIZES)
    assert demo.main([*sizes, "--out", str(tmp_path / "1")]) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, "-m", "bench.demo", *sizes]
    done = run([*command, "--out", str(tmp_path / "2")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every number is in") == 1, "one rank speaks"
    reports = {n: json.loads((tmp_path / str(n) / "demo.json").read_text()) for n in (1, 2)}
    assert reports[2]["settings"]["ranks"] == 2
    for one, two in zip(reports[1]["runs"], reports[2]["runs"], strict=True):
        assert one["method"] == two["method"]
        # The same batches, divided: only the order of summation differs.
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)


def test_without_torchrun_the_elastic_run_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["elastic"])
    assert elastic.main() == 2
    assert "start it with torchrun" in capsys.readouterr().err
