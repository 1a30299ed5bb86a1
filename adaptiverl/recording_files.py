"""Files that other tools record, as rows of named cells: CSV, JSON, MLflow's, TensorBoard's.

A file is somebody else's. So its size is looked at before it is read, and what it would grow to
before it is taken apart; what cannot be used raises `RecordingError`, whose message is one line
that names the file, what is wrong with it and what to do.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

MAX_BYTES = 1 << 27
MAX_ROWS = 2_000_000
MAX_CELLS = 10_000_000
"""A cell is about 100 bytes of memory, a row about 300."""
MAX_COLUMNS = 10_000
MAX_NAME = 1_000
MAX_RECORD = 1 << 24
"""Of an event file; two of its bytes can become eighty in memory."""
MAX_DEPTH = 16
DELIMITERS = ",;\t|"
SNIFFED_BYTES = 1 << 16
MLFLOW_NAMES = ("timestamp", "loss", "step")
MLFLOW_NORM = "grad_norm"
"""The file in which Hugging Face's Trainer has MLflow keep it, beside the loss's."""
NUMBERS = {1, 2, 3, 4, 5, 6, 9, 17, 19}
"""What an event file calls float32, float64, int32, uint8, int16, int8, int64, uint16, float16."""


class RecordingError(Exception):
    """A file that cannot be used; the message is one line and says what to do."""


class Table:
    """Rows of named cells, no more of them than memory is meant to hold.

    Attributes:
        path: the file.
        rows: in the file's order.
        columns: every name, in the order of appearance; each its own value, so that all rows can
            share one string.
        remarks: what was left out of the file, a clause each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.columns: dict[str, str] = {}
        self.remarks: list[str] = []
        self._cells = 0

    def add(self, row: Row) -> None:
        """Append a row, which is empty or has its names from `name`."""
        self.rows.append(row)
        self.expect_rows(len(self.rows))
        self.count(len(row))

    def count(self, cells: int) -> None:
        """Note that there are so many more cells."""
        self._cells += cells
        self.expect(self._cells)

    def expect_rows(self, rows: int) -> None:
        """Refuse a file that would grow to so many rows."""
        if rows > MAX_ROWS:
            raise self.too_large(f"{MAX_ROWS:,} entries")

    def expect(self, cells: int) -> None:
        """Refuse a file that would grow to so many cells."""
        if cells > MAX_CELLS:
            raise self.too_large(f"{MAX_CELLS:,} values")

    def name(self, name: str) -> str:
        """A column's name as all rows share it."""
        known = self.columns.get(name)
        if known is not None:
            return known
        if len(name) > MAX_NAME:
            raise RecordingError(
                f"{self.path} has a column whose name is longer than {MAX_NAME:,} letters, the "
                f"most that is read, and begins with {name[:40]!r}; give it a shorter one"
            )
        if len(self.columns) >= MAX_COLUMNS:
            raise self.too_large(f"{MAX_COLUMNS:,} columns")
        self.columns[name] = name
        return name

    def too_large(self, limit: str) -> RecordingError:
        """What to raise where there is more than a limit."""
        return RecordingError(
            f"{self.path} has more than {limit}, the most that is read; give a part of it, or the "
            "loss alone"
        )


def read_table(path: Path) -> Table:
    """The file as a table, whatever its format.

    Raises:
        RecordingError: It cannot be read, is too large, damaged, or none of the formats.
    """
    head = _head(path)
    table = Table(path)
    if b"brain.Event:" in head[:64]:
        _read_events(table)
        return table
    text = _decode(path, head)
    if not text.strip():
        raise RecordingError(f"{path} is empty; give a file with a loss on every line")
    # "[" and "{" begin no number and no sensible column name.
    (_read_json if text.lstrip()[0] in "[{" else _read_lines)(table, text)
    if not table.rows:
        raise RecordingError(f"{path} holds no losses; give a recorded loss curve")
    return table


