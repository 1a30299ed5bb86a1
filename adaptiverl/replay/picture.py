"""The picture of a replayed run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from adaptiverl import plots
from adaptiverl.layout import State
from adaptiverl.replay.recordings import Recording
from adaptiverl.replay.updates import Push

PICTURE = "replay.png"
COLUMNS = ("loss", "loss_mean", "plateau", "lr", "momentum", "noise", "arm")
"""What `plots.knobs` draws over the steps."""


def draw(
    file: Path,
    folder: Path,
    recording: Recording,
    history: Sequence[State],
    updates: Sequence[Push],
) -> str:
    """Draw every logged loss and the knobs; return the line that says where, or why not."""
    columns = {name: [getattr(state, name) for state in history] for name in COLUMNS}
    columns["step"] = recording.steps
    columns["plateau"] = _held(columns["plateau"], updates)
    path = folder / PICTURE
    title = f"Open loop: what the controller would have done on {file.name}"
    try:
        plots.knobs(columns, path, title=title)
    except ImportError as error:
        return f"No picture: {error}"
    return f"Picture: {path}"


def _held(scores: Sequence[float], updates: Sequence[Push]) -> list[float]:
    """The plateau score as the law saw it: between two updates nothing reads it."""
    held = [math.nan] * len(scores)
    ends = [push.index for push in updates[1:]] + [len(scores)]
    for push, end in zip(updates, ends, strict=True):
        held[push.index : end] = [scores[push.index]] * (end - push.index)
    return held
