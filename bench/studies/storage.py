"""What state of 8 and 16 bits, and weights of 16, cost (method.md#storage).

``python -m bench.studies.storage``: first the moments alone, rounded to nearest and by chance,
beside float64's; then whole trainings, by paired seeds: the same start and batches for every way to
store. State in 8 bits is that of all tensors here, also of those that are too small for it
elsewhere.
"""

import argparse
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
from bench.tasks import TASKS, Problem, Task

HALF = torch.bfloat16
WAYS: dict[str, tuple[torch.dtype, Mapping[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16 state": (torch.float32, {"state_dtype": HALF}),
    "int8 state": (torch.float32, {"state_dtype": torch.int8}),
    "bfloat16 weights": (HALF, {}),
    "bfloat16 weights and state": (HALF, {"state_dtype": HALF}),
    "bfloat16 weights, int8 state": (HALF, {"state_dtype": torch.int8}),
    "bfloat16 weights, to nearest": (HALF, {"stochastic_rounding": False}),
}
"""The weights' dtype, and the optimizer's options"""
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


def final_loss(task: Task, way: str, seed: int, lr: float) -> float:
    """The held-out loss after a run, the weights in float32 again."""
    dtype, options = WAYS[way]
    problem = task.start(seed)
    model = problem.objective.to(dtype)
    optimizer = AdaptiveAdamW(model.parameters(), lr, control=Control.frozen(), **options)
    for step in range(task.steps):
        loss = model(*(_as(x, dtype) for x in problem.batch(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.float()
    return Problem.held_out_loss(problem)


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def difference(ours: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
    """The mean relative difference of paired runs, and its standard error."""
    relative = [a / b - 1 for a, b in zip(ours, plain, strict=True)]
    return statistics.mean(relative), statistics.stdev(relative) / math.sqrt(len(relative))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS)[1:], choices=WAYS, metavar="WAY")
    given = parser.parse_args(arguments)
    codecs.SMALL = 0
    print("| β | bfloat16 to nearest | by chance | 8 bits to nearest | by chance |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for beta in (0.9, 0.95, 0.99, 0.999):
        errors = " | ".join(f"{error:+.1%}" for error in moment_errors(beta, steps=10_000))
        print(f"| {beta} | {errors} |", flush=True)
    # One way loses updates on purpose, and says so.
    warnings.filterwarnings("ignore", ".*of the updates of parameters")
    for name in given.tasks:
        print(f"\n{TASKS[name].title}, {given.seeds} seeds\n\n| stored | loss | over float32 |")
        print("| --- | ---: | ---: |")
        plain: list[float] = []
        for way in ("float32", *given.ways):
            losses = [final_loss(TASKS[name], way, s, given.lr) for s in range(given.seeds)]
            plain = plain or losses
            mean, error = difference(losses, plain)
            loss = statistics.mean(losses)
            print(f"| {way} | {loss:.4f} | {mean:+.2%} ± {error:.2%} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
