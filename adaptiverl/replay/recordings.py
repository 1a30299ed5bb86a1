"""Loss curves that other tools recorded: which column is the loss, and the order of training.

A file becomes rows of named cells (`files`); one column is the loss, and the rows without
one (a Trainer's evaluations, say) are left out. The rest is put in the order of training, and a NaN
that was logged as 0 is made one again. All that is counted, for whoever asked to be told.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from adaptiverl.replay.files import read_table
from adaptiverl.replay.table import RecordingError, Row, times

# Columns that are the training loss without a doubt, the likeliest first, as `plain` spells them.
LOSS_NAMES = (
    "loss",
    "train_loss",
    "training_loss",
    "loss_train",
    "loss_training",
    "train_loss_step",
    "step_loss",
    "batch_loss",
    "loss_step",
    "train_loss_total",
    "total_loss",
    "nll",
)
STEP_NAMES = ("step", "global_step", "trainer_global_step", "iteration", "iter", "steps", "update")
# A name that says one of these is no loss that the optimizer saw, or not the loss itself.
NOT_TRAINING = {"val", "valid", "validation", "eval", "evaluation", "test", "dev", "min", "max"}
REWARD_NAMES = (
    "reward",
    "mean_reward",
    "reward_mean",
    "rewards",
    "episode_reward",
    "ep_rew_mean",
    "return",
    "mean_return",
    "episode_return",
)
NORM_NAMES = ("grad_norm", "gradient_norm")
LARGEST_STEP = 2**53
LISTED_COLUMNS = 20
LISTED_LETTERS = 60


@dataclass(frozen=True)
class Order:
    """Readings in the order of training.

    Attributes:
        kept: their places in the file.
        counted: why their steps are counted from 1, not read; ``None`` if they are read.
        newest_first: the file was turned round.
        moved: readings that a larger step stood in front of.
        repeated: readings left out, as their step comes again later.
    """

    kept: Sequence[int]
    counted: str | None = None
    newest_first: bool = False
    moved: int = 0
    repeated: int = 0


@dataclass(frozen=True)
class Hidden:
    """Losses that may not be what they say (`_unhide`).

    Attributes:
        norm: the column of the gradient's norm, or ``None``.
        zeros: losses of 0 beside a norm that is not finite; NaN in `Recording.losses`.
        others: further losses beside such a norm; as logged.
        doubtful: losses of 0 without any norm beside; as logged.
    """

    norm: str | None
    zeros: int
    others: int
    doubtful: int


@dataclass(frozen=True)
class Recording:
    """A recorded curve.

    Attributes:
        steps: the training step of each loss, rising; 1, 2, … where the file's cannot be used.
        losses: in the order of training; may hold values that are not finite.
        rewards: beside each loss, or ``None`` where a row has none; empty if none were asked for.
        column: the loss's name in the file.
        step_column: the step's, or ``None`` if the steps are counted.
        skipped: rows without a loss.
        columns: every column of the file.
        order: what was done to the file's order.
        hidden: what was done to losses that hide a NaN.
        other_reward: a column that could be followed as the reward, and was not asked for.
        remarks: what was left out of the file besides, a clause each.
    """

    steps: list[float]
    losses: list[float]
    rewards: list[float | None]
    column: str
    step_column: str | None
    skipped: int
    columns: tuple[str, ...]
    order: Order
    hidden: Hidden
    other_reward: str | None
    remarks: tuple[str, ...]


def read(
    path: Path, column: str | None = None, step: str | None = None, reward: str | None = None
) -> Recording:
    """Read a loss curve.

    Args:
        path: A file in one of the formats; which one is told from its content.
        column: The loss's column or tag; ``None``: the one whose name says so.
        step: The step's column; ``None``: likewise, and no matter if there is none.
        reward: The reward's column; ``None``: no rewards.

    Raises:
        RecordingError: The file cannot be read, is too large or damaged, is none of these formats,
            or has no such column.
    """
    table = read_table(path)
    columns = tuple(table.columns)
    column = _pick(path, columns, "loss", column)
    step = _pick(path, columns, "step", step)
    reward = None if reward is None else _pick(path, columns, "reward", reward)
    assert column is not None
    kept = [
        (number, row) for number, row in enumerate(table.rows, 1) if not _empty(row.get(column))
    ]

    def values(name: str) -> list[float | None]:
        return [_number(path, number, name, row.get(name)) for number, row in kept]

    skipped = len(table.rows) - len(kept)
    order = Order(range(len(kept)), "the file names no step")
    if step is not None:
        order = _order(values(step))
    kept = [kept[place] for place in order.kept]
    losses, hidden = _unhide(_floats(values(column)), kept, _norm_column(columns, column))
    if order.counted is not None:
        step = None
    return Recording(
        steps=[float(n + 1) for n in range(len(kept))] if step is None else _floats(values(step)),
        losses=losses,
        rewards=[] if reward is None else values(reward),
        column=column,
        step_column=step,
        skipped=skipped,
        columns=columns,
        order=order,
        hidden=hidden,
        other_reward=_other_reward(columns, kept) if reward is None else None,
        remarks=tuple(table.remarks),
    )


def guess(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The columns that could be meant, those of the best kind only; more than one is a doubt.

    The kinds, best first: a name of the list itself (the earliest in the list); a name that ends
    in one, as in "run 7 - train/loss", and says nothing of evaluation.
    """
    plain_names = {column: plain(column) for column in columns}
    for name in names:
        exact = [column for column in plain_names if plain_names[column] == name]
        if exact:
            return exact
    for name in names:
        ending = [
            column
            for column, spelled in plain_names.items()
            if spelled.endswith("_" + name) and not NOT_TRAINING & set(spelled.split("_"))
        ]
        if ending:
            return ending
    return []


