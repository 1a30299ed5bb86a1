"""Exact derivatives of a run's end by its schedule, and descent along them (method.md#hindsight).

Reverse mode through the whole run (Maclaurin, Duvenaud and Adams, "Gradient-based Hyperparameter
Optimization through Reversible Learning", 2015), with the points between segments kept and
everything inside a segment worked out again.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from adaptiverl.hindsight.schedule import Found, Schedule
from adaptiverl.hindsight.training import Training
from adaptiverl.hindsight.unrolled import (
    Point,
    advanced,
    beginning,
    for_each_run,
    judged,
    numbers_of,
)

LR_COLUMN, MOMENTUM_COLUMN, NOISE_COLUMN = range(3)
PACE = 0.2
"""log- and logit-units that a knot moves by in a round at first"""
BETAS = (0.7, 0.9)
"""Of the averages of hypergradients, which there are few of"""
WORSE = 1.5
"""Where a round's loss is so many times the best, descent goes back to that, at half the pace"""


def hypergradient(
    training: Training, schedule: Schedule, segment: int | None = None
) -> tuple[Tensor, Tensor]:
    """d(judged loss at the end)/d(knots), of every run.

    Args:
        training: What is trained.
        schedule: Where the derivative is taken.
        segment: Steps between two points that are kept; None: the root of their number, which
            needs the least memory.

    Returns:
        The losses, float [runs], and the derivatives, float64 [runs, knots, 3], by log α, logit μ
        and log σ; the last is 0 where there is no noise.

    Raises:
        ValueError: A schedule of another number of steps.
    """
    knots = schedule.knots.detach().clone().requires_grad_()
    knobs = replace(schedule, knots=knots).knobs()
    if len(knobs) != training.steps:
        raise ValueError(
            f"the schedule has {len(knobs)} steps, and the training {training.steps}: make both "
            "for the same run"
        )
    numbers = numbers_of(knobs)
    losses, rows = by_numbers(training, for_each_run(training, numbers), segment)
    derivatives = []
    for run in range(len(training.runs)):
        (found,) = torch.autograd.grad(numbers, knots, rows[:, run], retain_graph=True)
        derivatives.append(found if schedule.noisy else found.nan_to_num(0.0))
    gradient = torch.stack(derivatives)
    if not schedule.noisy:
        gradient[..., NOISE_COLUMN] = 0
    return losses, gradient


def by_numbers(
    training: Training, numbers: Tensor, segment: int | None = None
) -> tuple[Tensor, Tensor]:
    """The same by each step's numbers: float64 [steps, runs, 4]."""
    length = segment or math.ceil(math.sqrt(training.steps))
    starts = range(0, training.steps, length)
    parts = [range(start, min(start + length, training.steps)) for start in starts]
    point, kept = beginning(training), []
    with torch.no_grad():
        for part in parts:
            kept.append(point)
            point = advanced(training, point, numbers, part)
    losses, along = _at_the_end(training, point)
    rows = torch.zeros_like(numbers)
    while parts:
        part, before = parts.pop(), kept.pop()
        along, rows[part.start : part.stop] = _back(training, before, numbers, part, along)
    return losses, rows


def descend(
    training: Training,
    schedule: Schedule,
    rounds: int = 30,
    pace: float = PACE,
    momentum_too: bool = True,
) -> Found:
    """Move the knots against the hypergradient, in steps of a like size, and keep the best.

    One run's derivative can be thousands of times another's, where training is chaotic; each counts
    for no more than the median one.

    Args:
        training: What is trained, on all its seeds at once.
        schedule: Where to start.
        rounds: How often to move.
        pace: log-units by which a knot moves in a round at first; falls to a tenth.
        momentum_too: Move μ as well; σ moves where the schedule has any.

    Returns:
        The best that was met.

    Raises:
        ValueError: The runs diverge with the schedule that it starts from.
    """
    best = schedule
    least = math.inf
    losses: list[float] = []
    first, second, taken, slower = torch.zeros(1), torch.zeros(1), 0, 1.0
    for turn in range(rounds + 1):
        found, gradient = hypergradient(training, schedule)
        losses.append(float(found.double().mean()))
        if turn == 0 and not math.isfinite(losses[0]):
            raise ValueError(
                f"the runs end at a loss of {losses[0]} with the schedule that descent starts "
                "from: start from a lower rate, as best_cosine() finds one"
            )
        if losses[-1] < least:
            best, least = schedule, losses[-1]
        if not losses[-1] <= least + (WORSE - 1) * abs(least):
            schedule, taken, slower = best, 0, slower / 2
            found, gradient = hypergradient(training, schedule)
        direction = agreed(gradient)
        if not momentum_too:
            direction[:, MOMENTUM_COLUMN] = 0
        if taken == 0:
            first, second = torch.zeros_like(direction), torch.zeros_like(direction)
        taken += 1
        first = first * BETAS[0] + (1 - BETAS[0]) * direction
        second = second * BETAS[1] + (1 - BETAS[1]) * direction.square()
        scale = (second / (1 - BETAS[1] ** taken)).sqrt()
        unit = torch.where(scale > 0, first / (1 - BETAS[0] ** taken) / scale, 0.0)
        now = slower * pace * (1 - 0.9 * turn / rounds)
        schedule = replace(schedule, knots=schedule.knots - now * unit)
    return Found(best, losses[0], least, losses)


def agreed(gradient: Tensor) -> Tensor:
    """The mean over runs of [runs, knots, 3], a run no longer than the median one."""
    finite = gradient.flatten(1).isfinite().all(1)
    sound = gradient[finite]
    if len(sound) == 0:
        return torch.zeros_like(gradient[0])
    lengths = sound.flatten(1).norm(dim=1)
    limit = lengths.median()
    share = torch.where(lengths > limit, limit / lengths, 1.0)
    return (share[:, None, None] * sound).mean(0)


def _at_the_end(training: Training, point: Point) -> tuple[Tensor, Point]:
    """The losses, and their derivatives by where the runs ended."""
    params = point.params.detach().requires_grad_()
    losses = judged(training, params)
    (along,) = torch.autograd.grad(losses.sum(), params)
    return losses.detach(), Point(along, torch.zeros_like(along), torch.zeros_like(along))


def _back(
    training: Training, before: Point, numbers: Tensor, part: range, along: Point
) -> tuple[Point, Tensor]:
    """Derivatives by where a segment began, and by its numbers, from those by where it ended."""
    start = Point(*(tensor.detach().requires_grad_() for tensor in before))
    own = numbers[part.start : part.stop].detach().requires_grad_()
    rows = torch.cat([numbers[: part.start], own, numbers[part.stop :]])
    end = advanced(training, start, rows, part)
    *found, of_numbers = torch.autograd.grad(end, [*start, own], along)
    return Point(*found), of_numbers
