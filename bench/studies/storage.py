"""What state of 8 and 16 bits, and weights of 16 and 24, cost (method.md#storage).

``python -m bench.studies.storage``: first the moments alone, rounded to nearest and by chance,
beside float64's; then whole trainings, by paired seeds: the same start and batches for every way to
store. The rate is constant in the first half of a run, and falls to 0 in a line in the second,
unless ``--control`` lets one of ours choose it; a loss is the mean of the held-out ones that were
taken in the last fifth. ``--steps`` makes runs longer, ``--fifths`` shows every fifth of them.
``--rows`` keeps the runs in a file, and takes from it those that are there.

"moved by a bit" is float32 again, from weights that differ in their last bit: how far runs go apart
by rounding alone, which no way of storing can be below.
"""

import argparse
import copy
import dataclasses
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adaptiverl.kernels.rounding import OF_SLOTS, random_bits, round_stochastically
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control, codecs
from adaptiverl.kernels import blocks
from bench import machine
from bench.run.rows import Row, Rows
from bench.tables import markdown
from bench.tasks import TASKS, Problem, Task

HALF = torch.bfloat16
INT8: dict[str, Any] = {"state_dtype": torch.int8}
ERRORS: dict[str, Any] = {"master_bits": 8}


class Way(NamedTuple):
    """How weights and state are stored.

    Attributes:
        dtype: Of the weights, and so of all that the model computes while it trains.
        options: The optimizer's.
        small: Elements below which a tensor's state stays float32.
        moved: The first weights differ in their last bit.
    """

    dtype: torch.dtype
    options: Mapping[str, Any] = {}
    small: int = codecs.SMALL
    moved: bool = False


WAYS: dict[str, Way] = {
    "float32": Way(torch.float32),
    "moved by a bit": Way(torch.float32, moved=True),
    "bfloat16 state": Way(torch.float32, {"state_dtype": HALF}),
    "int8 state": Way(torch.float32, INT8),
    "int8 state, of all tensors": Way(torch.float32, INT8, small=0),
    "bfloat16 weights": Way(HALF),
    "bfloat16 weights and state": Way(HALF, {"state_dtype": HALF}),
    "bfloat16 weights, int8 state": Way(HALF, INT8),
    "bfloat16 weights, to nearest": Way(HALF, {"stochastic_rounding": False}),
    "bfloat16 weights, error terms": Way(HALF, ERRORS),
    "bfloat16 weights, error terms, int8 state": Way(HALF, INT8 | ERRORS),
    "bfloat16 weights, error terms, int8 state, of all tensors": Way(HALF, INT8 | ERRORS, small=0),
}
CONTROLS: dict[str, Callable[[int], Control]] = {
    "told": lambda steps: Control.frozen(),
    "climb": lambda steps: Control.climb(horizon=steps),
    "range-test": lambda steps: Control.find_lr(horizon=steps),
}
"""Who chooses the rate, by the run's steps; "told" is constant, then falls"""
EVALUATIONS = 25
"""Held-out losses that are taken in a run, at equal distances; a fifth of them is averaged"""
FIFTH = EVALUATIONS // 5
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


def trained(task: Task, way: Way, seed: int, lr: float, control: str, fifths: bool) -> list[float]:
    """The held-out losses before a run and in its course, the weights in float32 again.

    Args:
        task: What is learnt.
        way: How it is stored.
        seed: Of the weights and batches.
        lr: The rate, or where the search for it starts.
        control: One of `CONTROLS`.
        fifths: In all of the run, not in its last fifth alone.
    """
    problem = task.start(seed)
    before = problem.held_out_loss()
    problem.objective.to(way.dtype)
    if way.moved:
        _move_by_a_bit(problem.objective.parameters())
    usual, codecs.SMALL = codecs.SMALL, way.small
    try:
        return [before, *_losses(problem, way, task.steps, seed, lr, control, fifths)]
    finally:
        codecs.SMALL = usual


