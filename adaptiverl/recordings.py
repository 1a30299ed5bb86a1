"""Loss curves as other tools record them: CSV, JSON, a Trainer's state, a TensorBoard event file.

Every format becomes rows of named cells; one column is the loss, and the rows without one (a
Trainer's evaluations, say) are left out. What cannot be used raises `RecordingError`, whose message
is one line that names the file, what is wrong with it and what to do.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

# Columns that are the training loss without a doubt, the likeliest first, as `plain` spells them.
LOSS_NAMES = (
    "loss",
    "train_loss",
    "training_loss",
    "loss_train",
    "loss_training",
    "train_loss_step",
    "step_loss",
    "batch_loss",
    "loss_step",
    "train_loss_total",
    "total_loss",
    "nll",
)
STEP_NAMES = ("step", "global_step", "trainer_global_step", "iteration", "iter", "steps", "update")
# A name that says one of these is no loss that the optimizer saw, or not the loss itself.
NOT_TRAINING = {"val", "valid", "validation", "eval", "evaluation", "test", "dev", "min", "max"}
DELIMITERS = ",;\t|"
SNIFFED_BYTES = 1 << 16
LISTED_COLUMNS = 20


class RecordingError(Exception):
    """A file that cannot be used; the message is one line and says what to do."""


@dataclass(frozen=True)
class Recording:
    """A recorded curve.

    Attributes:
        steps: the training step of each loss; 1, 2, … where the file gives none.
        losses: in the file's order; may hold values that are not finite.
        rewards: beside each loss, or ``None`` where a row has none; empty if none were asked for.
        column: the loss's name in the file.
        step_column: the step's, or ``None``.
        skipped: rows without a loss.
        columns: every column of the file.
    """

    steps: list[float]
    losses: list[float]
    rewards: list[float | None]
    column: str
    step_column: str | None
    skipped: int
    columns: tuple[str, ...]


def read(
    path: Path, column: str | None = None, step: str | None = None, reward: str | None = None
) -> Recording:
    """Read a loss curve.

    Args:
        path: A file in one of the formats above; which one is told from its content.
        column: The loss's column or tag; ``None``: the one whose name says so.
        step: The step's column; ``None``: likewise, and no matter if there is none.
        reward: The reward's column; ``None``: no rewards.

    Raises:
        RecordingError: The file cannot be read, is none of these formats, or has no such column.
    """
    rows = _read_rows(path)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    column = _pick(path, columns, "loss", column)
    step = _pick(path, columns, "step", step)
    reward = None if reward is None else _pick(path, columns, "reward", reward)
    assert column is not None
    kept = [(number, row) for number, row in enumerate(rows, 1) if not _empty(row.get(column))]

    def values(name: str) -> list[float | None]:
        return [_number(path, number, name, row.get(name)) for number, row in kept]

    steps = values(step) if step is not None else [None]
    # A reading without its place cannot be put among the others; then all are counted.
    counted = any(value is None or not math.isfinite(value) for value in steps)
    return Recording(
        steps=[float(n) for n in range(1, len(kept) + 1)] if counted else _floats(steps),
        losses=_floats(values(column)),
        rewards=[] if reward is None else values(reward),
        column=column,
        step_column=None if counted else step,
        skipped=len(rows) - len(kept),
        columns=columns,
    )


def guess(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns that could be meant, those of the best kind only; more than one is a doubt.

    The kinds, best first: a name of the list itself (the earliest in the list); a name that ends
    in one, as in "run 7 - train/loss", and says nothing of evaluation.
    """
    plain_names = {column: plain(column) for column in columns}
    for name in names:
        exact = [column for column in plain_names if plain_names[column] == name]
        if exact:
            return exact
    for name in names:
        ending = [
            column
            for column, spelled in plain_names.items()
            if spelled.endswith("_" + name) and not NOT_TRAINING & set(spelled.split("_"))
        ]
        if ending:
            return ending
    return []


