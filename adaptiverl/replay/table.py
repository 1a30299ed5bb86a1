"""Rows of named cells that somebody else's file holds, no more than memory is meant to hold.

What cannot be used raises `RecordingError`, whose message is one line that names the file, what is
wrong with it and what to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]

MAX_ROWS = 2_000_000
MAX_CELLS = 10_000_000
"""A cell is about 100 bytes of memory, a row about 300."""
MAX_COLUMNS = 10_000
MAX_NAME = 1_000


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


def times(n: int) -> str:
    """How often, for a message."""
    return "once" if n == 1 else f"{n:,} times"
