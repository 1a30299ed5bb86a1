"""Recorded losses, written in every format that has a step, and what the command says of them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adaptiverl.replay import command

NAN = math.nan
Rows = list[dict[str, float]]


def falling(count: int = 60) -> list[float]:
    """A falling, noisy loss, the same every time; exact in float32, as event files hold it."""
    draw = random.Random(3)
    return [
        round(1024 * (1 + 2 * math.exp(-i / 20) + 0.2 * draw.random())) / 1024 for i in range(count)
    ]


def as_csv(folder: Path, rows: Rows) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
    (folder / "a.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    return folder / "a.csv"


def as_json_lines(folder: Path, rows: Rows) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def as_json_of_lists(folder: Path, rows: Rows) -> Path:
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    (folder / "a.json").write_text(json.dumps(lists))
    return folder / "a.json"


def as_trainer_state(folder: Path, rows: Rows) -> Path:
    file = folder / "trainer_state.json"
    file.write_text(json.dumps({"global_step": len(rows), "log_history": rows}, indent=2))
    return file


def as_mlflow(folder: Path, rows: Rows) -> Path:
    """A file per metric: time, value, step."""
    for name in set(rows[0]) - {"step"}:
        lines = [f"{1_700_000_000_000 + i} {row[name]} {row['step']}" for i, row in enumerate(rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder / "loss"


def as_events(folder: Path, rows: Rows) -> Path:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name in set(row) - {"step"}:
                writer.add_scalar(f"train/{name}", row[name], int(row["step"]))
    return next(folder.glob("*tfevents*"))


FORMATS = [as_csv, as_json_lines, as_json_of_lists, as_trainer_state, as_mlflow, as_events]
every_format = pytest.mark.parametrize("write", FORMATS)
Write = Callable[[Path, Rows], Path]


def rows_of(steps: Sequence[int], losses: Sequence[float]) -> Rows:
    return [{"step": step, "loss": loss} for step, loss in zip(steps, losses, strict=True)]


class Said:
    """What the command printed and returned."""

    def __init__(
        self, folder: Path, capture: Any, file: Path | str, options: Sequence[str]
    ) -> None:
        try:
            given = ["replay", str(file), "--out", str(folder / "out"), *options]
            self.status = command.main(given)
        except SystemExit as stop:
            self.status = int(stop.code or 0)
        self.out, self.err = capture.readouterr()
        self.flat = " ".join(self.out.split())

    def refused(self) -> str:
        """The one line of a refusal."""
        assert (self.status, self.out, self.err.count("\n")) == (2, "", 1), self.err
        return self.err
