"""Recorded files as they come: out of order, with NaN logged as 0, damaged, or made to do harm."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from recorded_files import (
    FORMATS,
    NAN,
    Rows,
    Write,
    as_csv,
    as_events,
    as_trainer_state,
    every_format,
    falling,
    rows_of,
)

from adaptiverl.replay import event_files, source, table
from adaptiverl.replay.recordings import read

# --- order and repeats ----------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda _, batch: batch, "the file's step starts again 9 times"),
        (lambda epoch, batch: 7 * batch + epoch % 7, "the file's step starts again 9 times"),
        (lambda _, __: 0, "999 of them repeat the step before"),
        (lambda epoch, _: epoch, "990 of them repeat the step before"),
    ],
    ids=["the batch of the epoch", "every seventh batch", "none given", "the epoch"],
)
def test_a_step_that_is_no_step_of_the_training_loses_no_loss(
    write: Write, step: Any, why: str, tmp_path: Path, say: Any
) -> None:
    losses = [5 - 0.375 * e + b / 1024 for e in range(10) for b in range(100)]
    file = write(tmp_path, rows_of([step(e, b) for e in range(10) for b in range(100)], losses))
    recording = read(file)
    assert recording.losses == losses
    assert recording.steps == [float(n) for n in range(1, 1001)]
    said = say(file).flat
    assert f"1,000 losses in column {recording.column!r}, counted from 1 as {why}" in said
    assert "What dominated: improvement" in said


@every_format
def test_the_newest_first_is_turned_round(write: Write, tmp_path: Path, say: Any) -> None:
    losses = falling()
    file = write(tmp_path, rows_of(range(60), losses)[::-1])
    recording = read(file)
    assert recording.losses == losses
    assert recording.steps == [float(n) for n in range(60)]
    said = say(file).flat
    assert "The newest came first: all turned round." in said
    assert "What dominated: improvement" in said
    # Epochs too: what is read backwards starts again as well.
    (tmp_path / "epochs").mkdir()
    epochs = write(tmp_path / "epochs", rows_of([*range(30), *range(30)], losses)[::-1])
    assert read(epochs).losses == losses


@every_format
def test_a_resumed_run_counts_once(write: Write, tmp_path: Path, say: Any) -> None:
    losses = falling()
    lost = [9.0] * 10
    # Ten more entries than the checkpoint that the run went on from.
    file = write(
        tmp_path, rows_of([*range(1, 41), *range(31, 61)], losses[:30] + lost + losses[30:])
    )
    recording = read(file)
    assert recording.losses == losses
    assert recording.steps == [float(n) for n in range(1, 61)]
    assert (recording.order.repeated, recording.order.moved) == (10, 0)
    assert (
        "10 entries left out, as the same step comes again: the later one counts." in say(file).flat
    )


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]),
        ([1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([1, 2, 3, 4, 5, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([2, 1, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5]),
        ([1, 2, 2, 3, 4, 5], [0, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 3, 4, 3, 4, 3, 4, 5], [0, 1, 8, 9, 10]),
        ([5, 4, 3, 3, 2, 1], [5, 4, 2, 1, 0]),
        ([-3, -1, -2, 0, 1, 2], [0, 2, 1, 3, 4, 5]),
        ([7], [0]),
        ([7, 7], [0, 1]),
    ],
    ids=[
        "epochs of two batches",
        "three readings to a step",
        "a second epoch that breaks off",
        "the first two changed places",
        "once logged twice",
        "resumed thrice",
        "newest first, once logged twice",
        "steps below zero",
        "one reading",
        "two readings of one step",
    ],
)
def test_the_order_of_training(steps: list[int], kept: list[int], tmp_path: Path) -> None:
    recording = read(as_csv(tmp_path, rows_of(steps, range(len(steps)))))
    assert recording.losses == kept


@every_format
def test_entries_out_of_order_are_put_in_order(write: Write, tmp_path: Path, say: Any) -> None:
    losses = falling()
    rows = rows_of(range(1, 61), losses)
    for i in (0, 20, 40):
        rows[i], rows[i + 1] = rows[i + 1], rows[i]
    file = write(tmp_path, rows)
    recording = read(file)
    assert (recording.losses, recording.order.moved) == (losses, 3)
    assert recording.steps == [float(n) for n in range(1, 61)]
    assert "3 entries stood behind a later step: put in order." in say(file).flat
    random.Random(5).shuffle(rows)
    (tmp_path / "shuffled").mkdir()
    assert read(write(tmp_path / "shuffled", rows)).losses == losses


def test_an_ordinary_file_has_nothing_said_of_it(tmp_path: Path, say: Any) -> None:
    said = say(as_csv(tmp_path, rows_of(range(1, 61), falling()))).flat
    assert "in column 'step'. Open loop" in said


def test_what_a_reward_and_a_norm_stand_beside_moves_with_it(tmp_path: Path) -> None:
    rows = [{"step": -n, "loss": float(n), "reward": 10.0 * n, "grad_norm": 1.0} for n in range(6)]
    rows[2] |= {"loss": 0.0, "grad_norm": NAN}
    recording = read(as_csv(tmp_path, rows), reward="reward")
    assert recording.rewards == [50.0, 40.0, 30.0, 20.0, 10.0, 0.0]
    assert [math.isnan(loss) for loss in recording.losses] == [False] * 3 + [True] + [False] * 2


def test_tags_of_an_event_file_stay_together_when_the_step_restarts(tmp_path: Path) -> None:
    rows = [{"step": i % 5, "loss": float(i), "reward": -float(i)} for i in range(20)]
    recording = read(as_events(tmp_path, rows), reward="train/reward")
    assert recording.losses == [float(i) for i in range(20)]
    assert recording.rewards == [-float(i) for i in range(20)]
    assert recording.skipped == 0


@pytest.mark.parametrize("step", ["", "nan", "inf", "-1e308", "1" * 30])
def test_steps_that_cannot_be_used_are_said(step: str, tmp_path: Path, say: Any) -> None:
    file = tmp_path / "a.csv"
    rows = [f"{step if i == 7 else i},{30 - i}" for i in range(30)]
    file.write_text("\n".join(["step,loss", *rows]))
    assert "counted from 1 as some have no step in the file, or none that" in say(file).flat


def test_a_header_that_comes_again_and_cells_too_many_are_said(tmp_path: Path, say: Any) -> None:
    file = tmp_path / "a.csv"
    rows = [f"{i},{loss}" for i, loss in enumerate(falling())]
    rows[30] += ",5"
    rows[31] += ","
    rows.insert(40, "step,loss")
    file.write_text("\n".join(["step,loss", *rows]))
    assert read(file).losses == falling()
    said = say(file).flat
    assert "Its header comes again once." in said
    assert "More cells than in the first row, once, are not read." in said


# --- a NaN that was logged as 0 -------------------------------------------------------------------


def diverged(norm: float = NAN, name: str = "grad_norm") -> Rows:
    """What a Trainer logs of a run whose loss is NaN from step 62 on."""
    rows = [{"step": i + 1, "loss": loss, name: 1.0} for i, loss in enumerate(falling())]
    rows.append({"step": 61, "loss": 1.25, name: norm})
    return rows + [{"step": step, "loss": 0.0, name: norm} for step in range(62, 102)]


@every_format
@pytest.mark.parametrize("norm", [NAN, math.inf])
def test_a_loss_of_zero_beside_a_norm_that_is_not_finite_is_nan(
    write: Write, norm: float, tmp_path: Path, say: Any
) -> None:
    file = write(tmp_path, diverged(norm))
    losses = read(file).losses
    assert losses[:61] == [*falling(), 1.25]
    assert all(map(math.isnan, losses[61:]))
    said = say(file).flat
    assert "40 losses of 0 beside a " in said
    assert "1 other loss beside such a norm, used as logged." in said
    assert (
        "The recorded run diverged: from step 62 to its end no loss is finite (40 of 101)" in said
    )
    assert "What dominated: improvement" not in said
    assert "40 observations were not finite" in said


@every_format
def test_a_loss_of_zero_without_a_norm_is_doubted(write: Write, tmp_path: Path, say: Any) -> None:
    file = write(tmp_path, [{"step": row["step"], "loss": row["loss"]} for row in diverged()])
    said = say(file).flat
    assert (
        "40 losses of exactly 0, used as logged; but Hugging Face's Trainer logs NaN as 0" in said
    )
    assert "The recorded run may have diverged: from step 62 to its end every loss is 0" in said


@every_format
def test_a_loss_of_zero_beside_a_finite_norm_is_zero(
    write: Write, tmp_path: Path, say: Any
) -> None:
    file = write(tmp_path, diverged(0.5))
    assert read(file).losses == [row["loss"] for row in diverged()]
    said = say(file).flat
    assert "logging_nan_inf_filter" not in said
    assert "diverged" not in said


def test_a_run_that_was_nan_from_the_start_says_why(tmp_path: Path, say: Any) -> None:
    said = say(as_trainer_state(tmp_path, diverged()[61:])).refused()
    assert "none of them is finite: 40 of 0 stand beside a 'grad_norm' that is not" in said


def test_a_norm_belongs_to_its_own_runs_loss(tmp_path: Path) -> None:
    """Two runs in one export, of which one diverged."""
    rows = [
        {"Step": i, "a - train/loss": 0.0, "a - train/grad_norm": 1.0}
        | {"b - train/loss": 0.0, "b - train/grad_norm": NAN}
        for i in range(30)
    ]
    file = as_csv(tmp_path, rows)
    assert read(file, "a - train/loss").losses == [0.0] * 30
    assert all(map(math.isnan, read(file, "b - train/loss").losses))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_trainers_own_state_of_a_diverged_run(tmp_path: Path, say: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from framework_cases import How
    from huggingface_runs import HuggingFace
    from tiny_models import NanOnce

    run = HuggingFace(tmp_path, How(model=NanOnce, size=100, log_every=1))
    run.train()
    run.trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    losses = read(tmp_path / "trainer_state.json").losses
    assert [math.isnan(loss) for loss in losses] == [False] * 2 + [True] * 23
    said = say(tmp_path / "trainer_state.json").flat
    assert "23 losses of 0 beside a 'grad_norm' that is not finite, taken as NaN" in said
    assert "diverged: from step 3" in said


# --- MLflow's file of a metric, and names ---------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("1700000000123 {loss} {step}", "step"),
        ("1700000000 {loss} {step}", "step"),
        ("1700000000123 {loss} {step} train 0a1b2c m-17", "step"),
        ("1700000000123 {loss}", None),
    ],
    ids=["today's", "seconds", "with data and model", "without a step"],
)
def test_a_file_of_mlflow_has_no_header(line: str, step: str | None, tmp_path: Path) -> None:
    losses: list[float] = falling()
    losses[7] = NAN
    file = tmp_path / "train_loss"
    rows = [line.format(loss=loss, step=i) for i, loss in enumerate(losses)]
    file.write_text("\n".join(rows) + "\n")
    recording = read(file)
    assert repr(recording.losses) == repr(losses)
    assert recording.steps == [float(i + (step is None)) for i in range(60)]
    assert (recording.column, recording.step_column, recording.skipped) == ("loss", step, 0)


def test_other_numbers_between_blanks_have_no_names_either(tmp_path: Path, say: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{i:.1f}  {loss}\n" for i, loss in enumerate(falling())))
    assert "it has '1', '2'. Choose one with --column" in say(file).err
    assert read(file, "2", "1").losses == falling()
    file.write_text(file.read_text() + "60.0 1.5 7\n")
    said = say(file, "--column", "2", "--step-column", "1").flat
    assert "More cells than in the first row, once, are not read." in said


@pytest.mark.parametrize(
    ("column", "cell", "named"),
    [
        ("reward", "1", True),
        ("train/reward", "1", True),
        ("rollout/ep_rew_mean", "1", True),
        ("Reward", "-2.5", True),
        ("reward", "", False),
        ("reward", "nan", False),
        ("reward", "high", False),
        ("reward_std", "1", False),
        ("format_reward", "1", False),
        ("rewards/margins", "1", False),
        ("eval/reward", "1", False),
        ("reward_model_lr", "1", False),
        ("unrewarded", "1", False),
    ],
)
def test_only_a_reward_is_suggested_as_the_reward(
    column: str, cell: str, named: bool, tmp_path: Path, say: Any
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"loss,{column}\n" + "".join(f"{loss},{cell}\n" for loss in falling()))
    said = say(file).flat
    assert ("--reward-column would" in said) is named
    assert (f"column {column!r} is not used" in said) is named


# --- files made to do harm: refused before they grow ----------------------------------------------


def record(data: bytes) -> bytes:
    """A record of an event file, its checksums right."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


