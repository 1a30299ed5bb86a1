"""Many cells of one small task at once: torch.func.vmap takes all their gradients together.

Side by side, twelve small models' passes take about as long as one's. Each cell has its own
optimizer, on its own slice of the stacked parameters.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from bench.methods import Stepper
from bench.run.cells import Cell, Outcome, outcome
from bench.tasks import Problem


def run_together(cells: Sequence[Cell]) -> list[Outcome]:
    """Train the cells, which are of one task and look at it equally often."""
    ((task, _),) = {(cell.task, cell.looks) for cell in cells}
    problems = {seed: task.start(seed) for seed in {cell.seed for cell in cells}}
    own = [problems[cell.seed] for cell in cells]
    initial = [problem.held_out_loss() for problem in own]
    stack = {
        name: torch.stack([dict(p.objective.named_parameters())[name].detach() for p in own])
        for name, _ in own[0].objective.named_parameters()
    }
    parameters = [[nn.Parameter(part[i]) for part in stack.values()] for i in range(len(cells))]
    steppers = [cell.stepper(mine) for cell, mine in zip(cells, parameters, strict=True)]
    seconds, curves = 0.0, []
    for steps in cells[0].stretches:
        begin = time.perf_counter()
        for step in steps:
            _step(own, stack, parameters, steppers, step)
        seconds += time.perf_counter() - begin
        if steps.stop < task.steps:
            curves.append([_look(*mine) for mine in zip(own, parameters, steppers, strict=True)])
    for stepper in steppers:
        stepper.finish()
    curves.append([_held_out(*mine) for mine in zip(own, parameters, strict=True)])
    share = seconds / len(cells)
    by_cell = zip(cells, initial, zip(*curves, strict=True), strict=True)
    return [outcome(cell, before, after, share) for cell, before, after in by_cell]


def _step(
    problems: Sequence[Problem],
    stack: dict[str, Tensor],
    parameters: Sequence[Sequence[nn.Parameter]],
    steppers: Sequence[Stepper],
    step: int,
) -> None:
    gradients, losses = _gradients(problems, stack, step)
    for i, stepper in enumerate(steppers):
        for parameter, gradient in zip(parameters[i], gradients, strict=True):
            parameter.grad = gradient[i]
        stepper.step(losses[i])


def _look(problem: Problem, parameters: Sequence[Tensor], stepper: Stepper) -> float:
    with stepper.judged():
        return _held_out(problem, parameters)


def _gradients(
    problems: Sequence[Problem], stack: dict[str, Tensor], step: int
) -> tuple[list[Tensor], Tensor]:
    """Of every parameter, (cells, …), and the losses (cells,)."""
    objective = problems[0].objective

    def loss(parameters: dict[str, Tensor], *batch: Tensor) -> Any:
        return functional_call(objective, parameters, batch)

    drawn = {id(problem): problem.batch(step) for problem in problems}
    batches = zip(*(drawn[id(problem)] for problem in problems), strict=True)
    gradients, losses = vmap(grad_and_value(loss))(stack, *map(torch.stack, batches))
    # torch's fused AdamW on the CPU is wrong where a gradient's strides are not its parameter's.
    return [gradients[name].contiguous() for name in stack], losses.detach()


def _held_out(problem: Problem, parameters: Sequence[Tensor]) -> float:
    with torch.no_grad():
        for mine, trained in zip(problem.objective.parameters(), parameters, strict=True):
            mine.copy_(trained)
    return problem.held_out_loss()
