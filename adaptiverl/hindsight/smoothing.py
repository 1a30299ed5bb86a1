"""Two passes, again and again: a run is recorded, its alignments move the schedule.

See method.md#hindsight.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from adaptiverl.hindsight.hypergradients import LR_COLUMN
from adaptiverl.hindsight.schedule import Found, Schedule
from adaptiverl.hindsight.training import Training
from adaptiverl.hindsight.unrolled import (
    Point,
    advanced,
    beginning,
    final_losses,
    for_each_run,
    numbers_of,
)

PACE = 0.7
"""log-units that a window's α moves by where all of its steps agree, at first"""
LEAST_PACE = 0.05
"""Below it nothing more is tried"""


def alignments(training: Training, knobs: Tensor) -> Tensor:
    """h of every step and run: the cosine of its gradient and the last direction.

    −h is d loss/d log α of the step before, as the next batch has it, in units of both lengths
    (method.md#alignment).

    Returns:
        float64 [steps, runs]; 0 at the first step.
    """
    found = torch.zeros(training.steps, len(training.runs), dtype=torch.float64)

    def watch(step: int, losses: Tensor, gradient: Tensor, point: Point) -> None:
        if step > 0:
            u = (point.exp_avg / (point.exp_avg_sq.sqrt() + training.eps)).double()
            g = gradient.double()
            lengths = (g.square().sum(1) * u.square().sum(1)).sqrt()
            found[step] = torch.where(lengths > 0, (g * u).sum(1) / lengths, 0.0)

    with torch.no_grad():
        numbers = for_each_run(training, numbers_of(knobs.double()))
        advanced(training, beginning(training), numbers, range(training.steps), watch)
    return found


def windowed(schedule: Schedule, found: Tensor) -> Tensor:
    """What the alignments say of each knot's α: their mean in its window over their RMS.

    A step's alignment judges the rate of the step before, in the shares that the knots have in it.

    Returns:
        float64 [knots], in [−1, 1].
    """
    weights = schedule.weights()[:-1]
    later = found[1:].nan_to_num(-1.0)
    mean = weights.T @ later.mean(1) / weights.sum(0).clamp(min=1e-12)
    square = weights.T @ later.square().mean(1) / weights.sum(0).clamp(min=1e-12)
    return torch.where(square > 0, mean / square.sqrt(), 0.0)


def smooth(training: Training, schedule: Schedule, rounds: int = 12, pace: float = PACE) -> Found:
    """Move each window's α the way its alignments say, as long as the end gets better.

    All windows together and each alone are tried side by side; the best is taken. Where none helps,
    the pace is halved. μ and σ stay: alignments do not judge them.

    Args:
        training: What is trained, on all its seeds at once.
        schedule: Where to start.
        rounds: Runs that are recorded, at most.
        pace: log-units that a window moves by at first, where all its steps agree.

    Returns:
        The best that was met.
    """
    least = float(_mean_losses(training, [schedule]))
    losses = [least]
    while len(losses) <= rounds and pace >= LEAST_PACE:
        said = windowed(schedule, alignments(training, schedule.knobs()))
        way = pace * torch.sign(said) * said.abs().sqrt()
        tried = [_moved(schedule, move) for move in (way, *torch.diag(way))]
        found = _mean_losses(training, tried)
        if float(found.min()) < least:
            schedule, least = tried[int(found.argmin())], float(found.min())
        else:
            pace /= 2
        losses.append(least)
    return Found(schedule, losses[0], least, losses)


def _moved(schedule: Schedule, way: Tensor) -> Schedule:
    knots = schedule.knots.clone()
    knots[:, LR_COLUMN] += way
    return replace(schedule, knots=knots)


def _mean_losses(training: Training, schedules: list[Schedule]) -> Tensor:
    knobs = torch.stack([schedule.knobs() for schedule in schedules])
    return final_losses(training, knobs).double().mean(1).nan_to_num(math.inf)
