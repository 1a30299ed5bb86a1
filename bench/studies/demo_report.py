"""What the demo comes to: the table, the sentences under it, and every number as JSON.

Every sentence is made from the numbers of this run; none is written beforehand.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

CONSTANT, COSINE, ADAPTIVE = "AdamW constant", "AdamW warm-up + cosine", "AdaptiveAdamW"
# Clocks differ by as much from one minute to the next on a shared machine.
SAME_SPEED = 0.03

# Column name to values, one per recorded step: "step", "lr", "momentum", "noise" and, where there
# is a controller, "plateau" and its other sensors.
Trace = dict[str, list[float]]


@dataclass(frozen=True)
class Settings:
    """Everything that the runs depend on besides the text and the method.

    The held-out loss is taken every ``eval_every`` steps, on ``eval_batches`` fixed batches; the
    sizes are those of `bench.tasks.characters.Characters`.
    """

    lr: float
    steps: int
    seed: int
    device: str
    layers: int
    heads: int
    width: int
    context: int
    batch: int
    eval_every: int
    eval_batches: int


@dataclass
class Run:
    """What one method did; losses are nats per character.

    The held-out loss was taken after each of ``eval_steps``, 0 first; ``step_seconds`` are means
    over the stretches between two of them; ``train_loss`` is that of every step's batch.
    """

    method: str
    eval_steps: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    trace: Trace = field(default_factory=dict)


@dataclass(frozen=True)
class Measures:
    """One row of the table.

    Attributes:
        final: Held-out loss after the last step, nats per character.
        area: Mean height of the held-out curve over the run's steps; NaN where it is not finite.
        steps_to_target: The first look at which the held-out loss was at or below the constant
            rate's best; ``None`` if it never was.
        seconds_per_step: Median over the stretches, of forward, backward and optimizer together:
            the first one's warm-up and a busy moment do not count.
    """

    final: float
    area: float
    steps_to_target: int | None
    seconds_per_step: float


@dataclass(frozen=True)
class Report:
    """A finished demo: `text` is what was learned from, `command` what to type for it again."""

    settings: Settings
    text: dict[str, str | int]
    parameters: int
    runs: list[Run]
    command: str
    seconds: float

    @property
    def target(self) -> float:
        """The constant rate's lowest finite held-out loss; NaN if there is none."""
        losses = next(run.held_out for run in self.runs if run.method == CONSTANT)
        return min(filter(math.isfinite, losses), default=math.nan)

    @property
    def rows(self) -> dict[str, Measures]:
        """The measures by the method's title."""
        return {run.method: measure(run, self.target) for run in self.runs}


def measure(run: Run, target: float) -> Measures:
    """Take the four measures of a run against a target."""
    steps, losses = run.eval_steps, run.held_out
    pairs = list(zip(steps, losses, strict=True))
    area = sum((b - a) * (high + low) / 2 for (a, high), (b, low) in pairwise(pairs))
    mean = area / (steps[-1] - steps[0])
    return Measures(
        final=losses[-1],
        area=mean if math.isfinite(mean) else math.nan,
        steps_to_target=next((step for step, loss in pairs if loss <= target), None),
        seconds_per_step=statistics.median(run.step_seconds),
    )


