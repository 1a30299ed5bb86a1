"""f_φ from schedules made in hindsight (method.md#distilled): examples of what to do, and a fit.

A schedule knows how the run goes on. Runs are sent along it and beside it, too fast or too slow by
up to two decades; at each update the example is what the law would have seen, and how the knobs
have to move to come back and to follow. Where the past does not tell where a run is, the fit gives
what is right on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adaptiverl.control import Control
from adaptiverl.hindsight.hypergradients import LR_COLUMN, NOISE_COLUMN
from adaptiverl.hindsight.schedule import Schedule
from adaptiverl.hindsight.training import Training
from adaptiverl.hindsight.unrolled import Point, advanced, beginning, for_each_run, numbers_of
from adaptiverl.law import distilled, knobs, loop
from adaptiverl.law.numbers import numbers_of as control_numbers
from adaptiverl.layout import ControlNumbers
from adaptiverl.weights import OUTPUTS, Weights, count_of

RETURN = 15.0
"""How fast an example comes back to the schedule: its distance, so many times in a run"""
LOWEST, HIGHEST = math.log(0.01), math.log(10.0)
"""How far beside the schedule runs are sent, in log-units of α"""
FADE = 8.0
"""How fast such a distance fades, in half of the runs, likewise"""
SIZE_OF_OFFSETS = 8
"""Ways beside the schedule, each for all seeds"""
DESCENTS, RATE, DECAY = 600, 1e-2, 1e-3
"""Of the fit of a network: full batches, Adam's rate and its weight decay"""
RIDGE = 1e-3
"""Of the fit of a linear map, beside features of size 1"""
SILENT = Weights((), (0.0,) * count_of(()))
"""An f_φ that moves nothing: the law is only asked what it sees"""


class Examples(NamedTuple):
    """What the law sees, and how the knobs had to move then."""

    features: Tensor
    """float64 [examples, 8]: `weights.FEATURES`"""
    moves: Tensor
    """float64 [examples, 3]: `weights.OUTPUTS`"""


class Seen(NamedTuple):
    """What runs told a controller, each float64 [steps, runs]."""

    losses: Tensor
    gu: Tensor
    gg: Tensor
    uu: Tensor


def examples(training: Training, schedule: Schedule, seed: int = 0) -> Examples:
    """Examples of a schedule: its runs, sent along it and beside it.

    Args:
        training: What the schedule was made on; other seeds may be in it.
        schedule: The schedule, of as many steps.
        seed: Draws the ways beside it.
    """
    offsets = _offsets(training.steps, seed).repeat_interleave(len(training.runs), 1)
    numbers = for_each_run(training, numbers_of(schedule.knobs())).repeat(1, SIZE_OF_OFFSETS, 1)
    numbers[..., LR_COLUMN] *= offsets.exp()
    seen = _watched(training, numbers)
    control = Control.distilled(training.steps, SILENT)
    limits = control.limits(1.0, 0.9)
    law = control_numbers(control, limits)
    slopes = _slopes(schedule)
    features, moves = [], []
    for run in range(offsets.shape[1]):
        for step, given in _law_sees(seen, law, run):
            features.append(given)
            move = slopes[step - 1].clone()
            move[LR_COLUMN] -= RETURN * offsets[step - 1, run]
            moves.append(move)
    most = math.log(control.lr_change[1]) * training.steps / (control.every or 1)
    return Examples(
        torch.tensor(features, dtype=torch.float64), torch.stack(moves).clamp(-most, most)
    )


def distill(found: Sequence[Examples], hidden: tuple[int, ...] = (16,), seed: int = 0) -> Weights:
    """Fit f_φ to examples, each task with the same weight.

    Args:
        found: Of each task.
        hidden: Units of each hidden layer, at most 2 of at most 32; (): a linear map.
        seed: Draws where a network starts.

    Raises:
        ValueError: No examples; layers that there cannot be.
    """
    if not found:
        raise ValueError("distill() needs the examples of one task at least, got none")
    Weights(tuple(hidden), (0.0,) * count_of(hidden))  # which refuses layers before the fit
    inputs = torch.cat([one.features for one in found])
    wanted = torch.cat([one.moves for one in found])
    shares = torch.cat([torch.full((len(one.moves),), 1 / len(one.moves)) for one in found])
    shares = shares.double() / len(found)
    if not hidden:
        return Weights((), tuple(_linear(inputs, wanted, shares).flatten().tolist()))
    return Weights(tuple(hidden), tuple(_network(inputs, wanted, shares, hidden, seed)))