def plain(name: str) -> str:
    """Lower case, every run of other characters one underscore: "Train/Loss" is "train_loss"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _pick(path: Path, columns: Sequence[str], what: str, given: str | None) -> str | None:
    """The column asked for, or else the one that its name gives away."""
    if given is not None:
        if given not in columns:
            raise RecordingError(f"{path} has no column {given!r}; it has {_listed(columns)}")
        return given
    found = guess(columns, STEP_NAMES if what == "step" else LOSS_NAMES)
    if what == "step":
        return found[0] if found else None
    if not found:
        raise RecordingError(
            f"{path} has no column whose name says that it is the training loss; it has "
            f"{_listed(columns)}. Choose one with --column"
        )
    if len(found) > 1:
        raise RecordingError(
            f"{path} has {len(found)} columns that could be the training loss: {_listed(found)}. "
            "Choose one with --column"
        )
    return found[0]


def _listed(columns: Sequence[str]) -> str:
    """Names for a message; quoted as Python does it, so that none can break the line."""
    names = ", ".join(map(_shown, columns[:LISTED_COLUMNS]))
    more = len(columns) - LISTED_COLUMNS
    return f"{names} and {more} more" if more > 0 else names or "no columns"


def _shown(cell: Any) -> str:
    """A name or a cell for a message: one line, and short."""
    if not isinstance(cell, (str, int, float, type(None))):
        # What it holds may be as large as the file.
        return f"a {type(cell).__name__}"
    shown = repr(cell[:LISTED_LETTERS] if isinstance(cell, str) else cell)
    return shown if len(shown) <= LISTED_LETTERS else f"{shown[: LISTED_LETTERS - 3]}..."


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _number(path: Path, row: int, column: str, cell: Any) -> float | None:
    """A cell as a float, also NaN or infinite; ``None`` for an empty one."""
    if _empty(cell):
        return None
    try:
        if isinstance(cell, bool):
            raise ValueError
        return float(cell)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        raise RecordingError(
            f"{path}, entry {row}: column {_shown(column)} holds {_shown(cell)}, which is not a "
            "number; choose another column with --column, or mend the file"
        ) from None


def _floats(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# The order of training


def _order(steps: Sequence[float | None]) -> Order:
    """Put readings in the order of their steps, as far as these are steps of the training."""
    places = range(len(steps))
    # NaN is not smaller than anything.
    if not steps or not all(value is not None and abs(value) < LARGEST_STEP for value in steps):
        # A reading without its place cannot be put among the others.
        return Order(places, "some have no step in the file, or none that can be used")
    read = _floats(steps)
    changes = [b - a for a, b in pairwise(read)]
    rises, falls = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    newest_first = 2 * rises < falls
    if newest_first:
        places = places[::-1]
    counted = _why_not(read[::-1] if newest_first else read)
    if counted is not None:
        return Order(places, counted, newest_first)
    later = {read[place]: place for place in places}
    kept = [later[step] for step in sorted(later)]
    order = sorted(kept, reverse=newest_first)
    before = accumulate((read[place] for place in order), max)
    moved = sum(read[place] < largest for place, largest in zip(order, before, strict=True))
    return Order(kept, None, newest_first, moved, len(read) - len(kept))


def _why_not(steps: Sequence[float]) -> str | None:
    """Why these are no steps of the training, though they are called so; ``None`` if they are.

    A run that was resumed goes back some way, and a writer with several threads by a reading or
    two. What goes back all the way, to within one reading of the lowest, is the batch of the epoch;
    what mostly stays where it is, the epoch, or nothing at all.
    """
    gaps = [b - a for a, b in pairwise(steps) if b > a]
    gap = statistics.median(gaps) if gaps else 0.0
    lowest = min(steps)
    seen: set[float] = set()
    backs = starts = stays = 0
    for before, step in pairwise(steps):
        seen.add(before)
        stays += step == before
        backs += step < before
        far = before - step > 2 * gap or (step < before and step in seen)
        starts += far and step - lowest < gap
    if 2 * starts > backs:
        return f"the file's step starts again {times(starts)}"
    if stays and 2 * stays >= len(steps) - 1:
        return f"{stays:,} of them repeat the step before"
    return None


# What hides a NaN


def _norm_column(columns: Sequence[str], column: str) -> str | None:
    """The gradient's norm that belongs to a loss: "train/grad_norm" to "train/loss"."""
    stem = plain(column).removesuffix("loss")
    beside = [name for name in columns if plain(name) in {stem + norm for norm in NORM_NAMES}]
    found = beside or guess(columns, NORM_NAMES)
    return found[0] if len(found) == 1 else None


