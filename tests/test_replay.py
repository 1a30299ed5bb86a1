"""`python -m adaptiverl replay`: every format, every bad file, and the numbers it prints."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image
from recorded_files import falling

from adaptiverl import Control
from adaptiverl.law.replay import replay as replayed
from adaptiverl.replay import arguments, command, recordings
from adaptiverl.replay.recordings import guess, read
from adaptiverl.replay.table import RecordingError
from adaptiverl.replay.updates import pushes as pushes_of
from adaptiverl.version import __version__
from bench import record_curve

COUNT = 60
curve = falling


def write_csv(path: Path, losses: list[Any], gap: int = 1) -> Path:
    rows = [f"{gap * (i + 1)},{loss}" for i, loss in enumerate(losses)]
    path.write_text("\n".join(["step,loss", *rows]) + "\n")
    return path


# --- the formats: the same curve out of each of them ----------------------------------------------


def table(header: str, row: str, end: str = "\n") -> Callable[[list[float]], str]:
    """A text file of a line for each loss; `row` has its place for the step and the loss."""
    return lambda losses: end.join([header, *(row.format(i + 1, x) for i, x in enumerate(losses))])


def json_lines(losses: list[float]) -> str:
    entries = [{"step": i + 1, "train": {"loss": loss}} for i, loss in enumerate(losses)]
    return "\n".join(map(json.dumps, entries)) + "\n\n"


def trainer_state(losses: list[float]) -> str:
    log: list[dict[str, Any]] = []
    for i, loss in enumerate(losses):
        log.append({"epoch": i / 10, "loss": loss, "learning_rate": 1e-4, "step": i + 1})
        if i % 10 == 9:
            log.append({"epoch": i / 10, "eval_loss": 7.0, "step": i + 1})
    log.append({"train_loss": 1.5, "train_runtime": 9.0, "step": len(losses)})
    return json.dumps({"global_step": len(losses), "log_history": log}, indent=2)


def as_events(path: Path, losses: list[float]) -> Path:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(path)) as writer:
        writer.add_text("note", "no scalar")
        for i, loss in enumerate(losses):
            writer.add_scalar("Loss/train", loss, i + 1)
            writer.add_scalar("Loss/eval", 7.0, i + 1, new_style=True)
    return next(path.glob("*tfevents*"))


# As Weights & Biases exports it: a run's name in front, extremes beside.
EXPORT = '"Step","run, 7 - train/loss","run, 7 - train/loss__MIN","run, 7 - eval/loss"'
FORMATS: list[tuple[str, Callable[[list[float]], str], str, str | None]] = [
    ("a.csv", table("step,loss", "{},{}"), "loss", "step"),
    ("a.txt", table("\ufeffStep; Train/Loss", "{}; {}", "\r\n"), "Train/Loss", "Step"),
    ("losses", lambda losses: "\n".join(map(str, losses)), "loss", None),
    ("a.csv", table(EXPORT, '"{}","{}","0","9"'), "run, 7 - train/loss", "Step"),
    ("a.jsonl", json_lines, "train/loss", "step"),
    ("a.json", json.dumps, "loss", None),
    ("a.json", lambda losses: json.dumps({"loss": losses, "val_loss": losses[:3]}), "loss", None),
    ("trainer_state.json", trainer_state, "loss", "step"),
    ("events", str, "Loss/train", "step"),
]


@pytest.mark.parametrize(("name", "write", "column", "step"), FORMATS)
def test_every_format_holds_the_same_curve(
    name: str, write: Any, column: str, step: str | None, tmp_path: Path
) -> None:
    file = tmp_path / name
    if name == "events":
        file = as_events(tmp_path, curve())
    else:
        file.write_bytes(write(curve()).encode())
    recording = read(file)
    assert (recording.column, recording.step_column) == (column, step)
    assert recording.steps == [float(i) for i in range(1, COUNT + 1)]
    assert recording.losses == curve()
    assert recording.skipped == (7 if write is trainer_state else 0)
    assert recording.rewards == []


def test_an_event_files_other_tags_can_be_asked_for(tmp_path: Path, say: Any) -> None:
    file = as_events(tmp_path, curve())
    assert read(file, "Loss/eval").losses == [7.0] * COUNT
    assert "losses in column 'Loss/eval'" in say(file, "--tag", "Loss/eval").flat
    said = say(file, "--tag", "Loss/test").refused()
    assert "has no column 'Loss/test'; it has 'step', 'Loss/train', 'Loss/eval'" in said


def test_a_step_logged_twice_counts_as_its_later_value(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (3, 1.0)):
            writer.add_scalar("loss", loss, step)
    recording = read(next(tmp_path.glob("*tfevents*")))
    assert (recording.steps, recording.losses) == ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["epoch", "val_loss", "loss"], ["loss"]),
        (["train_loss", "loss"], ["loss"]),
        (["LOSS", "Loss"], ["LOSS", "Loss"]),
        (["train_loss_epoch", "train_loss_step"], ["train_loss_step"]),
        (["a/train/loss", "b/train/loss"], ["a/train/loss", "b/train/loss"]),
        (["gpt/loss", "gpt/val/loss", "gpt/loss__min"], ["gpt/loss"]),
        (["eval_loss", "test/loss", "accuracy", "closs"], []),
    ],
)
def test_the_loss_is_told_from_the_names(columns: list[str], found: list[str]) -> None:
    assert guess(columns, recordings.LOSS_NAMES) == found


def test_missing_cells_are_left_out_and_bad_numbers_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("step,loss,reward\n1,3,\n2,,5\n3,nan,1\n4,-inf,nan\n5,1e999,2\n")
    recording = read(file, reward="reward")
    assert recording.steps == [1.0, 3.0, 4.0, 5.0]
    assert recording.losses[0] == 3.0
    assert math.isnan(recording.losses[1])
    assert recording.losses[2:] == [-math.inf, math.inf]
    assert recording.rewards[:2] == [None, 1.0]
    assert math.isnan(recording.rewards[2] or 0.0)
    assert recording.skipped == 1


def test_steps_with_a_gap_are_counted_instead(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("step,loss\n10,3\n,2\n30,1\n")
    recording = read(file)
    assert (recording.steps, recording.step_column) == ([1.0, 2.0, 3.0], None)


def test_the_recorded_curve_is_what_its_script_writes(tmp_path: Path, say: Any) -> None:
    tiny = replace(record_curve.TASK, steps=4, layers=1, width=8, context=8, batch=2)
    losses = record_curve.record(tiny)
    record_curve.write(losses, record_curve.LR, tmp_path / "new" / "curve.csv")
    again = read(tmp_path / "new" / "curve.csv")
    assert again.losses == pytest.approx(losses, rel=1e-5)
    kept = read(record_curve.FILE)
    assert again.columns == kept.columns
    assert kept.steps == [float(step) for step in range(1, record_curve.TASK.steps + 1)]
    # An untrained model guesses among at most 256 characters; this one has learnt since.
    assert kept.losses[0] == pytest.approx(math.log(256), rel=0.3)
    assert kept.losses[-1] < 2
    assert say(record_curve.FILE).status == 0


# --- what it says ---------------------------------------------------------------------------------


def test_the_table_is_the_laws_own_replay(tmp_path: Path, say: Any) -> None:
    result = say(write_csv(tmp_path / "a.csv", curve()), "--lr", "0.002", "--every", "5")
    assert result.status == 0
    assert result.err == ""
    history = replayed(curve(), Control(every=5), lr=0.002)
    rows = [line.split() for line in result.out.splitlines() if re.match(r" *\d+  ", line)]
    assert [int(row[0]) for row in rows] == list(range(5, 61, 5))
    for row in rows:
        state = history[int(row[0]) - 1]
        assert row[1] == f"{state.loss:.4g}"
        assert row[3] == f"{state.loss_direction:+.2f}"
        assert row[6] == f"{state.lr:.3g}"
        assert row[7] == f"{state.lr / 0.002:.2f}"
        assert row[8] == f"{state.momentum:.3f}"
    assert len({row[6] for row in rows}) > 5, "the controller never moved"
    assert f"α went from 0.002 to {history[-1].lr:.3g}" in result.flat


def test_it_says_that_the_loop_is_open_and_what_k_counts(tmp_path: Path, say: Any) -> None:
    dense = say(write_csv(tmp_path / "a.csv", curve())).flat
    assert "Open loop" in dense
    assert "K = 10: one update at every 10th logged loss." in dense
    assert "steps apart" not in dense
    sparse = say(write_csv(tmp_path / "b.csv", curve(), gap=500)).flat
    assert "They are 500 steps apart, so that is one per 5,000 training steps" in sparse
    assert "--every 1 updates at each of them" in sparse
    single = say(tmp_path / "b.csv", "--every", "1").flat
    assert "at every single logged loss" in single
    assert "--every 1" not in single
    assert "Epoch-wise" in say(tmp_path / "a.csv", "--every", "epoch").flat


def test_the_picture_is_drawn_in_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["replay", str(write_csv(tmp_path / "a.csv", curve()))]) == 0
    picture = Path("runs", "replay", "replay.png")
    assert f"Picture: {picture}" in capsys.readouterr().out
    assert image.imread(picture).std() > 0.05


def test_without_matplotlib_the_table_is_still_there(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # of the fixture's: a picture is asked for
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = say(write_csv(tmp_path / "a.csv", curve()))
    assert result.status == 0
    assert "What dominated: improvement" in result.flat
    assert "No picture: pictures need matplotlib" in result.flat


def test_the_alignment_law_needs_gradients_and_says_so(tmp_path: Path, say: Any) -> None:
    file = write_csv(tmp_path / "a.csv", curve())
    for preset in ("find_lr", "climb", "distilled"):
        said = say(file, "--preset", preset, "--lr", "1e-4").refused()
        assert f"{preset} reads the gradients, which a recorded loss does not have" in said
        assert "choose from default, gpt2_small, production, epochwise" in said
    assert not re.search("find_lr|climb", say("--help").out), "it is offered"
    # From Python as well, whatever the rest of the control.
    reason = "that law reads the gradients, which only training has. Use law='loss', or train"
    request = arguments.parse(["replay", str(file), "--out", str(tmp_path / "out")])
    modulate = replace(Control.climb(100), mode="modulate", every=None)
    with pytest.raises(ValueError, match=re.escape(reason)):
        command.run(replace(request, control=modulate))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"adaptiverl {__version__}\n")


def test_modulate_moves_a_factor_that_starts_at_one(tmp_path: Path, say: Any) -> None:
    result = say(write_csv(tmp_path / "a.csv", curve()), "--mode", "modulate")
    assert "α went from 1 to " in result.flat


def test_a_preset_is_the_controls_own(tmp_path: Path, say: Any) -> None:
    file = write_csv(tmp_path / "a.csv", curve())
    for preset in ("gpt2_small", "production", "epochwise"):
        control = getattr(Control, preset)()
        end = replayed(curve(), control, lr=1e-4)[-1].lr
        result = say(file, "--preset", preset, "--lr", "1e-4")
        assert f"α went from 0.0001 to {end:.3g}," in result.flat
    slower = replayed(curve(), replace(Control.epochwise(), every=20), lr=1e-3)[-1].lr
    assert f"to {slower:.3g}," in say(file, "--preset", "epochwise", "--every", "20").flat
    outside = say(file, "--preset", "gpt2_small").refused()
    assert "lr must start inside Control.lr_bounds = [1e-05, 0.0002], got 0.001" in outside


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (curve(), "What dominated: improvement. Over 6 updates"),
        ([3 - loss for loss in curve()], "What dominated: worsening. Over 6 updates"),
        ([2.5] * 30, "What dominated: nothing."),
    ],
)
def test_the_verdict_follows_the_curve(
    losses: list[float], said: str, tmp_path: Path, say: Any
) -> None:
    assert said in say(write_csv(tmp_path / "a.csv", losses)).flat


def test_losses_that_are_not_finite_and_bounds_are_reported(tmp_path: Path, say: Any) -> None:
    falling: list[float] = [1 / (i + 1) for i in range(100)]
    falling[44] = math.nan
    falling[46] = math.inf
    result = say(write_csv(tmp_path / "a.csv", falling), "--every", "1").flat
    states = replayed(falling, Control(every=1), lr=1e-3)
    top = sum(state.lr == Control().limits(1e-3, 0.9).lr_max for state in states)
    assert top > 20
    assert f"it was at its upper bound 0.01 after {top} updates" in result
    assert (
        "2 observations were not finite, answered by the regression reflex in 2 updates" in result
    )


def test_pushes_add_up_to_what_alpha_did() -> None:
    losses = [*curve(), *curve()]
    # Where the loss falls fast, so that the reflex and the sensors disagree.
    losses[10] = math.nan
    control = Control(every=3, lr_bounds=(1e-9, 1e9), lr_change=(0.01, 100))
    history = replayed(losses, control, lr=1e-3)
    pushes = pushes_of(history, [], control)
    assert [push.index for push in pushes] == list(range(2, len(losses), 3))
    assert [push.reflex for push in pushes].count(True) == 1
    assert not any(push.capped for push in pushes)
    total = math.log(1e-3)
    for push in pushes:
        total += push.reward + push.loss
        assert history[push.index].log_lr == pytest.approx(total, abs=1e-12)
    assert sum(abs(push.loss) for push in pushes) > 0.1


def test_the_change_cap_is_noticed(tmp_path: Path, say: Any) -> None:
    control = Control(every=1, gain_lr_reward=0.5)
    pushes = pushes_of(replayed(curve(), control, lr=1e-3), [], control)
    cut = [push for push in pushes if push.capped]
    assert cut
    assert all(
        push.reward + push.loss > math.log(1.2) or push.reward + push.loss < math.log(0.9)
        for push in cut
    )


def test_a_reward_column_steers_and_rests_where_it_is_empty(tmp_path: Path, say: Any) -> None:
    file = tmp_path / "rl.csv"
    rewards = [i if i % 7 == 0 else "" for i in range(COUNT)]
    rows = [f"{i},{loss},{r}" for i, (loss, r) in enumerate(zip(curve(), rewards, strict=True))]
    file.write_text("\n".join(["step,loss,return", *rows]))
    result = say(file, "--reward-column", "return", "--every", "5")
    assert result.status == 0
    assert "reward in column 'return'" in result.flat
    given = [r if isinstance(r, int) else None for r in rewards]
    control = Control(every=5, reward="given")
    history = replayed(curve(), control, lr=1e-3, rewards=given)
    assert f"α went from 0.001 to {history[-1].lr:.3g}," in result.flat
    pushes = pushes_of(history, given, control)
    # Nine updates had a reward before them, and the first reward of all is no trend yet.
    assert [push.reward != 0 for push in pushes].count(True) == 8
    assert 1e-3 * math.exp(sum(p.reward + p.loss for p in pushes)) == pytest.approx(history[-1].lr)


def test_a_reward_that_goes_unused_is_named(tmp_path: Path, say: Any) -> None:
    file = tmp_path / "a.csv"
    file.write_text("\n".join(["loss,reward", *(f"{loss},1" for loss in curve())]))
    assert "column 'reward' is not used (--reward-column would)" in say(file).flat


# --- bad files: one clear line, status 2 ----------------------------------------------------------

BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (b"step,loss\n", "holds no losses"),
    (b",,,\n", "holds no losses"),
    (b"epoch,val_loss,acc\n1,2,3\n", r"training loss; it has 'epoch', 'val_loss', 'acc'\. Choose"),
    (b"1,2\n3,4\n", r"it has '1', '2'\. Choose one with --column"),
    (b"a/loss,b/loss\n1,2\n", r"2 columns that could be the training loss: 'a/loss', 'b/loss'"),
    (b"step,loss\n1,2.5\n2,low\n", r"entry 2: column 'loss' holds 'low', which is not a number"),
    (b"step,loss\n1,2\n2,1\n", r"is too short: 2 losses, .* 10th takes 20 at least"),
    (b"loss\n3\n2\n1\n2\n", r"is too short: 4 losses.*--every 1"),
    (b"loss\n" + b"nan\n" * 40, "has 40 losses and none of them is finite"),
    (b"loss,x\n" + b" ,1\n" * 40, "is too short: 0 losses"),
    (b"\x89PNG\r\n\x1a\n\0\0\0", r"is not text: (byte 0x89 at offset 0|it holds a zero byte)"),
    (b"loss\n1\n\xff\xfe\n", "byte 0xff at offset 7 is not UTF-8"),
    (b"loss\n" + b"1\n" * 40_000 + b"\xff", "byte 0xff at offset 80005 is not UTF-8"),
    (b'{"loss": 1}\n{"loss": \n', "line 2: this is not JSON"),
    (b'[{"loss": 1}, 2]', "is JSON, but no list of objects or of losses"),
    (b'{"log_history": []}', "holds no losses"),
    (b'{"loss": true}\n' * 30, "holds True, which is not a number"),
    (b"[" * 100_000, "this is not JSON"),
    (b"[" + b"1" * 5000 + b"]", "this is not JSON"),
    (b'loss\n"' + b"1" * 200_000 + b'"\n', "is not a table: field larger than"),
    (b'{"a":' * 20 + b"1" + b"}" * 20, "an object 16 objects deep"),
    (
        json.dumps({"a" * 500: {"b" * 600: 1}}).encode(),
        "longer than 1,000 letters, the most that is read, and begins with 'aaa",
    ),
    (json.dumps([{"a" * 50_000: {str(i): 1 for i in range(9)}}]).encode(), "longer than 1,000 let"),
    (b"a" * 2000 + b",loss\n1,2\n", "longer than 1,000 letters"),
    (json.dumps({"loss": [[[1]]] * 30}).encode(), "holds a list, which is not a number"),
    (json.dumps([{"loss": "x" * 9999}] * 30).encode(), "holds 'xxx"),
    (b"step,loss\n" + b"1," * 10_000_001, "has more than 10,000,000 values"),
    (b"1 2\n" + b"1 " * 1_000_000, r"it has '1', '2'\. Choose one with --column"),
    (b"\0" * 12 + b"\x1a\x0dbrain.Event:2", "event file"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_bad_file_is_one_clear_line(
    content: bytes, message: str, tmp_path: Path, say: Any
) -> None:
    file = tmp_path / "bad file.csv"
    file.write_bytes(content)
    said = say(file).refused()
    assert said.startswith(f"replay: {file}")
    assert re.search(message, said), said
    assert len(said) < len(str(file)) + 300
    assert not (tmp_path / "out").exists(), "a folder was made for nothing"


def test_no_file_and_a_folder(tmp_path: Path, say: Any) -> None:
    assert "does not exist" in say(tmp_path / "nowhere.csv").refused()
    assert "is a folder; give a file\n" in say(tmp_path).refused()
    (tmp_path / "trainer_state.json").write_text("{}")
    assert f"such as {tmp_path / 'trainer_state.json'}" in say(tmp_path).refused()
    assert "is not a file" in say("/dev/null").refused()
    say("a\0b").refused()


def test_an_event_file_without_tensorboard(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = as_events(tmp_path, curve())
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert say(file).refused().rstrip().endswith(": pip install tensorboard")


def test_a_truncated_event_file_gives_what_it_holds(tmp_path: Path) -> None:
    file = as_events(tmp_path, curve())
    file.write_bytes(file.read_bytes()[:-1000])
    recording = read(file)
    assert 20 < len(recording.losses) < COUNT
    assert recording.losses == pytest.approx(curve()[: len(recording.losses)], rel=1e-6)


def test_an_out_folder_that_cannot_be_written(tmp_path: Path, say: Any) -> None:
    (tmp_path / "out").write_text("a file is in the way")
    said = say(write_csv(tmp_path / "a.csv", curve())).refused()
    assert f"cannot write to --out {tmp_path / 'out'}" in said


def test_too_many_losses_are_refused(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_LOSSES", COUNT - 1)
    said = say(write_csv(tmp_path / "a.csv", curve())).refused()
    assert "has 60 losses, and replay takes 59 at most" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "-1"], "lr must be finite and > 0"),
        (["--lr", "nan"], "lr must be finite and > 0"),
        (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--momentum", "1"], r"--momentum: must be a number in \[0, 1\), got '1'"),
        (["--every", "0"], "--every: must be a whole number from 1 to 500,000, or 'epoch'"),
        (["--mode", "both"], "--mode: invalid choice: 'both'"),
        (["--column", "nope"], "has no column 'nope'; it has 'step', 'loss'"),
        (["--reward-column", "nope"], "has no column 'nope'"),
        (["--step-column", "nope"], "has no column 'nope'"),
        (["--speed", "3"], "unrecognized arguments"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    options: list[str], message: str, tmp_path: Path, say: Any
) -> None:
    said = say(write_csv(tmp_path / "a.csv", curve()), *options).refused()
    assert re.search(message, said), said


def test_a_name_cannot_break_the_line(tmp_path: Path, say: Any) -> None:
    file = tmp_path / "a.csv"
    file.write_text('"val\nloss",b\n1,2\n')
    assert r"'val\nloss'" in say(file).refused()
    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"c{i}" for i in range(60)) + "\n" + ",".join("1" * 60) + "\n")
    assert "'c19' and 40 more" in say(wide).err


def test_recording_errors_are_one_line_for_callers_too(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"has no column 'x'; it has 'step', 'loss'"):
        read(write_csv(tmp_path / "a.csv", curve()), "x")


# --- the real command -----------------------------------------------------------------------------


def test_the_real_commands_failure_has_no_traceback(tmp_path: Path) -> None:
    # -I, as the tests may run themselves: the installed package, not the current folder's.
    words = [sys.executable, "-I", "-m", "adaptiverl", "replay", str(tmp_path / "none.csv")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"replay: {tmp_path / 'none.csv'} does not exist; give the path of a recorded loss curve\n"
    )
