"""The demo: its text loading, its arguments, its measures by hand, and one tiny run of it all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.pictures.demo import draw
from bench.studies.demo import FOUR, follow, main, parse
from bench.studies.demo_report import (
    CONSTANT,
    COSINE,
    FIND_LR,
    LOSS_LAW,
    Report,
    Run,
    as_json,
    measure,
    table,
)
from bench.tasks.gpt import GPT

TINY = (
    "--layers 1 --heads 2 --width 16 --context 16 --batch 4 --steps 160 --eval-every 40 "
    "--eval-batches 2 --device cpu"
).split()
PROSE = "How now, brown cow? The 7 quick foxes jump over 12 lazy dogs. " * 40


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LR", "TEXT", "STEPS", "SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more to handing work over than they gain from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- arguments ------------------------------------------------------------------------------------


BAD_RATES = ("0", "-1e-3", "nan", "inf", "-inf", "fast", "1e-3x", "101")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        *(([f"--lr={lr}"], {}, f"from 1e-12 to 100, got {lr!r}") for lr in BAD_RATES),
        *(([], {"LR": lr}, f"from 1e-12 to 100, got {lr!r}") for lr in BAD_RATES),
        (["--steps", "1"], {}, "--steps: must be a whole number from 2 to 10000000, got '1'"),
        (["--seed", "1.5"], {}, "--seed: must be a whole number from 0"),
        (["--width", "30", "--heads", "4"], {}, "must be a multiple of --heads, got 30 and 4"),
        (["--device", "tpu"], {}, "'tpu'"),
        (["--out", __file__], {}, f"cannot write to --out {__file__}"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(
    arguments: list[str],
    environment: dict[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    assert main([*TINY, "--out", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not out.exists()


def test_arguments_beat_the_environment_which_beats_the_defaults() -> None:
    environment = {"LR": "0.5", "STEPS": "40", "SEED": "", "TEXT": "book.txt"}
    request = parse(["--lr", "0.25", "--device", "cpu"], environment)
    assert (request.lr, request.seed) == (0.25, 0)
    assert (request.task.steps, request.task.path) == (40, "book.txt")
    assert parse(["--device", "cpu"], {}).task.path is None


def test_the_four_differ_in_their_rates_alone() -> None:
    warm_ups = {method.title: method.warm_up_steps(20) for method in FOUR[:2]}
    assert warm_ups == {CONSTANT: 0, COSINE: 2}
    assert {(method.betas, method.weight_decay) for method in FOUR} == {((0.9, 0.99), 0.01)}
    assert [method.title for method in FOUR] == [CONSTANT, COSINE, FIND_LR, LOSS_LAW]


# --- measures, by hand ----------------------------------------------------------------------------


def run_of(losses: list[float], seconds: list[float] | None = None) -> Run:
    return Run("x", [0, 10, 30], losses, step_seconds=seconds or [0.1, 0.1])


def test_measures_by_hand() -> None:
    # Trapezoids 10·(4+2)/2 = 30 and 20·(2+1)/2 = 30 over 30 steps.
    measures = measure(run_of([4.0, 2.0, 1.0], [9.0, 0.1, 0.3]), target=1.9)
    assert measures.final == 1.0
    assert measures.area == pytest.approx(2.0)
    assert measures.steps_to_target == 30
    assert measures.seconds_per_step == 0.3


def test_measures_of_what_is_not_finite_or_never_there() -> None:
    for odd in (math.inf, math.nan):
        measures = measure(run_of([4.0, odd, 1.0]), target=2.0)
        assert math.isnan(measures.area)
        assert measures.steps_to_target == 30
    assert measure(run_of([4.0, 2.0, 2.5]), target=2.0).steps_to_target == 10
    assert measure(run_of([4.0, 2.0, 1.0]), target=0.5).steps_to_target is None
    assert _report([3.0, math.nan, 1.5], [], [], []).target == 1.5
    assert math.isnan(_report([math.inf, math.nan], [], [], []).target)


def test_the_search_ends_at_the_first_row_that_holds_a_rate() -> None:
    run = run_of([4.0, 2.0, 1.0])
    run.trace = {"step": [10.0, 20.0, 30.0], "held": [0.0, 1.0, 1.0]}
    assert run.held_from == 20
    run.trace["held"] = [0.0, 0.0, 0.0]
    assert run.held_from is None


# --- what is shown -----------------------------------------------------------------------------


def test_divergence_is_shown_and_the_files_are_still_made(tmp_path: Path) -> None:
    nan = math.nan
    report = _report([4.0, 3.0, 2.0], [4.0, 3.0, 2.5], [4.0, 5000.0, nan], [4.0, nan, nan])
    cells = [cell.strip() for cell in table(report).splitlines()[-1].split("|")]
    assert cells[1:5] == [LOSS_LAW, "diverged", "diverged", "never"]
    content = json.loads(as_json(report), parse_constant=_refuse)
    assert content["runs"][3]["held_out"] == [4.0, None, None]
    draw(report, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


# --- all of it, small -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One tiny run: its folder, what it printed, its JSON, the inputs that the models were fed."""
    folder = tmp_path_factory.mktemp("demo")
    fed: list[torch.Tensor] = []
    forward = GPT.forward

    def spy(self: GPT, characters: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            fed.append(characters.clone())
        return forward(self, characters, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT, "forward", spy)
        printed = _run_tiny(folder, "--lr", "0.02")
    content = json.loads((folder / "demo.json").read_text("utf-8"), parse_constant=_refuse)
    return {"folder": folder, "printed": printed, "json": content, "fed": fed}


def test_every_file_is_there_and_holds_what_was_printed(finished: dict[str, Any]) -> None:
    folder, printed, content = finished["folder"], finished["printed"], finished["json"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "book.txt",
        "demo.json",
        "demo.png",
    ]
    for name, measures in content["measures"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"| {name} "))
        assert f"{measures['final']:.4f}" in row
        assert f"{measures['area']:.4f}" in row
        assert f"{measures['seconds_per_step']:.4f}" in row