def _unhide(
    losses: list[float], kept: Sequence[tuple[int, Row]], norm: str | None
) -> tuple[list[float], Hidden]:
    """Make a loss NaN that was logged as 0 beside a gradient norm that is not finite.

    Hugging Face's Trainer (``logging_nan_inf_filter``, on by default) logs the mean of those losses
    since the last entry that are finite; where none is, it logs 0.
    """
    norms = [_float_or_none(row.get(norm)) for _, row in kept] if norm else [None] * len(kept)
    bad = [value is not None and not math.isfinite(value) for value in norms]
    zeros = [loss == 0 for loss in losses]
    pairs = list(zip(zeros, bad, strict=True))
    hidden = Hidden(
        norm=norm,
        zeros=pairs.count((True, True)),
        others=pairs.count((False, True)),
        doubtful=sum(zero and value is None for zero, value in zip(zeros, norms, strict=True)),
    )
    return [
        math.nan if pair == (True, True) else loss for loss, pair in zip(losses, pairs, strict=True)
    ], hidden


def _float_or_none(cell: Any) -> float | None:
    """A cell that nobody asked for: a number if it is one."""
    try:
        return None if _empty(cell) else float(cell)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def _other_reward(columns: Sequence[str], kept: Sequence[tuple[int, Row]]) -> str | None:
    """The column that is the reward, by its name and by the numbers that it has beside losses."""
    # The last part of "train/reward"; "format_reward" is a part of a reward at most.
    last = {name: plain(re.split(r"/| - ", name)[-1]).removeprefix("train_") for name in columns}
    found = [
        name
        for wanted in REWARD_NAMES
        for name in columns
        if last[name] == wanted and not NOT_TRAINING & set(plain(name).split("_"))
    ]
    if not found:
        return None
    values = (_float_or_none(row.get(found[0])) for _, row in kept)
    return found[0] if any(value is not None and math.isfinite(value) for value in values) else None