def versions(device: str) -> dict[str, str]:
    """Name what the numbers depend on: the machine and the packages."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return {
        "device": f"{device} ({name})",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{package: _version(package) for package in ("adaptiverl", "torch", "numpy")},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


# The table


def loss_text(loss: float) -> str:
    """Format a loss; one that is not finite is called what it is."""
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def table(report: Report) -> str:
    """Lay the table out for a terminal."""
    target = loss_text(report.target)
    figures = ("final held-out loss", "area under the curve / steps", f"steps to {target}")
    rows = [["", *figures, "seconds per step"]]
    for name, row in report.rows.items():
        reached = "never" if row.steps_to_target is None else str(row.steps_to_target)
        losses = loss_text(row.final), loss_text(row.area)
        rows.append([name, *losses, reached, f"{row.seconds_per_step:.4f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


# The sentences


def summary(report: Report) -> list[str]:
    """Say who was best on what and by how much, how AdaptiveAdamW did, and what its knobs did."""
    rows = report.rows
    return [
        _rank("Final held-out loss", rows, lambda row: row.final),
        _rank("Area under the curve", rows, lambda row: row.area),
        _first_there(rows, report.target),
        _fastest(rows),
        _knobs(report),
    ]


def _rank(what: str, rows: dict[str, Measures], value: Callable[[Measures], float]) -> str:
    winner, *others = sorted(rows, key=lambda name: _comparable(value(rows[name])))
    lowest = value(rows[winner])
    if not math.isfinite(lowest):
        return f"{what}: every method diverged."
    behind = (f"{name} {_behind(value(rows[name]), lowest)}" for name in others)
    return f"{what}: {winner} is lowest with {lowest:.4f}; {', '.join(behind)}."


def _comparable(number: float | None) -> float:
    """A number to sort by: the lower the better, what is not finite or absent last."""
    return number if number is not None and math.isfinite(number) else math.inf


def _behind(number: float, lowest: float) -> str:
    if not math.isfinite(number):
        return "diverged"
    difference = number - lowest
    return "equals it" if round(difference, 4) == 0 else f"is {difference:.4f} above"


def _first_there(rows: dict[str, Measures], target: float) -> str:
    reached = {name: row.steps_to_target for name, row in rows.items()}
    if reached[CONSTANT] == 0:
        return f"The constant rate never came below its start, {loss_text(target)}."
    there = sorted((s, name) for name, s in reached.items() if s is not None)
    parts = [f"{name} after {steps} steps" for steps, name in there]
    parts += [f"{name} never" for name, steps in reached.items() if steps is None]
    return f"The constant rate's best loss, {loss_text(target)}: {', '.join(parts)}."


def _fastest(rows: dict[str, Measures]) -> str:
    seconds = {name: row.seconds_per_step for name, row in rows.items()}
    winner, *others = sorted(seconds, key=seconds.__getitem__)
    over = {name: seconds[name] / seconds[winner] - 1 for name in others}
    if over[others[-1]] <= SAME_SPEED:
        return f"Seconds per step: within {over[others[-1]]:.1%} of each other."
    slower = ", ".join(f"{name} takes {share:.1%} longer" for name, share in over.items())
    # The two AdamW runs do the same work: what they differ by is the machine's, not theirs.
    twins = seconds[CONSTANT], seconds[COSINE]
    noise = max(twins) / min(twins) - 1
    doubt = (
        f" The two AdamW runs do the same work, so the {noise:.1%} between them is the machine's "
        "other business: no difference of that size means anything here."
    )
    return f"Seconds per step: {winner} is fastest; {slower}.{doubt if noise > SAME_SPEED else ''}"


def _knobs(report: Report) -> str:
    trace = next(run.trace for run in report.runs if run.method == ADAPTIVE)
    if not trace["step"]:
        return "The run was too short for the controller to move a knob."
    rates, momenta, noises = trace["lr"], trace["momentum"], trace["noise"]
    drawn = sum(noise > 0 for noise in noises)
    return (
        f"{ADAPTIVE}'s knobs over {len(rates)} updates: α from {report.settings.lr:.2e} to "
        f"{rates[-1]:.2e} (lowest {min(rates):.2e}, highest {max(rates):.2e}); μ between "
        f"{min(momenta):.3f} and "
        f"{max(momenta):.3f}, {momenta[-1]:.3f} at the end; σ "
        + (f"above zero in {drawn}, at most {max(noises):.2g}." if drawn else "never left zero.")
    )


# The numbers


def as_json(report: Report) -> str:
    """Every number of the report as strict JSON; what is not finite becomes ``null``."""
    content = {
        "command": report.command,
        "seconds": report.seconds,
        "settings": asdict(report.settings),
        "text": report.text,
        "parameters": report.parameters,
        "versions": versions(report.settings.device),
        "constant_rate_best": report.target,
        "measures": {name: asdict(row) for name, row in report.rows.items()},
        "runs": [asdict(run) for run in report.runs],
        "printed": {"table": table(report).splitlines(), "summary": summary(report)},
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
