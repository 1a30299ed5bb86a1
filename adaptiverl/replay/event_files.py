"""TensorBoard's event files; what a record would grow to is looked at before it is taken apart."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adaptiverl.replay.source import MAX_BYTES
from adaptiverl.replay.table import RecordingError, Row, Table, times

MAX_RECORD = 1 << 24
"""Of an event file; two of its bytes can become eighty in memory."""
NUMBERS = {1, 2, 3, 4, 5, 6, 9, 17, 19}
"""What an event file calls float32, float64, int32, uint8, int16, int8, int64, uint16, float16."""


def read_events(table: Table) -> None:
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
            "pip install tensorboard"
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
