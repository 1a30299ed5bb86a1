"""Many cells of one small task at once: torch.func.vmap takes all their gradients together.

Side by side, twelve small models' passes take about as long as one's. Each cell has its own
optimizer, on its own slice of the stacked parameters.
"""

import time
import traceback
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from bench.run.cells import Cell, Outcome
from bench.run.processes import Result, in_one_thread
from bench.tasks import Problem


def run_together(cells: Sequence[Cell]) -> list[Outcome]:
    (task,) = {cell.task for cell in cells}
    problems = {seed: task.start(seed) for seed in {cell.seed for cell in cells}}
    own = [problems[cell.seed] for cell in cells]
    initial = [problem.held_out_loss() for problem in own]
    stack = {
        name: torch.stack([dict(p.objective.named_parameters())[name].detach() for p in own])
        for name, _ in own[0].objective.named_parameters()
    }
    parameters = [[nn.Parameter(part[i]) for part in stack.values()] for i in range(len(cells))]
    steppers = [cell.stepper(mine) for cell, mine in zip(cells, parameters, strict=True)]
    begin = time.perf_counter()
    for step in range(task.steps):
        gradients, losses = _gradients(own, stack, step)
        for i, stepper in enumerate(steppers):
            for parameter, gradient in zip(parameters[i], gradients, strict=True):
                parameter.grad = gradient[i]
            stepper.step(losses[i])
    for stepper in steppers:
        stepper.finish()
    share = (time.perf_counter() - begin) / len(cells)
    finals = [_held_out(problem, mine) for problem, mine in zip(own, parameters, strict=True)]
    return [Outcome(*losses, share) for losses in zip(initial, finals, strict=True)]


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


def side_by_side(cells: Sequence[Cell]) -> Generator[Result]:
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.method.name, cell.factor), []).append(cell)
    with in_one_thread():
        for group in groups.values():
            results: Sequence[Outcome | str]
            try:
                results = run_together(group)
            except Exception:
                results = [traceback.format_exc()] * len(group)
            yield from zip(group, results, strict=True)
