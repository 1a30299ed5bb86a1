"""What state of 8 and 16 bits, and weights of 16 and 24, cost (method.md#storage).

``python -m bench.studies.storage``: first the moments alone, rounded to nearest and by chance,
beside float64's; then whole trainings, by paired seeds: the same start and batches for every way to
store. The rate is constant in the first half of a run, and falls to 0 in a line in the second; a
loss is the mean of the held-out ones that were taken in the last fifth. ``--steps`` makes runs
longer, ``--fifths`` shows every fifth of them. State in 8 bits is that of all tensors here, also of
those that are too small for it elsewhere.
"""

import argparse
import copy
import dataclasses
import math
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from adaptiverl.kernels.rounding import OF_SLOTS, random_bits, round_stochastically
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control, codecs
from adaptiverl.kernels import blocks
from bench.tasks import TASKS, Task

HALF = torch.bfloat16
WAYS: dict[str, tuple[torch.dtype, Mapping[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16 state": (torch.float32, {"state_dtype": HALF}),
    "int8 state": (torch.float32, {"state_dtype": torch.int8}),
    "bfloat16 weights": (HALF, {}),
    "bfloat16 weights and state": (HALF, {"state_dtype": HALF}),
    "bfloat16 weights, int8 state": (HALF, {"state_dtype": torch.int8}),
    "bfloat16 weights, to nearest": (HALF, {"stochastic_rounding": False}),
    "bfloat16 weights, error terms": (HALF, {"master_bits": 8}),
    "bfloat16 weights, error terms, int8 state": (
        HALF,
        {"master_bits": 8, "state_dtype": torch.int8},
    ),
}
"""The weights' dtype, and the optimizer's options"""
EVALUATIONS = 25
"""Held-out losses that are taken in a run, at equal distances; a fifth of them is averaged"""
USUAL = ("digits-mlp", "autoencoder", "digits-cnn")


def moment_errors(beta: float, steps: int, elements: int = 4096) -> tuple[float, ...]:
    """How far a moving average of squares is off at the end.

    In bfloat16 to nearest and by chance, and in blocks of 8-bit codes likewise.

    The gradient's size falls to a third after half of the steps; the errors are the means over all
    elements, relative to float64's.
    """
    generator = torch.Generator().manual_seed(0)
    exact = torch.ones(elements, dtype=torch.float64)
    nearest, chance = exact.to(HALF), exact.to(HALF)
    nearest_code, chance_code = exact.float(), exact.float()
    key = (torch.tensor(1), torch.tensor(2))
    for step in range(steps):
        size = 1.0 if step < steps // 2 else 1 / 3
        square = (size * torch.randn(elements, generator=generator)).square()
        exact = beta * exact + (1 - beta) * square.double()
        nearest = (beta * nearest.float() + (1 - beta) * square).to(HALF)
        bits = random_bits(key, 0, torch.tensor(step), 0, elements)
        moved = beta * chance.float() + (1 - beta) * square
        chance = round_stochastically(moved, HALF, bits, OF_SLOTS[1]).to(HALF)
        nearest_code = _coded(beta * nearest_code + (1 - beta) * square)
        chance_code = _coded(beta * chance_code + (1 - beta) * square, bits)
    wanted = exact.mean()
    found = (nearest, chance, nearest_code, chance_code)
    return tuple(float(v.double().mean() / wanted - 1) for v in found)


def _coded(values: Tensor, bits: Tensor | None = None) -> Tensor:
    """What blocks of codes hold of averages of squares."""
    kind = blocks.UNSIGNED
    return blocks.decode(*blocks.encode(values, kind, bits, OF_SLOTS[1]), kind)


def losses_of_fifths(task: Task, way: str, seed: int, lr: float) -> list[float]:
    """The mean held-out loss in each fifth of a run, the weights in float32 again."""
    dtype, options = WAYS[way]
    problem = task.start(seed)
    model = problem.objective.to(dtype)
    optimizer = AdaptiveAdamW(model.parameters(), lr, control=Control.frozen(), **options)
    taken = []
    for step in range(task.steps):
        left = (task.steps - step) / task.steps
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * left)
        loss = model(*(_as(x, dtype) for x in problem.batch(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) * EVALUATIONS % task.steps < EVALUATIONS:
            shown = dataclasses.replace(problem, objective=copy.deepcopy(model).float())
            taken.append(shown.held_out_loss())
    fifth = EVALUATIONS // 5
    return [statistics.mean(taken[i : i + fifth]) for i in range(0, EVALUATIONS, fifth)]


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def difference(ours: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
    """The mean relative difference of paired runs, and its standard error."""
    relative = [a / b - 1 for a, b in zip(ours, plain, strict=True)]
    if len(relative) == 1:
        return relative[0], math.nan
    return statistics.mean(relative), statistics.stdev(relative) / math.sqrt(len(relative))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, help="of a run (default: the task's)")
    parser.add_argument("--fifths", action="store_true", help="every fifth of a run, in columns")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS)[1:], choices=WAYS, metavar="WAY")
    parser.add_argument("--no-moments", action="store_true", help="trainings alone")
    given = parser.parse_args(arguments)
    codecs.SMALL = 0
    # One way loses updates on purpose, and says so.
    warnings.filterwarnings("ignore", ".*of the updates of parameters")
    if not given.no_moments:
        print_moments()
    seeds = range(given.first, given.first + given.seeds)
    for name in given.tasks:
        task = TASKS[name]
        if given.steps is not None:
            task = dataclasses.replace(task, steps=given.steps)
        print_trainings(task, given.ways, seeds, given.lr, given.fifths)


def print_moments() -> None:
    print("| β | bfloat16 to nearest | by chance | 8 bits to nearest | by chance |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for beta in (0.9, 0.95, 0.99, 0.999):
        errors = " | ".join(f"{error:+.1%}" for error in moment_errors(beta, steps=10_000))
        print(f"| {beta} | {errors} |", flush=True)


def print_trainings(
    task: Task, ways: Sequence[str], seeds: Sequence[int], lr: float, fifths: bool
) -> None:
    shown = range(5) if fifths else range(4, 5)
    print(f"\n{task.title}, {task.steps} steps, {len(seeds)} seeds\n")
    print("| stored | loss |" + " over float32 |" * len(shown))
    print("| --- | ---: |" + " ---: |" * len(shown))
    plain: list[list[float]] = []
    for way in ("float32", *ways):
        found = [losses_of_fifths(task, way, seed, lr) for seed in seeds]
        plain = plain or found
        cells = [f"{statistics.mean(losses[-1] for losses in found):.4f}"]
        for i in shown:
            pairs = [losses[i] for losses in found], [losses[i] for losses in plain]
            mean, error = difference(*pairs)
            cells.append(f"{mean:+.2%}" + (f" ± {error:.2%}" if len(pairs[0]) > 1 else ""))
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