def _offsets(steps: int, seed: int) -> Tensor:
    """Distances from the schedule, float64 [steps, SIZE_OF_OFFSETS]; one stays at 0.

    Half of the others fade, as where the law finds its way back; half wander, so that every
    distance is seen at every time.
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    ends = torch.rand(5, SIZE_OF_OFFSETS, generator=generator, dtype=torch.float64)
    ends = LOWEST + (HIGHEST - LOWEST) * ends
    fading = ends[0] * (-FADE * time).exp()
    place = (4 * time.squeeze(1)).clamp(max=4 - 1e-9)
    below = place.floor().long()
    share = (place - below)[:, None]
    wandering = ends[below] * (1 - share) + ends[below + 1] * share
    kinds = torch.arange(SIZE_OF_OFFSETS)
    return torch.where(kinds == 0, 0.0, torch.where(kinds % 2 == 1, fading, 0.5 * wandering))


def _slopes(schedule: Schedule) -> Tensor:
    """How the knobs move along it, in units of a whole run: float64 [steps, 3]."""
    spaces = schedule.knots.clone()
    if not schedule.noisy:
        spaces[:, NOISE_COLUMN] = 0
    course = schedule.weights() @ spaces
    steps = torch.diff(course, dim=0)
    slopes: Tensor = torch.cat([steps, steps[-1:]]) * schedule.steps
    return slopes


def _watched(training: Training, numbers: Tensor) -> Seen:
    runs = numbers.shape[1]
    rows = torch.zeros(4, training.steps, runs, dtype=torch.float64)

    def watch(step: int, losses: Tensor, gradient: Tensor, point: Point) -> None:
        g = gradient.double()
        u = (point.exp_avg / (point.exp_avg_sq.sqrt() + training.eps)).double()
        rows[0, step] = losses
        rows[1, step], rows[2, step] = (g * u).sum(1), g.square().sum(1)
        rows[3, step] = u.square().sum(1)

    with torch.no_grad():
        copies = runs // len(training.runs)
        advanced(training, beginning(training, copies), numbers, range(training.steps), watch)
    losses, gu, gg, uu = rows
    return Seen(losses, gu, gg, uu)


def _law_sees(seen: Seen, law: ControlNumbers, run: int) -> list[tuple[int, list[float]]]:
    """The step and the features of each update that the law would make in this run."""
    state = knobs.start(law, 1.0, 0.9)
    rows = [column[:, run].tolist() for column in seen]
    found = []
    for loss, *sums in zip(*rows, strict=True):
        if loop.advance(state, law, loss):
            found.append((int(state.step), distilled.features(state, law)))  # which moved nothing
        state.aligned_gu, state.aligned_gg, state.aligned_uu = sums
        state.aligned_pending = 1.0
    return found


def _linear(inputs: Tensor, wanted: Tensor, shares: Tensor) -> Tensor:
    """[outputs, features + 1], the bias last, by ridge regression."""
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    given = torch.cat([inputs, ones], 1)
    weighted = given.T * shares
    penalty = RIDGE * torch.eye(given.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    return torch.linalg.solve(weighted @ given + penalty, weighted @ wanted).T


def _network(
    inputs: Tensor, wanted: Tensor, shares: Tensor, hidden: tuple[int, ...], seed: int
) -> list[float]:
    sizes = (inputs.shape[1], *hidden, len(OUTPUTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(before, after).double() for before, after in pairwise(sizes)]
    scale = (shares @ wanted.square()).sqrt().clamp(min=1e-6)
    parameters = [p for one in layers for p in one.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DESCENTS)
    for _ in range(DESCENTS):
        values = inputs
        for one in layers[:-1]:
            values = nn.functional.softsign(one(values))
        loss = shares @ (layers[-1](values) - wanted / scale).square().sum(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        layers[-1].weight.mul_(scale[:, None])
        layers[-1].bias.mul_(scale)
        tables = [torch.cat([one.weight, one.bias[:, None]], 1) for one in layers]
    return [x for table in tables for x in table.flatten().tolist()]
