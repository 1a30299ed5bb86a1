"""The demo: its text loading, its arguments, its measures by hand, and one tiny run of it all."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from bench.demo import text as text_module
from bench.demo.cli import command, main, parse
from bench.demo.measure import best, mean_under_curve, measure, steps_to_reach
from bench.demo.methods import Adaptive, ConstantAdamW, CosineAdamW, cosine_factor
from bench.demo.model import GPT, GPTConfig
from bench.demo.page import page
from bench.demo.picture import draw
from bench.demo.report import Report, as_json, make_report, summary, table
from bench.demo.text import REPLACEMENT, DemoError, encode, load_text
from bench.demo.train import Batches, Run, Settings, draw_starts

CONTEXT = 16
TINY = (
    "--layers 1 --heads 2 --width 16 --context 16 --batch 4 --steps 24 --eval-every 5 "
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


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"To be, or not to be", "is too short: 19 characters.* at least 640"),
        (b"a" * 5000, "repeats one character"),
        (b"readable at first\0" * 500, "zero byte at offset 17"),
        (b"caf\xe9 " * 500, r"byte 0xe9 at offset 3 is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "is not text"),
    ],
)
def test_unusable_text_is_named_with_the_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(DemoError, match=message) as caught:
        load_text(str(path), CONTEXT)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_text_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="does not exist"):
        load_text(str(tmp_path / "nowhere.txt"), CONTEXT)
    with pytest.raises(DemoError, match="is not a file"):
        load_text(str(tmp_path), CONTEXT)


def test_standard_library_is_text_enough_and_the_same_each_time() -> None:
    first, second = load_text(None, 128), load_text(None, 128)
    assert first.sha256 == second.sha256
    assert torch.equal(first.train, second.train)
    assert 1_000_000 < len(first.train) + len(first.held_out) <= text_module.MAX_BYTES
    assert "standard library" in first.source


def test_encoding_is_reversible_and_the_tail_is_held_out() -> None:
    text = encode("here", PROSE)
    characters = torch.cat([text.train, text.held_out]).tolist()
    assert "".join(text.vocabulary[index] for index in characters) == PROSE
    assert len(text.held_out) == len(PROSE) // 10
    assert text.replaced == 0


def test_rare_characters_share_one_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_VOCABULARY", 3)
    # b and a are the commonest; c, d and the emoji are the rest.
    text = encode("here", "bbbbbaaaacc" + "d\U0001f600")
    characters = torch.cat([text.train, text.held_out]).tolist()
    assert "".join(text.vocabulary[i] for i in characters) == "bbbbbaaaa" + 4 * REPLACEMENT
    assert text.replaced == 4
    assert len(text.vocabulary) == 3


def test_the_cap_may_fall_inside_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "MAX_BYTES", 2001)
    path = tmp_path / "greek.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "αβγδ".encode() * 1000)
    text = load_text(str(path), CONTEXT)
    # 2001 bytes are the mark's 3 and 999 letters of 2 bytes; one more starts in a longer file.
    assert len(text.train) + len(text.held_out) == 999
    assert text.vocabulary == "αβγδ"


def test_a_cap_inside_a_character_loses_only_that_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "MAX_BYTES", 2001)
    path = tmp_path / "greek.txt"
    path.write_bytes("αβγδ".encode() * 1000)
    text = load_text(str(path), CONTEXT)
    assert len(text.train) + len(text.held_out) == 1000


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1e-3", "nan", "inf", "-inf", "fast", "1e-3x", "101"])
@pytest.mark.parametrize("through", ["argument", "environment"])
def test_bad_learning_rate_is_one_line_and_trains_nothing(
    value: str,
    through: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    arguments = [*TINY, "--out", str(out)]
    if through == "argument":
        arguments.append(f"--lr={value}")
    else:
        monkeypatch.setenv("LR", value)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"got {value!r}" in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1"], "STEPS must be a whole number from 2 .*got '1'"),
        (["--steps", "2.5"], "STEPS must be a whole number"),
        (["--seed", "-1"], "SEED must be a whole number from 0"),
        (["--seed", "one"], "SEED must be a whole number"),
        (["--width", "30"], "must be a multiple of --heads, got 30 and 4"),
        (["--device", "tpu"], "must be auto, cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_arguments_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(DemoError, match=message):
        parse(["--device", "cpu", *arguments], {})


def test_unwritable_folder_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert main([*TINY, "--out", str(tmp_path / "taken")]) == 2
    assert "cannot write to --out" in capsys.readouterr().err


def test_arguments_beat_the_environment_which_beats_the_defaults() -> None:
    environment = {"LR": "0.5", "STEPS": "40", "SEED": "", "TEXT": "book.txt"}
    request = parse(["--lr", "0.25", "--device", "cpu"], environment)
    assert request.settings.lr == 0.25
    assert request.settings.steps == 40
    assert request.settings.seed == 0
    assert request.text == "book.txt"
    assert parse(["--device", "cpu"], {}).text is None


def test_the_printed_command_means_the_same_request() -> None:
    request = parse([*TINY, "--text", "my book.txt", "--lr", "0.003", "--out", "a b"], {})
    words = shlex.split(command(request))
    assert words[:3] == ["python", "-m", "bench.demo"]
    assert parse(words[3:], {"LR": "1", "SEED": "9"}) == request


# --- model, data, schedule ------------------------------------------------------------------------


def test_the_model_cannot_see_what_follows() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=7, context=8, layers=2, heads=2, width=8))
    characters = torch.tensor([[1, 2, 3, 4, 5, 6]])
    # Only the third position counts: cross_entropy leaves out targets of -100.
    targets = torch.tensor([[-100, -100, 4, -100, -100, -100]])
    loss = model(characters, targets)
    later, earlier = characters.clone(), characters.clone()
    later[0, 3:] = 0
    earlier[0, 0] = 0
    torch.testing.assert_close(model(later, targets), loss)
    assert abs(model(earlier, targets) - loss) > 1e-7


def test_gradients_lie_as_their_parameters_do() -> None:
    # torch's fused AdamW on the CPU, the baseline, is wrong where strides differ.
    model = GPT(GPTConfig(vocabulary=7, context=8, layers=1, heads=2, width=8))
    characters = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))
    model(characters, characters).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.stride() == parameter.stride(), name


def test_batches_are_windows_of_the_text_one_apart() -> None:
    settings = _settings(context=3, batch=2, steps=1)
    batches = Batches(torch.arange(10), torch.tensor([[0, 6]]), settings)
    inputs, targets = batches[0]
    assert inputs.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert targets.tolist() == [[1, 2, 3], [7, 8, 9]]


def test_starts_reach_the_last_window_and_no_further() -> None:
    settings = _settings(context=3, batch=50, steps=20)
    starts = draw_starts(10, settings)
    assert starts.min() == 0
    assert starts.max() == 6
    assert not torch.equal(starts, draw_starts(10, replace(settings, seed=1)))


def test_cosine_warms_up_over_a_tenth_and_ends_at_zero() -> None:
    factors = [cosine_factor(done, 20) for done in range(21)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[11] == pytest.approx(0.5)
    assert factors[20] == pytest.approx(0.0, abs=1e-15)
    assert factors[2:] == sorted(factors[2:], reverse=True)


# --- measures, by hand ----------------------------------------------------------------------------


def test_mean_under_curve_by_hand() -> None:
    # Trapezoids 10·(4+2)/2 = 30 and 20·(2+1)/2 = 30 over 30 steps.
    assert mean_under_curve([0, 10, 30], [4.0, 2.0, 1.0]) == pytest.approx(2.0)
    assert math.isnan(mean_under_curve([0, 10, 30], [4.0, math.inf, 1.0]))
    assert math.isnan(mean_under_curve([0, 10, 30], [4.0, math.nan, 1.0]))


def test_steps_to_reach_by_hand() -> None:
    steps, losses = [0, 10, 20, 30], [4.0, 2.0, 2.5, 1.0]
    assert steps_to_reach(steps, losses, 2.0) == 10
    assert steps_to_reach(steps, losses, 1.5) == 30
    assert steps_to_reach(steps, losses, 0.5) is None
    assert steps_to_reach(steps, [4.0, math.nan, math.nan, 1.0], 2.0) == 30


def test_best_skips_what_is_not_finite() -> None:
    assert best([3.0, math.nan, 1.5, math.inf, 2.0]) == 1.5
    assert math.isnan(best([math.nan, math.inf]))


def test_measures_by_hand() -> None:
    run = Run("x", eval_steps=[0, 10, 30], held_out=[4.0, 2.0, 1.0], step_seconds=[9.0, 0.1, 0.3])
    measures = measure(run, target=1.9)
    assert measures.final == 1.0
    assert measures.area == pytest.approx(2.0)
    assert measures.steps_to_target == 30
    assert measures.seconds_per_step == 0.3


# --- sentences ------------------------------------------------------------------------------------


def test_a_loss_is_said_as_plainly_as_a_win() -> None:
    curves = ([4.0, 3.0, 2.0], [4.0, 2.5, 1.5], [4.0, 3.5, 2.25])
    said = "\n".join(summary(_report(*curves)))
    assert "Final held-out loss: AdamW warm-up + cosine is lowest with 1.5000" in said
    assert "AdaptiveAdamW is 0.7500 above" in said
    assert "AdaptiveAdamW never" in said
    assert "against AdamW constant it is behind on final loss, area, steps to the target" in said
    assert "ahead" not in said

    curves = ([4.0, 3.0, 2.0], [4.0, 3.0, 2.0], [4.0, 2.0, 1.0])
    said = "\n".join(summary(_report(*curves)))
    assert "Final held-out loss: AdaptiveAdamW is lowest with 1.0000" in said
    assert "it is ahead on final loss, area, steps to the target" in said
    assert "behind" not in said


def test_equal_numbers_are_called_level() -> None:
    said = "\n".join(summary(_report(*[[4.0, 3.0, 2.0]] * 3)))
    assert "it is level on final loss, area, steps to the target" in said
    assert "ahead" not in said
    assert "behind" not in said


def test_divergence_is_shown_and_the_files_are_still_made(tmp_path: Path) -> None:
    nan = math.nan
    report = _report([4.0, 3.0, 2.0], [4.0, 5000.0, nan], [4.0, nan, nan])
    assert table(report).splitlines()[-1].split()[1:4] == ["diverged", "diverged", "never"]
    assert "AdaptiveAdamW diverged" in summary(report)[0]
    content = json.loads(as_json(report), parse_constant=_refuse)
    assert content["runs"][2]["held_out"] == [4.0, None, None]
    draw(report, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_that_only_harms_is_called_that() -> None:
    said = "\n".join(summary(_report([4.0, 5.0, 6.0], [4.0, 4.5, 4.5], [4.0, 3.0, 2.0])))
    assert "The constant rate never came below its start, 4.0000." in said


def test_a_busy_machine_is_told_from_a_slow_optimizer() -> None:
    report = _report(*[[4.0, 3.0, 2.0]] * 3)

    def said(*seconds: float) -> str:
        rows = zip(report.measures, seconds, strict=True)
        measures = [replace(row, seconds_per_step=value) for row, value in rows]
        return summary(replace(report, measures=measures))[3]

    assert said(0.100, 0.101, 0.102) == "Seconds per step: within 2.0% of each other."
    assert said(0.100, 0.101, 0.120).endswith("AdaptiveAdamW takes 20.0% longer.")
    assert "so the 30.0% between them is the machine's" in said(0.100, 0.130, 0.120)


def test_the_page_escapes_what_the_user_named() -> None:
    report = _report([4.0, 3.0, 2.0], [4.0, 3.0, 2.0], [4.0, 3.0, 2.0])
    report = replace(report, text=replace(report.text, source="<b>{x}&"))
    html = page(report, b"")
    assert "&lt;b&gt;{x}&amp;" in html
    assert "<b>{x}" not in html


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
        "report.html",
    ]
    for line in content["printed"]["table"]:
        assert line in printed
    flowing = " ".join(printed.split())
    for line in content["printed"]["summary"]:
        assert " ".join(line.split()) in flowing
    for name, measures in content["measures"].items():
        row = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert f"{measures['final']:.4f}" in row
        assert f"{measures['area']:.4f}" in row
        assert f"{measures['seconds_per_step']:.4f}" in row


def test_json_numbers_follow_from_its_curves(finished: dict[str, Any]) -> None:
    content = finished["json"]
    assert [run["method"] for run in content["runs"]] == [
        ConstantAdamW.name,
        CosineAdamW.name,
        Adaptive.name,
    ]
    assert content["constant_rate_best"] == min(content["runs"][0]["held_out"])
    for run in content["runs"]:
        assert run["eval_steps"] == [0, 5, 10, 15, 20, 24]
        assert len(run["train_loss"]) == 24
        assert content["measures"][run["method"]]["final"] == run["held_out"][-1]
        assert run["held_out"][-1] < run["held_out"][0] - 0.1
    assert content["runs"][2]["trace"]["step"] == [10, 20]
    assert {"lr", "momentum", "noise", "plateau"} <= set(content["runs"][2]["trace"])


def test_the_page_needs_no_other_file(finished: dict[str, Any]) -> None:
    html = (finished["folder"] / "report.html").read_text("utf-8")
    picture = (finished["folder"] / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert base64.b64encode(picture).decode() in html
    assert html.count("src=") == html.count('src="data:image/png;base64,') == 1
    assert "http" not in html
    assert finished["json"]["command"].split(" --text ")[0] in html


def test_the_three_start_alike_and_see_the_same_batches(finished: dict[str, Any]) -> None:
    fed, runs = finished["fed"], finished["json"]["runs"]
    assert len(fed) == 3 * 24
    for one, two, three in zip(fed[:24], fed[24:48], fed[48:], strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert not torch.equal(fed[0], fed[1])
    assert len({run["batches"] for run in runs}) == 1
    assert len({run["held_out"][0] for run in runs}) == 1
    assert len({run["held_out"][-1] for run in runs}) == 3, "three methods that do the same thing"


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
        assert different["batches"] != before["batches"]


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


def _settings(**changes: Any) -> Settings:
    return replace(parse([*TINY, "--lr", "0.02"], {}).settings, **changes)


def _report(*curves: list[float]) -> Report:
    """A finished demo with hand-made held-out curves at steps 0, 12 and 24."""
    trace = {name: [0.5, 0.6] for name in ("lr", "momentum", "noise", "plateau")}
    runs = [
        Run(
            method,
            eval_steps=[0, 12, 24],
            held_out=curve,
            train_loss=curve,
            step_seconds=[0.1, 0.1],
            trace={"step": [10.0, 20.0], **trace},
        )
        for method, curve in zip(
            (ConstantAdamW.name, CosineAdamW.name, Adaptive.name), curves, strict=True
        )
    ]
    return make_report(_settings(), encode("here", PROSE), 1234, runs, "command", 1.0)