def _losses(
    problem: Problem, way: Way, steps: int, seed: int, lr: float, control: str, fifths: bool
) -> Iterator[float]:
    """In the course of a run; arguments as in `trained`."""
    model, steered = problem.objective, CONTROLS[control](steps)
    optimizer = AdaptiveAdamW(model.parameters(), lr, control=steered, seed=seed, **way.options)
    for step in range(steps):
        if control == "told":
            left = (steps - step) / steps
            optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * left)
        loss = model(*(_as(x, way.dtype) for x in problem.batch(step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach().float())
        is_shown = fifths or step >= steps * (EVALUATIONS - FIFTH) // EVALUATIONS
        if is_shown and (step + 1) * EVALUATIONS % steps < EVALUATIONS:
            shown = dataclasses.replace(problem, objective=copy.deepcopy(model).float())
            yield shown.held_out_loss()


def _move_by_a_bit(weights: Iterable[Tensor]) -> None:
    for weight in weights:
        weight.data.mul_(1 + torch.finfo(weight.dtype).eps)


def _as(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values


def difference(ours: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
    """The mean relative difference of paired runs, and its standard error."""
    relative = [a / b - 1 for a, b in zip(ours, plain, strict=True)]
    if len(relative) == 1 or not all(map(math.isfinite, relative)):
        return sum(relative) / len(relative), math.nan
    return statistics.mean(relative), statistics.stdev(relative) / math.sqrt(len(relative))


class Runs:
    """The runs of one kind, made where they are not in the file.

    Args:
        task: What is learnt.
        lr: The rate, or where the search for it starts.
        control: One of `CONTROLS`.
        fifths: Held-out losses are taken in all of a run.
        kept: The file; None keeps nothing.
    """

    def __init__(self, task: Task, lr: float, control: str, fifths: bool, kept: Rows | None):
        self.task, self.lr, self.control, self.fifths = task, lr, control, fifths
        self.kept = kept
        self.about = machine.provenance(torch.device("cpu"))
        self.found = {
            (row.method, row.seed): row
            for row in (kept.rows if kept else ())
            if (row.task, row.rate, row.steps) == (task.name, lr, task.steps)
            if len(row.curve) == (EVALUATIONS if fifths else FIFTH)
        }

    def of(self, way: str, seeds: Iterable[int]) -> list[Row]:
        """A way's runs, in the seeds' order."""
        return [self._run(way, seed) for seed in seeds]

    def _run(self, way: str, seed: int) -> Row:
        method = way if self.control == "told" else f"{way}; {self.control}"
        if (method, seed) in self.found:
            return self.found[method, seed]
        begun = time.perf_counter()
        before, *curve = trained(self.task, WAYS[way], seed, self.lr, self.control, self.fifths)
        row = Row(
            task=self.task.name,
            method=method,
            factor=1.0,
            rate=self.lr,
            seed=seed,
            initial=before,
            final=statistics.mean(curve[-FIFTH:]),
            seconds=round(time.perf_counter() - begun, 2),
            fingerprint="",
            steps=self.task.steps,
            device=str(self.about["device"]),
            torch=str(self.about["torch"]),
            commit=str(self.about["commit"]),
            threads=int(self.about["threads"]),
            python=str(self.about["python"]),
            curve=tuple(curve),
        )
        self.found[method, seed] = row
        if self.kept:
            self.kept.append(row)
        return row


def fifths_of(row: Row) -> list[float]:
    """The mean held-out loss in each fifth of a run, or in the last alone."""
    means = [statistics.mean(row.curve[i : i + FIFTH]) for i in range(0, len(row.curve), FIFTH)]
    return [*means[:-1], row.final]


def trainings(runs: Runs, ways: Sequence[str], seeds: Sequence[int]) -> str:
    """A line for each way, paired with float32's."""
    plain = [fifths_of(row) for row in runs.of("float32", seeds)]
    lines = []
    for way in ("float32", *ways):
        found = [fifths_of(row) for row in runs.of(way, seeds)]
        cells = [f"{statistics.mean(losses[-1] for losses in found):.4f}"]
        for ours, theirs in zip(zip(*found, strict=True), zip(*plain, strict=True), strict=True):
            mean, error = difference(ours, theirs)
            cells.append(f"{mean:+.2%}" + (f" ± {error:.2%}" if len(seeds) > 1 else ""))
        lines.append([way, *cells])
    return markdown(["stored", "loss"] + ["over float32"] * len(plain[0]), lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, help="of a run (default: the task's)")
    parser.add_argument("--fifths", action="store_true", help="every fifth of a run, in columns")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--control", default="told", choices=CONTROLS, help="who chooses the rate")
    parser.add_argument("--ways", nargs="*", default=list(WAYS)[1:], choices=WAYS, metavar="WAY")
    parser.add_argument("--rows", type=Path, help="the file of runs, read and added to")
    parser.add_argument("--no-moments", action="store_true", help="trainings alone")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # One way loses updates on purpose, and says so.
    warnings.filterwarnings("ignore", ".*of the updates of parameters")
    if not given.no_moments:
        print_moments()
    seeds = range(given.first, given.first + given.seeds)
    kept = Rows(given.rows) if given.rows else None
    for name in given.tasks:
        task = dataclasses.replace(TASKS[name], steps=given.steps or TASKS[name].steps)
        runs = Runs(task, given.lr, given.control, given.fifths, kept)
        print(f"\n{task.title}, {task.steps} steps, {len(seeds)} seeds from {given.first}\n")
        print(trainings(runs, given.ways, seeds), flush=True)


def print_moments() -> None:
    print("| β | bfloat16 to nearest | by chance | 8 bits to nearest | by chance |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for beta in (0.9, 0.95, 0.99, 0.999):
        errors = " | ".join(f"{error:+.1%}" for error in moment_errors(beta, steps=10_000))
        print(f"| {beta} | {errors} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
