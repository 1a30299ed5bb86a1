"""One run: a task, a method, a starting rate and a seed; and the loop that all studies share."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.methods import Method, Stepper
from bench.tasks import Problem, Task

Key = tuple[str, str, float, float, int]


@dataclass(frozen=True)
class Cell:
    task: Task  # what is learnt
    method: Method  # how
    rate: float  # the starting learning rate
    seed: int  # of the weights and batches, the same for every method and rate
    factor: float = 1.0  # the horizon that the method is told, over the steps that the run has
    looks: int = 0  # at the held-out loss while training, evenly spaced; the last one at the end

    @property
    def stretches(self) -> list[range]:
        """The run's steps, cut where somebody looks."""
        looks = max(1, min(self.looks, self.task.steps))
        ends = [round(look * self.task.steps / looks) for look in range(looks + 1)]
        return [range(begin, end) for begin, end in pairwise(ends)]

    @property
    def key(self) -> Key:
        return self.task.name, self.method.name, self.factor, self.rate, self.seed

    def stepper(self, parameters: Iterable[nn.Parameter]) -> Stepper:
        horizon = max(1, round(self.factor * self.task.steps))
        return self.method.start(list(parameters), self.rate, horizon, self.seed)


@dataclass(frozen=True)
class Outcome:
    """Held-out losses, which may be infinite or NaN; wall clock of the training."""

    initial: float  # before
    final: float  # after
    seconds: float
    curve: tuple[float, ...] = ()  # at each of the cell's looks


def train(problem: Problem, stepper: Stepper, steps: Iterable[int]) -> list[Tensor]:
    """Take these steps, counted from 0; return their losses, scalars without a graph."""
    losses = []
    for step in steps:
        loss = problem.loss(step)
        loss.backward()
        stepper.step(loss)
        losses.append(loss.detach())
    return losses


def losses_of(losses: Sequence[Tensor]) -> list[float]:
    return torch.stack(list(losses)).tolist()  # type: ignore[no-any-return]


def run(cell: Cell) -> Outcome:
    """Train from the start to the end, whatever the loss does: all have the same budget."""
    problem = cell.task.start(cell.seed)
    initial = problem.held_out_loss()
    stepper = cell.stepper(problem.objective.parameters())
    seconds, curve = 0.0, []
    for steps in cell.stretches:
        begin = time.perf_counter()
        train(problem, stepper, steps)
        seconds += time.perf_counter() - begin
        if steps.stop < cell.task.steps:
            with stepper.judged():
                curve.append(problem.held_out_loss())
    stepper.finish()
    return outcome(cell, initial, [*curve, problem.held_out_loss()], seconds)


def outcome(cell: Cell, initial: float, losses: Sequence[float], seconds: float) -> Outcome:
    """Of the held-out losses after each stretch; a cell without looks keeps only the last."""
    return Outcome(initial, losses[-1], seconds, tuple(losses) if cell.looks else ())
