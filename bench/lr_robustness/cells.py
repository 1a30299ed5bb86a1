"""One run: a task, a method, a starting rate and a seed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.lr_robustness.methods import Method
from bench.lr_robustness.tasks import Task


@dataclass(frozen=True)
class Cell:
    """What is run.

    Attributes:
        task: What is learnt.
        method: How.
        rate: The starting learning rate.
        seed: Of the weights and batches, the same for every method and rate.
        factor: The horizon that the method is told, over the steps that the run has.
    """

    task: Task
    method: Method
    rate: float
    seed: int
    factor: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        initial: Held-out loss before the first step.
        final: Held-out loss after the last; may be infinite or NaN.
        seconds: Wall clock from the first step to the last evaluation.
    """

    initial: float
    final: float
    seconds: float


def run(cell: Cell) -> Outcome:
    """Train from the start to the end, whatever the loss does: all have the same budget."""
    steps = cell.task.steps
    problem = cell.task.start(cell.seed)
    initial = problem.held_out_loss()
    horizon = max(1, round(cell.factor * steps))
    parameters = list(problem.model.parameters())
    stepper = cell.method.start(parameters, cell.rate, horizon, cell.seed)
    begin = time.perf_counter()
    for step in range(steps):
        loss = problem.loss(step)
        loss.backward()
        stepper.step(loss)
    stepper.finish()
    final = problem.held_out_loss()
    return Outcome(initial, final, time.perf_counter() - begin)
