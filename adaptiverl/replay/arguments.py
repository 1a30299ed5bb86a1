"""The command line of ``python -m adaptiverl replay``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptiverl.commands import Parser
from adaptiverl.control import Control
from adaptiverl.version import __version__

OUT = "runs/replay"
MAX_LOSSES = 500_000
"""A state is kept for each: about 2 KB."""

PRESETS: dict[str, Callable[[], Control]] = {
    "default": Control,
    "gpt2_small": Control.gpt2_small,
    "production": Control.production,
    "epochwise": Control.epochwise,
    "bandit": Control.bandit,
}


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        file: the recorded curve.
        column, step_column, reward_column: as for `recordings.read`.
        control: gains, bounds, cadence, mode.
        lr: α at the start, ``mode="replace"``.
        momentum: μ at the start.
        out: folder for the picture.
    """

    file: Path
    column: str | None
    step_column: str | None
    reward_column: str | None
    control: Control
    lr: float
    momentum: float
    out: Path


def parse(arguments: Sequence[str]) -> Request:
    """Read the command line.

    Raises:
        SystemExit: It asks for help, or is not understood (status 2).
        ValueError: A value is out of its range.
    """
    given = _parser().parse_args(arguments)
    changes = {name: vars(given)[name] for name in ("every", "mode") if name in given}
    if given.reward_column is not None:
        changes["reward"] = "given"
    control = PRESETS[given.preset]()
    if control.arms and "every" in changes:
        changes["arms"] = [replace(arm, every=changes["every"]) for arm in control.arms]
    control = replace(control, **changes)
    return Request(
        file=Path(given.file),
        column=given.column,
        step_column=given.step_column,
        reward_column=given.reward_column,
        control=control,
        lr=given.lr,
        momentum=given.momentum,
        out=Path(given.out),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m adaptiverl", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"adaptiverl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "replay",
        help="show what the controller would have done on a recorded loss curve",
        description="Read a recorded loss curve and show what the controller would have done to "
        "learning rate, momentum and noise, as a table, a sentence and a picture. Open loop: the "
        "recorded losses do not answer to these knobs.",
        allow_abbrev=False,
    )
    commands.add_parser(
        "probe",
        help="run a training script until a range test has found its learning rate",
        add_help=False,  # `probing` has it, who reads the rest of the line
    )
    commands.add_parser(
        "hindsight",
        help="work out the best schedule of a small training, offline",
        add_help=False,
    )
    command.add_argument(
        "file",
        metavar="FILE",
        help="CSV, JSON lines, a Hugging Face trainer_state.json, a TensorBoard event file, or "
        "MLflow's file of a metric",
    )
    command.add_argument(
        "--column",
        "--tag",
        metavar="NAME",
        help="the loss's column, or its tag in an event file (guessed from the names)",
    )
    command.add_argument("--step-column", metavar="NAME", help="the step's column (guessed)")
    command.add_argument(
        "--reward-column",
        metavar="NAME",
        help="a column with a reward to follow beside the loss (the reward is -loss)",
    )
    command.add_argument("--lr", type=float, default=1e-3, help="learning rate at the start (1e-3)")
    command.add_argument("--momentum", type=_momentum, default=0.9, help="beta1 at the start (0.9)")
    command.add_argument(
        "--every",
        type=_cadence,
        default=argparse.SUPPRESS,
        metavar="K",
        help=f"logged losses between two updates, or 'epoch': each is an epoch's "
        f"({Control().every}, or the preset's)",
    )
    command.add_argument(
        "--mode",
        choices=("replace", "modulate"),
        default=argparse.SUPPRESS,
        help="replace: alpha is the learning rate; modulate: a factor that starts at 1 (replace)",
    )
    command.add_argument(
        "--preset",
        type=_preset,
        choices=tuple(PRESETS),
        default="default",
        help="gains, bounds and cadence: Control() or one of its presets (default)",
    )
    command.add_argument("--out", default=OUT, metavar="DIR", help=f"for the picture ({OUT})")
    return parser


def _cadence(text: str) -> int | None:
    if text == "epoch":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LOSSES:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {MAX_LOSSES:,}, or 'epoch', got {text!r}"
        )
    return int(text)


def _preset(text: str) -> str:
    if text in ("find_lr", "climb", "distilled"):
        raise argparse.ArgumentTypeError(
            f"{text} reads the gradients, which a recorded loss does not have; choose from "
            + ", ".join(PRESETS)
        )
    return text


def _momentum(text: str) -> float:
    try:
        momentum = float(text)
    except ValueError:
        momentum = math.nan
    if not 0 <= momentum < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return momentum
