"""What torchrun starts: a run that survives a killed rank, and the demo on two ranks."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist
from ranks import Crew

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
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    ) as process:
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


def demo_on_a_rank(rank: int, size: int, port: int, words: list[str]) -> tuple[int, str]:
    """The demo as torchrun starts it, which `test_a_run_survives_a_killed_rank` runs in earnest."""
    dist.destroy_process_group()
    variables = {"RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 0}
    started = {"MASTER_ADDR": "localhost"} | {name: str(v) for name, v in variables.items()}
    with mock.patch.dict(os.environ, started), redirect_stdout(io.StringIO()) as said:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*leaves the search", UserWarning)
            return demo.main(words), said.getvalue()


@pytest.mark.filterwarnings("ignore:.*leaves the search:UserWarning")
def test_the_demo_on_two_ranks_is_the_demo(tmp_path: Path, crew: Crew) -> None:
    sizes = words(steps=20, heads=2, eval_every=10, eval_batches=2, **SIZES)
    assert demo.main([*sizes, "--out", str(tmp_path / "1")]) == 0
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    answers = crew.run(2, demo_on_a_rank, port, [*sizes, "--out", str(tmp_path / "2")])
    assert [status for status, _ in answers] == [0, 0]
    assert ["every number is in" in said for _, said in answers] == [True, False], "one speaks"
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
