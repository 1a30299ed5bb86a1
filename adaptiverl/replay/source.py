"""The bytes of a file, and its text; its size is looked at before it is read."""

from __future__ import annotations

import codecs
from pathlib import Path

from adaptiverl.replay.table import RecordingError

MAX_BYTES = 1 << 27
SNIFFED_BYTES = 1 << 16


def head_of(path: Path) -> bytes:
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


def decode(path: Path, head: bytes) -> str:
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
