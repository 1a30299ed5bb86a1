"""What the demo comes to: the table, and every number as JSON."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.machine import provenance
from bench.run import ranks
from bench.tables import markdown
from bench.tasks.characters import Characters

CONSTANT, COSINE = "AdamW constant", "AdamW warm-up + cosine"
FIND_LR, LOSS_LAW = "AdaptiveAdamW, find_lr", "AdaptiveAdamW, loss law"

# Column name to values, one per recorded step: "step", "lr", "momentum", "noise" and, where there
# is a controller, "plateau", "held" and its other sensors.
Trace = dict[str, list[float]]


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked; the four runs depend on it and on the method alone."""

    task: Characters
    lr: float
    seed: int
    eval_every: int  # steps between two looks at the held-out text
    out: Path


@dataclass
class Run:
    """What one method did; losses are nats per character.

    ``step_seconds`` are means over the stretches between two of ``eval_steps``.
    """

    method: str
    eval_steps: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    trace: Trace = field(default_factory=dict)

    @property
    def held_from(self) -> float | None:
        """The first recorded step at which a search had found its rate; None: it never had."""
        rows = zip(self.trace["step"], self.trace["held"], strict=True)
        return next((step for step, held in rows if held), None)


@dataclass(frozen=True)
class Measures:
    final: float  # held-out loss after the last step, nats per character
    area: float  # mean height of the held-out curve over the run's steps
    steps_to_target: int | None
    seconds_per_step: float  # median over the stretches


@dataclass(frozen=True)
class Report:
    request: Request
    text: dict[str, str | int]  # what was learned from
    parameters: int
    runs: list[Run]
    seconds: float

    @property
    def target(self) -> float:
        losses = next(run.held_out for run in self.runs if run.method == CONSTANT)
        return min(filter(math.isfinite, losses), default=math.nan)

    @property
    def rows(self) -> dict[str, Measures]:
        return {run.method: measure(run, self.target) for run in self.runs}


def measure(run: Run, target: float) -> Measures:
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


def loss_text(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def table(report: Report) -> str:
    target = loss_text(report.target)
    figures = ["final held-out loss", "area under the curve / steps", f"steps to {target}"]
    rows = []
    for name, row in report.rows.items():
        reached = "never" if row.steps_to_target is None else str(row.steps_to_target)
        losses = loss_text(row.final), loss_text(row.area)
        rows.append([name, *losses, reached, f"{row.seconds_per_step:.4f}"])
    return markdown(["", *figures, "seconds per step"], rows)


def as_json(report: Report) -> str:
    """Every number of the report as strict JSON; what is not finite becomes ``null``."""
    request = report.request
    sizes = {f.name: getattr(request.task, f.name) for f in fields(request.task) if f.repr}
    asked = {"lr": request.lr, "seed": request.seed, "eval_every": request.eval_every}
    content = {
        "seconds": report.seconds,
        "settings": asked | sizes | {"ranks": ranks.size()},
        "text": report.text,
        "parameters": report.parameters,
        "versions": provenance(torch.device(request.task.device)),
        "constant_rate_best": report.target,
        "measures": {name: asdict(row) for name, row in report.rows.items()},
        "runs": [asdict(run) for run in report.runs],
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
