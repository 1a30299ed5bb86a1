"""The four numbers of the table, from a run's held-out curve and its clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.demo.train import Run


@dataclass(frozen=True)
class Measures:
    """One row of the table.

    Attributes:
        final: held-out loss after the last step, nats per character.
        area: area under the held-out curve over the run's steps, divided by their number:
            the mean held-out loss, nats per character. NaN where the curve is not finite.
        steps_to_target: the first evaluated step at which the held-out loss was at or below the
            constant rate's best; ``None`` if it never was.
        seconds_per_step: median, of forward, backward and optimizer together.
    """

    final: float
    area: float
    steps_to_target: int | None
    seconds_per_step: float


def measure(run: Run, target: float) -> Measures:
    """Take the four measures of a run against the constant rate's best held-out loss."""
    return Measures(
        final=run.held_out[-1],
        area=mean_under_curve(run.eval_steps, run.held_out),
        steps_to_target=steps_to_reach(run.eval_steps, run.held_out, target),
        seconds_per_step=run.seconds_per_step,
    )


def best(losses: Sequence[float]) -> float:
    """Return the lowest finite loss; NaN if there is none."""
    return min((loss for loss in losses if math.isfinite(loss)), default=math.nan)


def mean_under_curve(steps: Sequence[int], losses: Sequence[float]) -> float:
    """Return the trapezoids' area under (steps, losses) over the steps' span."""
    area = sum(
        (right - left) * (high + low) / 2
        for left, right, high, low in zip(steps, steps[1:], losses, losses[1:], strict=False)
    )
    mean = area / (steps[-1] - steps[0])
    return mean if math.isfinite(mean) else math.nan


def steps_to_reach(steps: Sequence[int], losses: Sequence[float], target: float) -> int | None:
    """Return the first step whose loss is at or below the target, or ``None``."""
    return next((s for s, loss in zip(steps, losses, strict=True) if loss <= target), None)
