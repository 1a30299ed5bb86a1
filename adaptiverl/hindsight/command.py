"""``python -m adaptiverl hindsight``: the best schedule of a training, worked out offline."""

from __future__ import annotations

import argparse
import inspect
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptiverl.commands import Parser
from adaptiverl.hindsight.cosines import best_cosine, cosine
from adaptiverl.hindsight.hypergradients import descend
from adaptiverl.hindsight.schedule import Found, Schedule
from adaptiverl.hindsight.smoothing import smooth
from adaptiverl.hindsight.training import Training

OUT, NAME = "runs/hindsight", "schedule.json"


class HindsightError(ValueError):
    """What was asked for cannot be done; the message says why, and what would help."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status: 0, 2 for bad input."""
    given = _parser().parse_args(arguments)
    try:
        training = training_in(given.what)
        report(training, given.rounds, writable(Path(given.out)))
    except HindsightError as error:  # the file's own errors keep their traceback
        print(f"hindsight: {error}", file=sys.stderr)
        return 2
    return 0


def writable(folder: Path) -> Path:
    """Where the schedule will be, found out before the work is done.

    Raises:
        HindsightError: It cannot be written.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError as error:
        raise HindsightError(
            f"--out {folder} must be a folder that {NAME} can be written to: {error}"
        ) from None
    if path.stat().st_size == 0:
        path.unlink()
    return path


def training_in(what: str) -> Training:
    """The training that FILE.py:FUNCTION makes.

    Raises:
        HindsightError: There is none.
    """
    path, _, name = what.rpartition(":")
    if Path(what).is_file():
        raise HindsightError(f"{what} is a file without its function: give {what}:FUNCTION")
    if not path or not Path(path).is_file():
        raise HindsightError(f"there is no file {path or what!r}: give FILE.py:FUNCTION")
    sys.path.insert(0, str(Path(path).parent))
    found = runpy.run_path(path).get(name)
    if not callable(found):
        raise HindsightError(f"{path} has no function {name!r}: give FILE.py:FUNCTION")
    wanted = _required(found)
    if wanted:
        raise HindsightError(
            f"{name}() in {path} asks for {', '.join(wanted)}, expected a function without "
            "arguments: give them defaults"
        )
    training = found()
    if not isinstance(training, Training):
        raise HindsightError(
            f"{name}() in {path} gave {training!r} of type {type(training).__name__}, expected a "
            "Training: return adaptiverl.hindsight.training_of(...)"
        )
    return training


def report(training: Training, rounds: int, path: Path) -> None:
    """Work it out; print what each way came to, and save the best schedule.

    Raises:
        HindsightError: No rate trains.
    """
    try:
        rate, losses = best_cosine(training)
    except ValueError as error:
        raise HindsightError(str(error)) from None
    reference = float(losses.double().mean())
    print(f"judged loss at the end, mean of {len(training.runs)} runs of {training.steps} steps")
    print(f"{'best of seven cosines':32} {reference:.5g}   (rate {rate:g})", flush=True)
    start = Schedule.like(cosine(rate, training.steps)[:, 0])
    found = _told("two-pass smoothing", smooth(training, start, rounds), reference)
    other = _told("hypergradients", descend(training, start, rounds), reference)
    best = min(found, other, key=lambda one: one.after).schedule
    print(f"\n{'step':>8} {'α':>10} {'μ':>8} {'σ':>8}")
    knobs = best.knobs()
    for place in best.places:
        lr, momentum, noise = knobs[round(place)].tolist()
        print(f"{round(place):8} {lr:10.3g} {momentum:8.4f} {noise:8.3g}")
    best.save(path)
    print(f"\nThe better one: {path}")


def _told(name: str, found: Found, reference: float) -> Found:
    change = found.after / reference - 1
    print(f"{name:32} {found.after:.5g}   ({change:+.1%})", flush=True)
    return found


def _parser() -> Parser:
    parser = Parser(
        prog="python -m adaptiverl hindsight",
        allow_abbrev=False,
        description="Train a small model again and again, and move its whole schedule of α, μ and "
        "σ until the end gets no better: how much a law that sees the past alone could gain.",
    )
    parser.add_argument(
        "what",
        metavar="FILE.py:FUNCTION",
        help="a function without arguments that returns an adaptiverl.hindsight.Training",
    )
    parser.add_argument("--rounds", type=_whole, default=30, help="moves of each way (30)")
    parser.add_argument("--out", default=OUT, help=f"folder of {NAME} ({OUT})")
    return parser


def _required(function: Callable[..., Any]) -> list[str]:
    """Arguments without a default, by name."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable that does not tell
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in given if p.default is p.empty and p.kind not in several]


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)