def test_json_numbers_follow_from_its_curves(finished: dict[str, Any]) -> None:
    content = finished["json"]
    assert [run["method"] for run in content["runs"]] == [CONSTANT, COSINE, FIND_LR, LOSS_LAW]
    assert content["constant_rate_best"] == min(content["runs"][0]["held_out"])
    for run in content["runs"]:
        assert run["eval_steps"] == [0, 40, 80, 120, 160]
        assert len(run["train_loss"]) == 160
        assert content["measures"][run["method"]]["final"] == run["held_out"][-1]
        assert run["held_out"][-1] < run["held_out"][0] - 0.1
    for run in content["runs"][2:]:
        assert run["trace"]["step"] == list(range(10, 170, 10))
        assert {"lr", "momentum", "noise", "plateau", "held"} <= set(run["trace"])
    trace = content["runs"][2]["trace"]
    assert trace["held"] == [0] * 4 + [1] * 12, "the ramp may take forty steps"
    assert trace["lr"][4] < 0.2 * trace["lr"][3], "from where its weights went back"


def test_the_four_start_alike_and_see_the_same_batches(finished: dict[str, Any]) -> None:
    fed, runs = finished["fed"], finished["json"]["runs"]
    assert len(fed) == 4 * 160
    for step in range(160):
        one, *others = fed[step::160]
        assert all(torch.equal(one, other) for other in others), step
    assert not torch.equal(fed[0], fed[1])
    assert len({run["held_out"][0] for run in runs}) == 1
    assert len({run["held_out"][-1] for run in runs}) == 4, "methods that do the same thing"


@pytest.mark.parametrize("lr", ["1e-6", "3"])
def test_a_bad_rate_moves_every_line_but_find_lr_s(
    finished: dict[str, Any], lr: str, capsys: pytest.CaptureFixture[str]
) -> None:
    book = str(finished["folder"] / "book.txt")
    request = parse([*TINY, "--text", book, "--lr", lr], {})
    moved = [
        follow(method, request).held_out != before["held_out"]
        for method, before in zip(FOUR, finished["json"]["runs"], strict=True)
    ]
    assert moved == [True, True, False, True]
    shown = capsys.readouterr().err.rsplit(FIND_LR, 1)[1].split(LOSS_LAW)[0]
    assert "α 0.00e+00" in shown, "the rate in effect, annealed, and not what a group holds"


def test_the_seed_decides_the_losses(finished: dict[str, Any], tmp_path: Path) -> None:
    _run_tiny(tmp_path / "again", "--lr", "0.02")
    _run_tiny(tmp_path / "other", "--lr", "0.02", "--seed", "1")
    again, other = (
        json.loads((tmp_path / name / "demo.json").read_text("utf-8"))["runs"]
        for name in ("again", "other")
    )
    for before, same, different in zip(finished["json"]["runs"], again, other, strict=True):
        assert same["held_out"] == before["held_out"]
        assert same["train_loss"] == before["train_loss"]
        assert same["trace"] == before["trace"]
        assert different["train_loss"] != before["train_loss"]


def _run_tiny(folder: Path, *arguments: str) -> str:
    """Run the demo in ``folder`` on a text of its own; return what it wrote to standard output."""
    folder.mkdir(exist_ok=True)
    book = folder / "book.txt"
    book.write_text(PROSE, encoding="utf-8")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = main([*TINY, "--text", str(book), "--out", str(folder), *arguments])
    assert status == 0
    return output.getvalue()


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _report(*curves: list[float]) -> Report:
    """A finished demo with hand-made held-out curves at steps 0, 12 and 24."""
    knobs = {name: [0.5, 0.6] for name in ("lr", "momentum", "noise", "plateau")}
    knobs["held"] = [0.0, 1.0]
    runs = [
        Run(
            method, [0, 12, 24][: len(curve)], curve, curve, [0.1, 0.1], {"step": [10, 20], **knobs}
        )
        for method, curve in zip((CONSTANT, COSINE, FIND_LR, LOSS_LAW), curves, strict=True)
    ]
    return Report(parse([*TINY, "--lr", "0.02"], {}), {"source": "here"}, 1234, runs, 1.0)


@pytest.mark.source_tree
def test_it_needs_no_more_than_its_requirements() -> None:
    """Whatever else requirements.txt installs is not there, where a stranger starts."""
    root = Path(__file__).parent.parent
    lines = (root / "requirements.txt").read_text().splitlines()
    others = {re.split(r"[=\s;#]", line)[0] for line in lines if line[:1].isalnum()}
    names = [n for n, d in importlib.metadata.packages_distributions().items() if others & {*d}]
    assert {"transformers", "lightning", "pytest", "schedulefree"} <= {*names}
    program = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); "
        "from bench.studies.demo import main; main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "--steps" in done.stdout) == (0, True), done.stderr
