"""The file of finished runs: a CSV that only grows, one row a run, whole after any interruption."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bench.run.cells import Key


class RowsError(Exception):
    """A file of rows cannot be used; the message says why and what to do."""


AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class Row:
    task: str
    method: str
    factor: float  # the horizon that the method was told, over the run's steps
    rate: float  # the starting learning rate
    seed: int  # of the weights and batches
    initial: float
    final: float  # both held-out losses
    seconds: float  # wall clock of the training
    fingerprint: str  # of the task's and the method's definition and code
    steps: int  # of the run
    device: str
    torch: str
    commit: str  # of the project, with + where files differed from it
    threads: int = 1  # that torch computed with
    python: str = ""  # its version; empty in rows from before there was this column
    engine: str = "processes"  # "processes" or "vmap"
    curve: tuple[float, ...] = ()  # held-out losses at evenly spaced steps, the last at the end

    @property
    def key(self) -> Key:
        return self.task, self.method, self.factor, self.rate, self.seed

    @property
    def diverged(self) -> bool:
        """The final loss is not finite, or above the one before training."""
        return not math.isfinite(self.final) or self.final > self.initial


COLUMNS = tuple(field.name for field in fields(Row))
EARLIER = tuple(COLUMNS[: COLUMNS.index(later)] for later in ("threads", "curve"))
"""Those of files in bench/results that are older than the columns after them."""


def _curve(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


_OF_TEXT: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
KINDS = {field.name: _OF_TEXT.get(str(field.type), _curve) for field in fields(Row)}


def read(path: Path) -> list[Row]:
    """Every whole row, in the order in which they were written.

    A last line without its end is left out: whoever wrote it was killed while at it.
    """
    return [Row(**record) for record in records(path, KINDS, EARLIER)]


def records(
    path: Path, kinds: Mapping[str, Callable[[str], Any]], earlier: Container[tuple[str, ...]] = ()
) -> list[dict[str, Any]]:
    """What the whole lines hold, by column; the columns are `kinds`', or those of a row before.

    Raises:
        RowsError: Another file, or a damaged line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path} cannot be read: {error}") from None
    whole = io.StringIO(text[: text.rfind("\n") + 1])
    headings, *lines = list(csv.reader(whole)) or [list(kinds)]
    if headings != list(kinds) and tuple(headings) not in earlier:
        raise RowsError(
            f"{path} has the columns {', '.join(headings)}; expected {', '.join(kinds)}. "
            "Another version wrote it: move it away, or write to another place"
        )
    found = []
    for number, line in enumerate(lines, 2):
        try:
            named = dict(zip(headings, line, strict=True))
            found.append({name: kinds[name](cell) for name, cell in named.items()})
        except ValueError as error:
            raise RowsError(
                f"{path}, line {number}: {','.join(line)!r} is not a row ({error}); take the line "
                "out"
            ) from None
    return found


class Rows:
    """A file of rows that is being added to, by one process."""

    def __init__(self, path: Path) -> None:
        self.rows = read(path) if path.exists() else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise RowsError(f"{path} cannot be written: {error.strerror}") from None
        self._file.seek(0)
        content = self._file.read()
        if b"\n" in content and not content.startswith(_lines([COLUMNS]).encode()):
            self._file.close()
            raise RowsError(
                f"{path} is of an earlier version, with fewer columns: it can be reported, but no "
                "rows can be added. Write to another folder"
            )
        self._file.truncate(content.rfind(b"\n") + 1)
        if b"\n" not in content:
            self._write(COLUMNS)

    def append(self, row: Row) -> None:
        self.rows.append(row)
        self._write(_cells(row))

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _write(self, values: Iterable[Any]) -> None:
        self._file.write(_lines([values]).encode())
        self._file.flush()


def write(rows: Iterable[Row], path: Path) -> None:
    path.write_text(_lines([COLUMNS, *map(_cells, rows)]), encoding="utf-8")


def _cells(row: Row) -> list[Any]:
    *cells, curve = astuple(row)
    return [*cells, " ".join(f"{loss:.4g}" for loss in curve)]


def shortened(loss: float) -> float:
    """Of a curve: four digits, which are more than a picture shows."""
    return float(f"{loss:.4g}")


def _lines(records: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue()


def newest(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """The rows that belong together: for each task and method, those of its last fingerprint.

    Of two of one cell the later.
    """
    known: list[Any] = list(rows)
    wanted = {(row.task, row.method): row.fingerprint for row in known}
    kept = [row for row in known if row.fingerprint == wanted[row.task, row.method]]
    return list({row.key: row for row in kept}.values())
