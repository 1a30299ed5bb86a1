"""JSON: a Trainer's state, a list of objects or of losses, an object of lists, JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptiverl.replay.table import MAX_NAME, RecordingError, Row, Table

MAX_DEPTH = 16


def read_json(table: Table, text: str) -> None:
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
