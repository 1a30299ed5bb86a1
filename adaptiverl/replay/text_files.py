"""CSV, numbers between blanks, and MLflow's file of one metric."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from adaptiverl.replay.source import SNIFFED_BYTES, decode, head_of
from adaptiverl.replay.table import RecordingError, Row, Table, times

DELIMITERS = ",;\t|"
MLFLOW_NAMES = ("timestamp", "loss", "step")
MLFLOW_NORM = "grad_norm"
"""The file in which Hugging Face's Trainer has MLflow keep it, beside the loss's."""


def read_lines(table: Table, text: str) -> None:
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
        _read_blanks(norms, decode(norms.path, head_of(norms.path)), MLFLOW_NAMES)
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


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
