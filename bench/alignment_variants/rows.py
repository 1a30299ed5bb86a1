"""The runs as rows of a CSV file, so that a report can be made again without training again."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


class RowsError(Exception):
    """A file of rows cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        task: Its name.
        law: Name of the schedule or variant.
        rate: The user's.
        seed: Of weights and batches.
        held_out: Held-out loss after the last step.
        train: Loss on training examples after the last step.
        found: α after the last step, without annealing.
        held_at: The step at which it was held; NaN where it never was.
        early: Mean score (h over its RMS, within ±2) of steps 21 to 100.
        middle: Of steps 101 to T/2.
        late: Of the second half.
        made: When and with what.
    """

    task: str
    law: str
    rate: float
    seed: int
    held_out: float
    train: float
    found: float
    held_at: float = math.nan
    early: float = math.nan
    middle: float = math.nan
    late: float = math.nan
    made: str = ""


KINDS: dict[str, type] = {
    field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Row)
}


def write(rows: Iterable[Row], path: Path) -> None:
    """Write these rows, and a line of their columns first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(KINDS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` wrote.

    Raises:
        RowsError: The file cannot be read, or it is not one of rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [_row(record) for record in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path} cannot be read: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise RowsError(
            f"{path} is not a file of rows ({type(error).__name__}: {error}); expected one that "
            f"--rows wrote, with the columns {', '.join(KINDS)}"
        ) from None
    if not found:
        raise RowsError(f"{path} has no rows; expected one that --rows wrote")
    return found


def _row(record: dict[str, Any]) -> Row:
    return Row(**{name: kind(record[name]) for name, kind in KINDS.items()})
