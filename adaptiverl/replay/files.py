"""Files that other tools record, as rows of named cells: CSV, JSON, MLflow's, TensorBoard's."""

from __future__ import annotations

from pathlib import Path

from adaptiverl.replay.event_files import read_events
from adaptiverl.replay.json_files import read_json
from adaptiverl.replay.source import decode, head_of
from adaptiverl.replay.table import RecordingError, Table
from adaptiverl.replay.text_files import read_lines


def read_table(path: Path) -> Table:
    """The file as a table, whatever its format.

    Raises:
        RecordingError: It cannot be read, is too large, damaged, or none of the formats.
    """
    head = head_of(path)
    table = Table(path)
    if b"brain.Event:" in head[:64]:
        read_events(table)
        return table
    text = decode(path, head)
    if not text.strip():
        raise RecordingError(f"{path} is empty; give a file with a loss on every line")
    # "[" and "{" begin no number and no sensible column name.
    (read_json if text.lstrip()[0] in "[{" else read_lines)(table, text)
    if not table.rows:
        raise RecordingError(f"{path} holds no losses; give a recorded loss curve")
    return table
