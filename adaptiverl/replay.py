"""``python -m adaptiverl replay FILE``: what the controller would have done on a recorded curve.

Open loop: the law (`law/`) reads the losses of a run that never felt its knobs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from adaptiverl import plots
from adaptiverl.control import Control, Limits
from adaptiverl.law.knobs import start as started
from adaptiverl.law.numbers import numbers_of
from adaptiverl.law.replay import replay as replayed
from adaptiverl.layout import State
from adaptiverl.recording_files import RecordingError
from adaptiverl.recordings import Recording, read

OUT = "runs/replay"
PICTURE = "replay.png"
WIDTH = 96
TABLE_ROWS = 12
MAX_LOSSES = 500_000
"""A state is kept for each: about 2 KB."""
COLUMNS = ("loss", "loss_mean", "plateau", "lr", "momentum", "noise")
"""What `plots.knobs` draws over the steps."""


PRESETS: dict[str, Callable[[], Control]] = {
    "default": Control,
    "gpt2_small": Control.gpt2_small,
    "production": Control.production,
    "epochwise": Control.epochwise,
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


@dataclass(frozen=True)
class Push:
    """One update of log α, taken apart.

    Attributes:
        index: the loss, counted from 0, after which it came.
        reward: k_r·Δ̃r.
        loss: −k_ℓ·max(Δ̃ℓ, 0).
        reflex: a value that was not finite decided both (method.md#non-finite).
        capped: the change cap cut their sum.
    """

    index: int
    reward: float
    loss: float
    reflex: bool
    capped: bool


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


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
    control = replace(PRESETS[given.preset](), **changes)
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
    parser = _Parser(prog="python -m adaptiverl", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "replay",
        help="show what the controller would have done on a recorded loss curve",
        description="Read a recorded loss curve and show what the controller would have done to "
        "learning rate, momentum and noise, as a table, a sentence and a picture. Open loop: the "
        "recorded losses do not answer to these knobs.",
        allow_abbrev=False,
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
    if text == "find_lr":
        raise argparse.ArgumentTypeError(
            "find_lr reads the gradients, which a recorded loss does not have; choose from "
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
    for line in introduction(request, recording):
        print(textwrap.fill(line, WIDTH, break_on_hyphens=False))
    print(f"\n{table(recording, history, updates, start)}\n")
    end = " ".join([*divergence(recording), verdict(history, updates, start, limits)])
    print(textwrap.fill(end, WIDTH, break_on_hyphens=False))
    print(f"\n{_draw(request, recording, history, updates)}")


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
            f"{name} is too short: {count} losses, and an update at every {_ordinal(every)} takes "
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


def pushes(
    history: Sequence[State], rewards: Sequence[float | None], control: Control
) -> list[Push]:
    """Every update of log α taken apart into its two terms (§2).

    Args:
        history: The states of `law.replay`.
        rewards: The rewards it was given; empty without any.
        control: The gains it ran with.
    """
    found: list[Push] = []
    updates = nonfinite = 0.0
    rewarded = False
    low, high = (math.log(factor) for factor in control.lr_change)
    for index, state in enumerate(history):
        rewarded = rewarded or (bool(rewards) and rewards[index] is not None)
        if state.updates == updates:
            continue
        reflex = state.nonfinite > nonfinite
        rests = control.reward == "none" or (control.reward == "given" and not rewarded)
        better = 0.0 if rests else state.reward_direction
        worse = max(state.loss_direction, 0.0)
        if reflex:
            better, worse = 0.0 if control.reward == "none" else -1.0, 1.0
        reward, loss = control.gain_lr_reward * better, -control.gain_lr_loss * worse
        capped = not low <= reward + loss <= high
        found.append(Push(index, reward, loss, reflex, capped))
        updates, nonfinite, rewarded = state.updates, state.nonfinite, False
    return found


# What is shown


def introduction(request: Request, recording: Recording) -> list[str]:
    """What was read, what became of it, that the loop is open, what K counts; a paragraph each."""
    steps, count = recording.steps, len(recording.losses)
    what = f"{request.file}: {count:,} losses in column {recording.column!r}"
    if recording.step_column is None:
        what += f", counted from 1 as {recording.order.counted}"
    else:
        what += f", steps {steps[0]:,.0f} to {steps[-1]:,.0f} in column {recording.step_column!r}"
    if recording.skipped:
        what += f"; {recording.skipped:,} entries without one left out"
    if request.reward_column is not None:
        what += f"; reward in column {request.reward_column!r}"
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
        _cadence_line(request.control, recording),
    ]


def changes(recording: Recording) -> list[str]:
    """What is not as it stands in the file, a sentence each, without the full stop."""
    order, hidden = recording.order, recording.hidden
    sentences = [f"{remark[0].upper()}{remark[1:]}" for remark in recording.remarks]
    if order.newest_first:
        sentences.append("The newest came first: all turned round")
    if order.moved:
        sentences.append(f"{_count(order.moved, 'entry')} stood behind a later step: put in order")
    if order.repeated:
        sentences.append(
            f"{_count(order.repeated, 'entry')} left out, as the same step comes again: the later "
            "one counts"
        )
    if hidden.zeros:
        sentences.append(
            f"{_count(hidden.zeros, 'loss')} of 0 beside a {hidden.norm!r} that is not finite, "
            "taken as NaN: Hugging Face's Trainer logs NaN as 0 (logging_nan_inf_filter)"
        )
    if hidden.others:
        sentences.append(
            f"{_count(hidden.others, 'other loss')} beside such a norm, used as logged"
        )
    if hidden.doubtful:
        sentences.append(
            f"{_count(hidden.doubtful, 'loss')} of exactly 0, used as logged; but Hugging Face's "
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
    line = f"K = {every}: one update at every {_ordinal(every)} logged loss"
    if gap > 1:
        line += (
            f". They are {gap:g} steps apart, so that is one per {gap * every:,.0f} training "
            "steps; the average remembers logged losses too, not steps"
        )
        if every > 1:
            line += ". --every 1 updates at each of them"
    return f"{line}."


def _ordinal(n: int) -> str:
    if n == 1:
        return "single"
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"


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


def divergence(recording: Recording) -> list[str]:
    """That the curve ends in losses that are none, or may be none; no sentence if it does not."""
    losses = recording.losses
    bad = _tail(not math.isfinite(loss) for loss in reversed(losses))
    if bad:
        return [
            f"The recorded run diverged: from step {recording.steps[-bad]:,.0f} to its end no loss "
            f"is finite ({bad:,} of {len(losses):,})."
        ]
    zeros = _tail(loss == 0 for loss in reversed(losses)) if recording.hidden.doubtful else 0
    if zeros > 1:
        return [
            f"The recorded run may have diverged: from step {recording.steps[-zeros]:,.0f} to its "
            f"end every loss is 0 ({zeros:,} of {len(losses):,}). If those were NaN, the "
            "improvement from there on is none."
        ]
    return []


def _tail(found: Iterable[bool]) -> int:
    """How many come before the first that is false."""
    return sum(1 for _ in itertools.takewhile(bool, found))


def verdict(history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits) -> str:
    """What dominated, and where it left the knobs; made of the numbers alone."""
    return " ".join(
        [
            _dominance(updates),
            _rate_fate(history, updates, start, limits),
            _other_fates(history, updates, start, limits),
            *_troubles(history, updates),
        ]
    )


def _dominance(updates: Sequence[Push]) -> str:
    up = sum(max(push.reward, 0.0) for push in updates)
    down = sum(max(-push.reward, 0.0) - push.loss for push in updates)
    reward = sum(abs(push.reward) for push in updates)
    loss = sum(abs(push.loss) for push in updates)
    if up + down == 0:
        return "What dominated: nothing. No term pushed α in any update."
    if max(up, down) < 1.1 * min(up, down):
        winner = "neither side"
    else:
        winner = "improvement" if up > down else "worsening"
    share = reward / (reward + loss)
    return (
        f"What dominated: {winner}. Over {_count(len(updates), 'update')}, improvement pushed "
        f"log α up by {up:.2f} in all and worsening pushed it down by {down:.2f}; {share:.0%} of "
        f"the pushing was the reward term's (k_r·Δ̃r), {1 - share:.0%} the loss term's "
        "(k_ℓ·max(Δ̃ℓ, 0))."
    )


def _rate_fate(
    history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits
) -> str:
    rates = [history[push.index].lr for push in updates]
    text = (
        f"α went from {start.lr:.3g} to {rates[-1]:.3g}, {rates[-1] / start.lr:.3g} times its "
        f"start, and between {min(rates):.3g} and {max(rates):.3g} on the way"
    )
    at_low, at_high = rates.count(limits.lr_min), rates.count(limits.lr_max)
    if not at_low and not at_high:
        return f"{text}, never at a bound."
    held = [
        f"at its {name} bound {bound:.3g} after {_count(times, 'update')}"
        for name, bound, times in (
            ("lower", limits.lr_min, at_low),
            ("upper", limits.lr_max, at_high),
        )
        if times
    ]
    return f"{text}; it was {' and '.join(held)}."


def _other_fates(
    history: Sequence[State], updates: Sequence[Push], start: State, limits: Limits
) -> str:
    momenta = [history[push.index].momentum for push in updates]
    pinned = sum(m in (limits.momentum_min, limits.momentum_max) for m in momenta)
    text = f"μ went from {start.momentum:.3f} to {momenta[-1]:.3f}"
    if pinned:
        text += f", at a bound after {_count(pinned, 'update')}"
    noises = [history[push.index].noise for push in updates]
    lifted = sum(noise > limits.noise_min for noise in noises)
    if not lifted:
        return f"{text}; σ never left its floor."
    above = f"σ was above its floor after {_count(lifted, 'update')}"
    return f"{text}; {above}, {max(noises):.2g} at most."


def _troubles(history: Sequence[State], updates: Sequence[Push]) -> list[str]:
    sentences = []
    bad = int(history[-1].nonfinite)
    if bad:
        reflexes = sum(push.reflex for push in updates)
        sentences.append(
            f"{_count(bad, 'observation')} {'was' if bad == 1 else 'were'} not finite, answered by "
            f"the regression reflex in {_count(reflexes, 'update')}."
        )
    capped = sum(push.capped for push in updates)
    if capped:
        sentences.append(f"The change cap cut {_count(capped, 'update')} short.")
    return sentences


def _count(n: int, what: str) -> str:
    if n != 1:
        what = (
            f"{what[:-1]}ies" if what.endswith("y") else f"{what}{'es' * what.endswith('s') or 's'}"
        )
    return f"{n:,} {what}"


def _draw(
    request: Request,
    recording: Recording,
    history: Sequence[State],
    updates: Sequence[Push],
) -> str:
    """Draw every logged loss and the knobs; return the line that says where, or why not."""
    columns = {name: [getattr(state, name) for state in history] for name in COLUMNS}
    columns["step"] = recording.steps
    columns["plateau"] = _held(columns["plateau"], updates)
    path = request.out / PICTURE
    title = f"Open loop: what the controller would have done on {request.file.name}"
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
