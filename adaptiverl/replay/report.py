"""What was read and what became of it: paragraphs before the table, and the table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from adaptiverl.control import Control
from adaptiverl.layout import State
from adaptiverl.replay.recordings import Recording
from adaptiverl.replay.updates import Push
from adaptiverl.replay.words import counted, ordinal

TABLE_ROWS = 12


def introduction(
    file: Path, recording: Recording, control: Control, reward_column: str | None
) -> list[str]:
    """What was read, what became of it, that the loop is open, what K counts; a paragraph each."""
    steps, count = recording.steps, len(recording.losses)
    what = f"{file}: {count:,} losses in column {recording.column!r}"
    if recording.step_column is None:
        what += f", counted from 1 as {recording.order.counted}"
    else:
        what += f", steps {steps[0]:,.0f} to {steps[-1]:,.0f} in column {recording.step_column!r}"
    if recording.skipped:
        what += f"; {recording.skipped:,} entries without one left out"
    if reward_column is not None:
        what += f"; reward in column {reward_column!r}"
    elif recording.other_reward is not None:
        what += f"; column {recording.other_reward!r} is not used (--reward-column would)"
    open_loop = (
        "Open loop: the recorded run did not feel these knobs. In training the loss would answer "
        "to them, and they to it; read the directions, not the sizes."
    )
    changed = " ".join(f"{sentence}." for sentence in changes(recording))
    return [
        f"{what}.",
        *([changed] if changed else []),
        open_loop,
        _cadence_line(control, recording),
    ]


def changes(recording: Recording) -> list[str]:
    """What is not as it stands in the file, a sentence each, without the full stop."""
    order, hidden = recording.order, recording.hidden
    sentences = [f"{remark[0].upper()}{remark[1:]}" for remark in recording.remarks]
    if order.newest_first:
        sentences.append("The newest came first: all turned round")
    if order.moved:
        sentences.append(f"{counted(order.moved, 'entry')} stood behind a later step: put in order")
    if order.repeated:
        sentences.append(
            f"{counted(order.repeated, 'entry')} left out, as the same step comes again: the "
            "later one counts"
        )
    if hidden.zeros:
        sentences.append(
            f"{counted(hidden.zeros, 'loss')} of 0 beside a {hidden.norm!r} that is not finite, "
            "taken as NaN: Hugging Face's Trainer logs NaN as 0 (logging_nan_inf_filter)"
        )
    if hidden.others:
        sentences.append(
            f"{counted(hidden.others, 'other loss')} beside such a norm, used as logged"
        )
    if hidden.doubtful:
        sentences.append(
            f"{counted(hidden.doubtful, 'loss')} of exactly 0, used as logged; but Hugging Face's "
            "Trainer logs NaN as 0 (logging_nan_inf_filter), and no gradient norm beside says "
            "which it was"
        )
    return sentences


def _cadence_line(control: Control, recording: Recording) -> str:
    every = control.every
    if every is None:
        return "Epoch-wise: one update at each loss."
    steps = recording.steps
    gap = statistics.median(b - a for a, b in itertools.pairwise(steps))
    line = f"K = {every}: one update at every {ordinal(every)} logged loss"
    if gap > 1:
        line += (
            f". They are {gap:g} steps apart, so that is one per {gap * every:,.0f} training "
            "steps; the average remembers logged losses too, not steps"
        )
        if every > 1:
            line += ". --every 1 updates at each of them"
    return f"{line}."


def table(
    recording: Recording,
    history: Sequence[State],
    updates: Sequence[Push],
    start: State,
) -> str:
    """A dozen updates, evenly spread over the curve, the first and the last among them."""
    last = len(updates) - 1
    count = min(TABLE_ROWS, len(updates))
    chosen = [updates[round(i * last / max(count - 1, 1))].index for i in range(count)]
    header = ("step", "loss", "average", "Δ̃ℓ", "Δ̃r", "P", "α", "α/start", "μ", "σ")
    rows = [
        (
            f"{recording.steps[i]:,.0f}",
            f"{history[i].loss:.4g}",
            f"{history[i].loss_mean:.4g}",
            f"{history[i].loss_direction:+.2f}",
            f"{history[i].reward_direction:+.2f}",
            f"{history[i].plateau:.2f}",
            f"{history[i].lr:.3g}",
            f"{history[i].lr / start.lr:.2f}",
            f"{history[i].momentum:.3f}",
            f"{history[i].noise:.2g}",
        )
        for i in chosen
    ]
    widths = [max(_width(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            " " * (width - _width(cell)) + cell for width, cell in zip(widths, line, strict=True)
        )
        for line in [header, *rows]
    )


def _width(text: str) -> int:
    """Columns on a terminal: a combining tilde takes none."""
    return len(text.replace("\u0303", ""))