def _head(path: Path) -> bytes:
    """The first bytes, once it is certain that this is a file that can be read."""
    try:
        if path.is_dir():
            raise RecordingError(f"{path} is a folder; {_advice(path)}")
        if not path.exists():
            raise RecordingError(f"{path} does not exist; give the path of a recorded loss curve")
        if not path.is_file():
            raise RecordingError(f"{path} is not a file; give the path of a recorded loss curve")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RecordingError(
                f"{path} has {size / 2**20:,.0f} MiB, and {MAX_BYTES / 2**20:,.0f} MiB is the most "
                "that is read; give a part of it, or the loss alone"
            )
        with path.open("rb") as stream:
            return stream.read(SNIFFED_BYTES)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> RecordingError:
    reason = error.strerror if isinstance(error, OSError) else error
    return RecordingError(f"{path} cannot be read: {reason}")


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
        # It may have grown since its size was looked at.
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordingError(
            f"{path} is not text: byte 0x{error.object[error.start]:02x} at offset {error.start} "
            "is not UTF-8; give CSV, JSON lines, a trainer_state.json or a TensorBoard event file"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None


# Text


def _read_lines(table: Table, text: str) -> None:
    """CSV, or numbers between blanks, as MLflow and NumPy write them."""
    match = re.match(r"\s*([^\r\n]*)", text)
    first = match[1][:SNIFFED_BYTES] if match else ""
    delimiter = max(DELIMITERS, key=first.count)
    numbers = first.split()
    if _is_mlflow(numbers):
        _read_blanks(table, text, MLFLOW_NAMES)
        _join_mlflow_norm(table)
    elif delimiter not in first and len(numbers) > 1 and all(map(_is_number, numbers)):
        wide = _read_blanks(table, text, _names(len(numbers)))
        _remark_wide(table, wide)
    else:
        _read_csv(table, text, delimiter)


def _read_csv(table: Table, text: str, delimiter: str) -> None:
    """Rows below a header; without one, columns are called 1, 2, …; a single one is the loss."""
    # A single line may hold them all.
    table.expect(text.count(delimiter))
    lines = (
        cells
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        if any(cell.strip() for cell in cells)
    )
    try:
        first = next(lines, [])
        header = [cell.strip() for cell in first]
        given = not all(map(_is_number, header))
        names = [table.name(name) for name in (header if given else _names(len(header)))]
        if first and not given:
            table.add(dict(zip(names, first, strict=False)))
        again = wide = 0
        for cells in lines:
            if given and cells == first:
                again += 1
                continue
            wide += any(cell.strip() for cell in cells[len(names) :])
            table.add(dict(zip(names, cells, strict=False)))
    except csv.Error as error:
        raise RecordingError(
            f"{table.path} is not a table: {error}; give CSV or JSON lines"
        ) from None
    if again:
        table.remarks.append(f"its header comes again {times(again)}")
    _remark_wide(table, wide)


def _read_blanks(table: Table, text: str, names: Iterable[str]) -> int:
    """Numbers in lines, blanks between them, and no header; how many lines have more than names."""
    shared = [table.name(name) for name in names]
    wide = 0
    for line in io.StringIO(text):
        cells = line.split(None, len(shared))
        if cells:
            wide += len(cells) > len(shared)
            table.add(dict(zip(shared, cells, strict=False)))
    return wide


def _remark_wide(table: Table, wide: int) -> None:
    if wide:
        table.remarks.append(f"more cells than in the first row, {times(wide)}, are not read")


def _names(count: int) -> list[str]:
    """What the columns of a file without a header are called."""
    return ["loss"] if count == 1 else [str(n) for n in range(1, count + 1)]


def _is_mlflow(cells: list[str]) -> bool:
    """A line of MLflow's file of one metric: milliseconds (once seconds), the value, the step.

    The first versions wrote no step; the newest add of which data and model the value is.
    """
    return (
        len(cells) > 1
        and re.fullmatch(r"\d{9,15}", cells[0]) is not None
        and _is_number(cells[1])
        and (len(cells) == 2 or re.fullmatch(r"-?\d{1,18}", cells[2]) is not None)
    )


def _join_mlflow_norm(table: Table) -> None:
    """Put the gradient's norm beside the loss; MLflow keeps each metric in a file of its own."""
    norms = Table(table.path.with_name(MLFLOW_NORM))
    if norms.path.name == table.path.name:
        return
    try:
        _read_blanks(norms, _decode(norms.path, _head(norms.path)), MLFLOW_NAMES)
    except RecordingError:
        # There is none, or none that can be used; it is the loss that was asked for.
        return
    values = (row.get("loss") for row in norms.rows)
    found = dict(zip(_readings(norms.rows), values, strict=True))
    name = table.name(MLFLOW_NORM)
    for key, row in zip(_readings(table.rows), table.rows, strict=True):
        if key in found:
            row[name] = found[key]


def _readings(rows: Iterable[Row]) -> Iterator[tuple[Any, int]]:
    """Of each row its step, and how often that came before."""
    seen: dict[Any, int] = {}
    for row in rows:
        step = row.get("step")
        seen[step] = seen.get(step, -1) + 1
        yield step, seen[step]


def times(n: int) -> str:
    """How often, for a message."""
    return "once" if n == 1 else f"{n:,} times"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# JSON


def _read_json(table: Table, text: str) -> None:
    """One document, or one on every line."""
    # Hardly a value without one of these in front: the most that it can grow to in memory.
    table.expect(sum(map(text.count, ",[{")))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        for number, line in enumerate(io.StringIO(text), 1):
            if line.strip():
                _add_documents(table, [_parse_line(table.path, number, line)])
    else:
        _add_documents(table, document)


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise RecordingError(
            f"{path}, line {number}: this is not JSON, and neither is the whole file; "
            'give one object such as {"step": 1, "loss": 2.3} on every line'
        ) from None


def _add_documents(table: Table, document: Any) -> None:
    """Rows of a Trainer's state, a list of objects, a list of losses, or an object of lists."""
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        document = document["log_history"]
    if isinstance(document, dict):
        lists = {name: cells for name, cells in document.items() if isinstance(cells, list)}
        if lists:
            _add_lists(table, lists)
            return
        document = [document]
    if all(isinstance(entry, dict) for entry in document):
        for entry in document:
            row: Row = {}
            _flatten(table, entry, row)
            table.add(row)
    elif not any(isinstance(entry, (dict, list)) for entry in document):
        name = table.name("loss")
        for entry in document:
            table.add({name: entry})
    else:
        raise RecordingError(
            f"{table.path} is JSON, but no list of objects or of losses; give one object such as "
            '{"step": 1, "loss": 2.3} on every line'
        )


def _add_lists(table: Table, lists: Mapping[str, list[Any]]) -> None:
    """A column each. The work is that of the cells that are there, not of rows times columns."""
    longest = max(map(len, lists.values()))
    table.expect_rows(longest)
    rows: list[Row] = [{} for _ in range(longest)]
    for given, cells in lists.items():
        name = table.name(given)
        for row, cell in zip(rows, cells, strict=False):
            row[name] = cell
    for row in rows:
        table.add(row)


def _flatten(
    table: Table, entry: Mapping[str, Any], row: Row, prefix: str = "", depth: int = 1
) -> None:
    """{"train": {"loss": 1}} as {"train/loss": 1}, into the row."""
    if depth > MAX_DEPTH:
        raise RecordingError(
            f"{table.path} holds an object {MAX_DEPTH} objects deep; give one such as "
            '{"step": 1, "loss": 2.3} on every line'
        )
    for name, cell in entry.items():
        if isinstance(cell, Mapping):
            # A long name is not repeated for each that it stands in front of; `name` refuses it.
            _flatten(table, cell, row, f"{prefix}{name[: MAX_NAME + 1]}/", depth + 1)
        else:
            row[table.name(prefix + name)] = cell


# TensorBoard


def _read_events(table: Table) -> None:
    """An event file: a row per step, a column per scalar tag.

    A step restarts, or is not given at all, in many a file. So a tag that comes again at a step
    begins another row: the n-th readings of a step's tags belong together.
    """
    read_scalars, checksum = _event_parser(table.path)
    rows: dict[tuple[int, int], Row] = {}
    seen: dict[tuple[int, str], int] = {}
    step_name = table.name("step")
    for offset, record in _records(table, checksum):
        for step, tag, value in read_scalars(offset, record):
            name = table.name(tag)
            times = seen.get((step, name), 0)
            seen[step, name] = times + 1
            row = rows.get((step, times))
            if row is None:
                row = rows[step, times] = {step_name: step}
                table.add(row)
            row[name] = value
            table.count(1)
    if not rows:
        raise RecordingError(f"{table.path} is a TensorBoard event file without any scalar in it")


Scalars = Iterator[tuple[int, str, float]]


def _event_parser(path: Path) -> tuple[Callable[[int, bytes], Scalars], Callable[[bytes], int]]:
    """What takes a record apart into (step, tag, value), and the checksum of one."""
    try:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
        from tensorboard.util import tensor_util
    except ImportError as error:
        raise RecordingError(
            f"{path} is a TensorBoard event file, which takes tensorboard to read ({error}): "
            "`pip install tensorboard`, or `pip install 'adaptiverl[tensorboard]'`"
        ) from None

    def scalars(offset: int, record: bytes) -> Scalars:
        try:
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield event.step, value.tag, value.simple_value
                elif value.HasField("tensor") and _is_scalar(value.tensor):
                    number = tensor_util.make_ndarray(value.tensor)
                    yield event.step, value.tag, float(number.reshape(()))
        except (DecodeError, ValueError):
            raise _damaged(path, offset, "cannot be taken apart") from None

    return scalars, masked_crc32c


def _is_scalar(tensor: Any) -> bool:
    """Whether it is one number, by what it declares.

    A tensor of any size can be one number, repeated: it must not be made to find out.
    """
    return tensor.dtype in NUMBERS and all(dim.size == 1 for dim in tensor.tensor_shape.dim)


def _records(table: Table, checksum: Callable[[bytes], int]) -> Iterator[tuple[int, bytes]]:
    """The records of an event file and where each begins; nothing is read that is not there.

    A record is its length (8 bytes), the length's checksum (4), the data, the data's checksum (4).
    A last one that breaks off is that of a run that was killed, or goes on.
    """
    path = table.path
    try:
        with path.open("rb") as stream:
            size = min(path.stat().st_size, MAX_BYTES)
            offset = passed = 0
            while size - offset >= 12:
                head = stream.read(12)
                length, sum_of_length = struct.unpack("<QI", head)
                if checksum(head[:8]) != sum_of_length:
                    raise _damaged(path, offset, "fails its checksum")
                if length > size - offset - 16:
                    break
                if length > MAX_RECORD:
                    # A picture or a graph.
                    stream.seek(length + 4, 1)
                    offset += length + 16
                    passed += 1
                    continue
                record = stream.read(length)
                (sum_of_record,) = struct.unpack("<I", stream.read(4))
                if checksum(record) != sum_of_record:
                    raise _damaged(path, offset, "fails its checksum")
                yield offset, record
                offset += length + 16
    except (OSError, struct.error) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from None
    if passed:
        table.remarks.append(
            f"more than {MAX_RECORD >> 20} MiB in a record, {times(passed)}, not read"
        )
    if offset < size:
        table.remarks.append(
            f"the file breaks off inside a record: its last {size - offset:,} bytes are not read"
        )


def _damaged(path: Path, offset: int, what: str) -> RecordingError:
    return RecordingError(
        f"{path} is a damaged TensorBoard event file: the record at byte {offset} {what}; give "
        f"another, or what comes before (head -c {offset})"
    )