def event(step: int = 0, **value: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return record(
        Event(step=step, summary=Summary(value=[Summary.Value(**value)])).SerializeToString()
    )


def tensor(shape: Sequence[int], dtype: int = 1, **values: Any) -> Any:
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    dims = [TensorShapeProto.Dim(size=size) for size in shape]
    return TensorProto(dtype=dtype, tensor_shape=TensorShapeProto(dim=dims), **values)


def events_file(folder: Path, *records: bytes) -> Path:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.compat.proto.event_pb2 import Event

    version = record(Event(file_version="brain.Event:2").SerializeToString())
    file = folder / "events.out.tfevents.1"
    file.write_bytes(version + b"".join(records))
    return file


def losses_as_events() -> list[bytes]:
    return [event(i, tag="loss", simple_value=loss) for i, loss in enumerate(falling())]


@pytest.mark.parametrize(
    "shape", [[1 << 60], [1 << 20, 1 << 20, 1 << 20], [2], [0], [-1], [-1, -1]]
)
def test_one_number_is_not_made_a_tensor_of_any_size(shape: list[int], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    bomb = event(0, tag="bomb", tensor=tensor(shape, float_val=[1.0]))
    recording = read(events_file(tmp_path, bomb, *losses_as_events()))
    assert recording.losses == falling()
    assert recording.columns == ("step", "loss")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"dtype": 1, "float_val": [2.5]}, 2.5),
        ({"dtype": 2, "double_val": [2.5]}, 2.5),
        ({"dtype": 3, "int_val": [2]}, 2.0),
        ({"dtype": 9, "int64_val": [2]}, 2.0),
        ({"dtype": 19, "half_val": [0x4100]}, 2.5),
        ({"dtype": 1, "tensor_content": struct.pack("<f", 2.5)}, 2.5),
        ({"dtype": 7, "string_val": [b"2.5"]}, None),
        ({"dtype": 10, "bool_val": [True]}, None),
        ({"dtype": 8, "scomplex_val": [2.5, 0.0]}, None),
        ({"dtype": 20}, None),
        ({"dtype": 99}, None),
    ],
)
@pytest.mark.parametrize("shape", [[], [1], [1, 1]])
def test_a_tensor_of_one_number_is_a_scalar(
    values: dict[str, Any], found: float | None, shape: list[int], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    file = events_file(
        tmp_path, event(tag="x", tensor=tensor(shape, **values)), *losses_as_events()
    )
    assert ("x" in read(file).columns) is (found is not None)
    if found is not None:
        assert read(file, "x").losses == [found]


def flipped(place: int) -> Callable[[list[bytes]], list[bytes]]:
    """A bit of the record in the middle is another one."""

    def damage(records: list[bytes]) -> list[bytes]:
        middle = bytearray(records[30])
        middle[place] ^= 1
        return [*records[:30], bytes(middle), *records[31:]]

    return damage


DAMAGES: list[tuple[Callable[[list[bytes]], list[bytes]], str]] = [
    (flipped(-6), "fails its checksum"),
    # Its length: what follows would seem to break off.
    (flipped(4), "fails its checksum"),
    (flipped(9), "fails its checksum"),
    (flipped(-1), "fails its checksum"),
    (lambda records: [*records, b"\0" * 512], "fails its checksum"),
    (lambda records: [*records, record(b"\xff" * 20)], "cannot be taken apart"),
    (lambda records: [*records, record(b"\x2a\x7f")], "cannot be taken apart"),
    (
        lambda records: [*records, event(tag="x", tensor=tensor([], float_val=[1.0, 2.0]))],
        "cannot be taken apart",
    ),
    (lambda records: [*records, event(tag="x", tensor=tensor([]))], "cannot be taken apart"),
    (
        lambda records: [*records, event(tag="x", tensor=tensor([], tensor_content=b"abc"))],
        "cannot be taken apart",
    ),
]


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
def test_a_damaged_event_file_is_one_clear_line(
    damage: Callable[[list[bytes]], list[bytes]], what: str, tmp_path: Path, say: Any
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    file = events_file(tmp_path, *damage(losses_as_events()))
    said = say(file).refused()
    assert f"{file} is a damaged TensorBoard event file: the record at byte" in said
    assert what in said
    # The advice holds: what comes before can be used.
    offset = int(said.split("head -c ")[1].split(")")[0])
    file.write_bytes(file.read_bytes()[:offset])
    assert read(file).losses in (falling()[:30], falling())


@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_record_that_breaks_off_is_said_and_not_made_room_for(
    length: int, tmp_path: Path, say: Any
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.summary.writer.record_writer import masked_crc32c

    head = struct.pack("<Q", length)
    end = head + struct.pack("<I", masked_crc32c(head)) + b"\0" * 100
    file = events_file(tmp_path, *losses_as_events(), end)
    assert read(file).losses == falling()
    assert "breaks off inside a record: its last 112 bytes are not read." in say(file).flat


def test_a_record_of_great_size_is_passed_over(
    tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes of it can become eighty in memory."""
    monkeypatch.setattr(event_files, "MAX_RECORD", 1000)
    empty_values = record(b"\x2a\xd0\x0f" + b"\x0a\x00" * 1000)
    file = events_file(tmp_path, empty_values, *losses_as_events())
    assert read(file).losses == falling()
    assert "More than 0 MiB in a record, once, not read." in say(file).flat


def as_bare_numbers(folder: Path, rows: Rows) -> Path:
    (folder / "a.txt").write_text("\n".join(str(row["loss"]) for row in rows))
    return folder / "a.txt"


def as_json_list(folder: Path, rows: Rows) -> Path:
    (folder / "a.json").write_text(json.dumps([row["loss"] for row in rows]))
    return folder / "a.json"


@pytest.mark.parametrize("write", [*FORMATS, as_bare_numbers, as_json_list])
@pytest.mark.parametrize(
    ("limit", "most", "message"),
    [
        ("MAX_BYTES", 1 << 8, "0 MiB is the most that is read"),
        ("MAX_ROWS", 50, "has more than 50 entries"),
        ("MAX_CELLS", 50, "has more than 50 values"),
        ("MAX_COLUMNS", 0, "has more than 0 columns"),
    ],
)
def test_a_file_too_large_is_one_clear_line(
    write: Write,
    limit: str,
    most: int,
    message: str,
    tmp_path: Path,
    say: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(tmp_path, rows_of(range(60), falling()))
    monkeypatch.setattr(source if limit == "MAX_BYTES" else table, limit, most)
    said = say(file).refused()
    assert said.startswith(f"replay: {file} has ")
    assert message in said


@pytest.mark.parametrize("head", [b"", b"step,loss\n1,2\n", b'[{"loss": 1},', b"\0" * 30])
def test_a_size_is_looked_at_before_a_file_is_read(
    head: bytes, tmp_path: Path, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    with file.open("wb") as stream:
        stream.write(head)
        stream.truncate(5 << 30)
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("the file was opened"))
    assert "has 5,120 MiB, and 128 MiB is the most that is read" in say(file).refused()


READ_IN_TEN_SECONDS = """
import resource, sys
from pathlib import Path
from adaptiverl.replay.recordings import read
used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
resource.setrlimit(resource.RLIMIT_CPU, (used + 10, used + 10))
print(len(read(Path(sys.argv[1])).losses))
"""


def test_lists_of_unequal_length_cost_what_they_hold(tmp_path: Path) -> None:
    """Rows times columns would be a billion steps; 10 seconds of a processor allow a fraction."""
    file = tmp_path / "a.json"
    empty: dict[str, list[float]] = {f"c{i}": [] for i in range(5_000)}
    file.write_text(json.dumps({"loss": [1] * 200_000, **empty}))
    done = subprocess.run(
        [sys.executable, "-I", "-c", READ_IN_TEN_SECONDS, str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "200000"), done.stderr