def plain(name: str) -> str:
    """Lower case, every run of other characters one underscore: "Train/Loss" is "train_loss"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _pick(path: Path, columns: Sequence[str], what: str, given: str | None) -> str | None:
    """The column asked for, or else the one that its name gives away."""
    if given is not None:
        if given not in columns:
            raise RecordingError(f"{path} has no column {given!r}; it has {_listed(columns)}")
        return given
    found = guess(columns, STEP_NAMES if what == "step" else LOSS_NAMES)
    if what == "step":
        return found[0] if found else None
    if not found:
        raise RecordingError(
            f"{path} has no column whose name says that it is the training loss; it has "
            f"{_listed(columns)}. Choose one with --column"
        )
    if len(found) > 1:
        raise RecordingError(
            f"{path} has {len(found)} columns that could be the training loss: {_listed(found)}. "
            "Choose one with --column"
        )
    return found[0]


def _listed(columns: Sequence[str]) -> str:
    """Names for a message; quoted as Python does it, so that none can break the line."""
    names = ", ".join(repr(name) for name in columns[:LISTED_COLUMNS])
    more = len(columns) - LISTED_COLUMNS
    return f"{names} and {more} more" if more > 0 else names or "no columns"


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _number(path: Path, row: int, column: str, cell: Any) -> float | None:
    """A cell as a float, also NaN or infinite; ``None`` for an empty one."""
    if _empty(cell):
        return None
    try:
        if isinstance(cell, bool):
            raise ValueError
        return float(cell)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        shown = repr(cell) if len(repr(cell)) <= 40 else repr(cell)[:37] + "..."
        raise RecordingError(
            f"{path}, entry {row}: column {column!r} holds {shown}, which is not a number; "
            "choose another column with --column, or mend the file"
        ) from None


def _floats(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# The formats


def _read_rows(path: Path) -> Rows:
    """The file as rows of named cells, whatever its format."""
    head = _head(path)
    if b"brain.Event:" in head[:64]:
        return _read_events(path)
    text = _decode(path, head)
    if not text.strip():
        raise RecordingError(f"{path} is empty; give a file with a loss on every line")
    # "[" and "{" begin no number and no sensible column name.
    rows = _read_json(path, text) if text.lstrip()[0] in "[{" else _read_csv(path, text)
    if not rows:
        raise RecordingError(f"{path} holds no losses; give a recorded loss curve")
    return rows


def _head(path: Path) -> bytes:
    """The first bytes, once it is certain that this is a file that can be read."""
    try:
        if path.is_dir():
            raise RecordingError(f"{path} is a folder; {_advice(path)}")
        if not path.exists():
            raise RecordingError(f"{path} does not exist; give the path of a recorded loss curve")
        if not path.is_file():
            raise RecordingError(f"{path} is not a file; give the path of a recorded loss curve")
        with path.open("rb") as stream:
            return stream.read(SNIFFED_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecordingError(f"{path} cannot be read: {reason}") from None


def _advice(folder: Path) -> str:
    """What in the folder could have been meant."""
    patterns = ("trainer_state.json", "*tfevents*", "metrics.csv", "*.csv", "*.jsonl")
    inside = (found for pattern in patterns for found in sorted(folder.glob(pattern)))
    found = next(inside, None)
    return "give a file" if found is None else f"give a file in it, such as {found}"


def _decode(path: Path, head: bytes) -> str:
    """The whole file as text; a binary one is refused by its beginning, before it is all read."""
    if b"\0" in head:
        raise RecordingError(
            f"{path} is not text: it holds a zero byte at offset {head.index(0)}; give CSV, JSON "
            "lines, a trainer_state.json or a TensorBoard event file"
        )
    try:
        # Not final: the cut may fall inside a character.
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordingError(
            f"{path} is not text: byte 0x{error.object[error.start]:02x} at offset {error.start} "
            "is not UTF-8; give CSV, JSON lines, a trainer_state.json or a TensorBoard event file"
        ) from None


def _read_csv(path: Path, text: str) -> Rows:
    """Rows below a header; without one, the columns are called 1, 2, …; a single one is the loss.

    The delimiter is whichever of comma, semicolon, tab and bar the first line has most of.
    """
    first = text.lstrip().splitlines()[0]
    delimiter = max(DELIMITERS, key=first.count)
    try:
        lines = [
            cells
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise RecordingError(f"{path} is not a table: {error}; give CSV or JSON lines") from None
    if not lines:
        return []
    names = [cell.strip() for cell in lines[0]]
    if all(map(_is_number, names)):
        names = ["loss"] if len(names) == 1 else [str(n) for n in range(1, len(names) + 1)]
    else:
        lines = lines[1:]
    return [dict(zip(names, cells, strict=False)) for cells in lines]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_json(path: Path, text: str) -> Rows:
    """One document, or one on every line."""
    try:
        return _rows_of(path, json.loads(text))
    except (ValueError, RecursionError):
        pass
    rows: Rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows += _rows_of(path, [json.loads(line)])
            except (ValueError, RecursionError):
                raise RecordingError(
                    f"{path}, line {number}: this is not JSON, and neither is the whole file; "
                    'give one object such as {"step": 1, "loss": 2.3} on every line'
                ) from None
    return rows


def _rows_of(path: Path, document: Any) -> Rows:
    """Rows of a Trainer's state, a list of objects, a list of losses, or an object of lists."""
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    if isinstance(document, dict):
        lists = {name: cells for name, cells in document.items() if isinstance(cells, list)}
        if not lists:
            return [_flat(document)]
        length = max(map(len, lists.values()))
        return [
            {name: cells[i] for name, cells in lists.items() if i < len(cells)}
            for i in range(length)
        ]
    if all(isinstance(entry, dict) for entry in document):
        return [_flat(entry) for entry in document]
    if not any(isinstance(entry, (dict, list)) for entry in document):
        return [{"loss": entry} for entry in document]
    raise RecordingError(
        f"{path} is JSON, but no list of objects or of losses; give one object such as "
        '{"step": 1, "loss": 2.3} on every line'
    )


def _flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"loss": 1}} as {"train/loss": 1}."""
    cells: dict[str, Any] = {}
    for name, cell in entry.items():
        if isinstance(cell, Mapping):
            cells |= _flat(cell, f"{prefix}{name}/")
        else:
            cells[prefix + name] = cell
    return cells


def _read_events(path: Path) -> Rows:
    """A TensorBoard event file: a row per step, a column per scalar tag."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise RecordingError(
            f"{path} is a TensorBoard event file, which takes tensorboard to read ({error}): "
            "`pip install tensorboard`, or `pip install 'adaptiverl[tensorboard]'`"
        ) from None
    rows: dict[int, dict[str, Any]] = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if not value.HasField("tensor"):
                continue
            number = tensor_util.make_ndarray(value.tensor)
            if number.size == 1 and number.dtype.kind in "fiu":
                # A step logged twice is a run that was resumed: the later one counts.
                row = rows.setdefault(event.step, {"step": event.step})
                row[value.tag] = float(number.reshape(()))
    if not rows:
        raise RecordingError(f"{path} is a TensorBoard event file without any scalar in it")
    return list(rows.values())
