"""The last updates of the knobs: the ring on the device, and what a user reads of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from adaptiverl.layout import TRACE_COLUMNS

TRACE_CAPACITY = 4096


class Trace(Mapping[str, Tensor]):
    """The last updates of the knobs, oldest first: a column name to a float64 CPU tensor [updates].

    Columns: step, loss, reward, loss_mean, reward_mean, loss_direction, reward_direction, variance,
    plateau, lr (α), momentum (μ), noise (σ); of the alignment law, which adds a row every K steps,
    observed or not: alignment (h), alignment_direction (x), alignment_mean (e), held (0 or 1); of
    the bandit: arm, the one that made this update; played_count and played_mean, what was known of
    it when it was chosen; window_reward, the last window's. Other arms are as when they were last
    played, their counts times γ for each window since. Where sums are taken, else 0: gradient_rms,
    gradient_variance, update_rms (method.md#gradient-sensors). Of the distilled law: move_lr,
    move_momentum, move_noise, what it asked for, in log- and logit-units of a whole run. Of pulses:
    pulse, the newest held-out loss; pulse_mean and pulse_limit, what is compared; pulse_cuts, times
    that α was cut.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __getitem__(self, column: str) -> Tensor:
        if column not in TRACE_COLUMNS:
            raise KeyError(f"the trace has no column {column!r}; it has {', '.join(TRACE_COLUMNS)}")
        return self._rows[:, TRACE_COLUMNS.index(column)]

    def __iter__(self) -> Iterator[str]:
        return iter(TRACE_COLUMNS)

    def __len__(self) -> int:
        return len(TRACE_COLUMNS)

    def __repr__(self) -> str:
        return f"Trace({self._rows.shape[0]} updates: {', '.join(TRACE_COLUMNS)})"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the columns' names, then one row per update; every float64 reads back the same.

        Raises:
            OSError: The file cannot be written.
        """
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(TRACE_COLUMNS)
            writer.writerows((int(step), *rest) for step, *rest in self._rows.tolist())


class Ring:
    """The rows that the controller writes on its device, the oldest overwritten first.

    Attributes:
        rows: float64 [1 + capacity, columns]: how many rows were written, then the rows. None
            until something may be written.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """The rows, made now if they are not there.

        Only what was written is ever touched, so that many optimizers of few updates do not fill
        the host's memory with what is empty.
        """
        if self.rows is None:
            shape = (1 + TRACE_CAPACITY, len(TRACE_COLUMNS))
            self.rows = torch.empty(shape, dtype=torch.float64, device=device)
            self.empty()
        return self.rows

    def to(self, move: Callable[[Tensor], Tensor]) -> None:
        """Let `move` bring the rows to another device."""
        self.rows = None if self.rows is None else move(self.rows)

    def empty(self) -> None:
        """Nothing is written."""
        if self.rows is not None:
            self.rows[0].zero_()

    def read(self) -> Trace:
        """What is written, oldest first. Waits for the device."""
        if self.rows is None:
            shape = (0, len(TRACE_COLUMNS))
            return Trace(torch.empty(shape, dtype=torch.float64, device="cpu"))
        written = int(self.rows[0, 0])
        rows = self.rows[1 : 1 + min(written, TRACE_CAPACITY)].to("cpu", copy=True)
        if written <= TRACE_CAPACITY:
            return Trace(rows)
        return Trace(rows.roll(-(written % TRACE_CAPACITY), dims=0))
