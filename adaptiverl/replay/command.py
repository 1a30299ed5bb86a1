"""The replay: read a recorded curve, let the law read its losses, print, draw.

Open loop: the law reads the losses of a run that never felt its knobs.
"""

from __future__ import annotations

import math
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from adaptiverl.law.knobs import start as started
from adaptiverl.law.numbers import numbers_of
from adaptiverl.law.replay import replay as replayed
from adaptiverl.replay.arguments import MAX_LOSSES, Request, parse
from adaptiverl.replay.picture import draw
from adaptiverl.replay.recordings import Recording, read
from adaptiverl.replay.report import introduction, table
from adaptiverl.replay.table import RecordingError
from adaptiverl.replay.updates import pushes
from adaptiverl.replay.verdict import divergence, verdict
from adaptiverl.replay.words import ordinal

WIDTH = 96


def run(request: Request) -> None:
    """Read, replay, print, draw.

    Raises:
        RecordingError: The file cannot be used, or the folder not written.
        ValueError: The start lies outside the controller's bounds.
    """
    control = request.control
    limits = control.limits(request.lr, request.momentum)
    recording = read(request.file, request.column, request.step_column, request.reward_column)
    _check_length(request, recording)
    make_folder(request.out)
    history = replayed(
        recording.losses,
        control,
        lr=request.lr,
        momentum=request.momentum,
        rewards=recording.rewards or None,
    )
    updates = pushes(history, recording.rewards, control)
    start = started(numbers_of(control, limits), control.start_lr(request.lr), request.momentum)
    for line in introduction(request.file, recording, request.control, request.reward_column):
        print(textwrap.fill(line, WIDTH, break_on_hyphens=False))
    print(f"\n{table(recording, history, updates, start)}\n")
    end = " ".join([*divergence(recording), verdict(history, updates, start, limits)])
    print(textwrap.fill(end, WIDTH, break_on_hyphens=False))
    print(f"\n{draw(request.file, request.out, recording, history, updates)}")


def _check_length(request: Request, recording: Recording) -> None:
    count, every = len(recording.losses), request.control.every or 1
    name = f"{request.file}, column {recording.column!r},"
    if count > MAX_LOSSES:
        raise RecordingError(
            f"{name} has {count:,} losses, and replay takes {MAX_LOSSES:,} at most; give a part"
        )
    finite = sum(map(math.isfinite, recording.losses))
    if count and not finite:
        zeros = recording.hidden.zeros
        why = f": {zeros:,} of 0 stand beside a {recording.hidden.norm!r} that is not" * (zeros > 0)
        raise RecordingError(f"{name} has {count:,} losses and none of them is finite{why}")
    # One update shows no movement, and the first two losses only start the averages.
    needed = max(2 * every, 3)
    if count < needed:
        smaller = " or update more often: --every 1" if every > 1 and count >= 3 else ""
        raise RecordingError(
            f"{name} is too short: {count} losses, and an update at every {ordinal(every)} takes "
            f"{needed} at least; give a longer curve{smaller}"
        )


def make_folder(folder: Path) -> None:
    """Make the folder, and find out whether it can be written to.

    Raises:
        RecordingError: It can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecordingError(f"cannot write to --out {folder}: {reason}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        run(parse(sys.argv[1:] if arguments is None else arguments))
    except (RecordingError, ValueError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nreplay: interrupted", file=sys.stderr)
        return 130
    return 0
