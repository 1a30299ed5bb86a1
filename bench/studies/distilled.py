"""What the distilled law is worth on tasks that no fit saw: ``python -m bench.studies.distilled``.

It reads the schedules that ``python -m bench.studies.hindsight`` wrote. Every task is left out in
its turn: f_φ is fitted to the others', and trains the one that is left, beside the laws that need
no fit and a cosine whose rate was tuned on the task itself, on seeds that nothing was chosen by.
``--ship`` also fits to all of them and writes the package's file.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adaptiverl import Control, hindsight
from adaptiverl.hindsight import Examples, Schedule
from adaptiverl.trace import Trace
from adaptiverl.weights import SHIPPED, Weights
from bench.methods import METHODS
from bench.methods.base import Method
from bench.methods.ours import Adaptive
from bench.pictures.schedules import draw_rates
from bench.run.cells import Cell
from bench.run.side_by_side import run_together
from bench.studies.grid import RATES
from bench.studies.hindsight import CHOSEN, OUT, STEPS, USUAL, training
from bench.studies.paired import train
from bench.tasks import LAW_TASKS, Task

STARTS = (1e-4, 1e-3, 1e-2)
SEEN, JUDGED = range(704, 708), range(820, 824)
"""Seeds of the examples, and those that the laws are judged on"""
SHAPES: dict[str, tuple[int, ...]] = {"linear map": (), "network of 16": (16,)}
SHIPPED_SHAPE = "network of 16"
UNSEEN = "auto-tanh"
UNFITTED = {"climb": "alignment", "find_lr": "range-test", "loss law": "loss"}


def examples(task: Task, folder: Path) -> Examples:
    """Those of a task's schedule."""
    schedule = Schedule.load(folder / f"{task.name}-descend.json")
    return hindsight.examples(training(task, 0, SEEN), schedule)


def asks(weights: Weights) -> Method:
    """AdaptiveAdamW under these weights."""
    control = partial(Control.distilled, weights=weights)
    return Adaptive(name="distilled", title="ours: distilled law", control=control)


def losses(task: Task, method: Method, rates: Sequence[float], seeds: Sequence[int]) -> Tensor:
    """Held-out losses at the end, [rates, seeds]; infinite where a run diverged."""
    cells = [Cell(task, method, rate, seed) for rate in rates for seed in seeds]
    found = torch.tensor([outcome.final for outcome in run_together(cells)], dtype=torch.float64)
    return found.nan_to_num(math.inf).view(len(rates), len(seeds))


def tuned(task: Task) -> tuple[float, Tensor]:
    """The best of seven cosines on other seeds, and its losses on those of the judgement."""
    means = losses(task, METHODS["cosine"], RATES, CHOSEN[:2]).mean(1)
    rate = RATES[int(means.argmin())]
    return rate, losses(task, METHODS["cosine"], [rate], JUDGED)[0]


def judge(task: Task, fits: Mapping[str, Weights]) -> dict[str, list[float]]:
    """Each law's mean loss from each start over the tuned cosine's, by its name."""
    rate, reference = tuned(task)
    ways = {name: METHODS[known] for name, known in UNFITTED.items()}
    ways |= {f"distilled, {name}": asks(weights) for name, weights in fits.items()}
    print(f"\n{task.name}: cosine from {rate:g} ends at {reference.mean():.4f}\n")
    print("| | " + " | ".join(f"from {start:g}" for start in STARTS) + " |")
    print("| --- |" + " ---: |" * len(STARTS))
    found = {}
    for name, method in ways.items():
        ratios = losses(task, method, STARTS, JUDGED) / reference.mean()
        paired = ratios - reference / reference.mean()
        errors = paired.std(1) / math.sqrt(len(JUDGED))
        found[name] = ratios.mean(1).tolist()
        cells = [f"{m:.2f} ± {e:.2f}" for m, e in zip(found[name], errors.tolist(), strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return found


def traces(task: Task, seed: int = JUDGED[0]) -> dict[str, Trace]:
    """What the law that ships does with α from each start, on a task that it was not fitted to."""
    control = Control.distilled(task.steps)
    return {f"from {start:g}": train(task, control, start, seed)[1] for start in STARTS}


def summary(found: Sequence[Mapping[str, Sequence[float]]]) -> None:
    """Geometric means over the tasks, and the worst cell."""
    print("\nall tasks, geometric mean; the worst\n")
    print("| | " + " | ".join(f"from {start:g}" for start in STARTS) + " | worst |")
    print("| --- |" + " ---: |" * (len(STARTS) + 1))
    for name in found[0]:
        columns = list(zip(*(one[name] for one in found), strict=True))
        means = [f"{statistics.geometric_mean(column):.2f}" for column in columns]
        print(f"| {name} | {' | '.join(means)} | {max(map(max, columns)):.2f} |")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=LAW_TASKS, metavar="T")
    parser.add_argument("--schedules", type=Path, default=OUT, help=f"their folder ({OUT})")
    parser.add_argument("--steps", type=int, default=0, help="of the judged runs (the schedules')")
    parser.add_argument("--ship", action="store_true", help="also fit to all, and write the file")
    parser.add_argument("--draw", type=Path, help=f"judge nothing: train {UNSEEN}, draw α there")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.draw is not None:
        task = replace(LAW_TASKS[UNSEEN], steps=STEPS)
        draw_rates(traces(task), task.title, given.draw)
        return
    made: dict[str, Examples] = {}
    for name in given.tasks:
        steps = Schedule.load(given.schedules / f"{name}-descend.json").steps
        made[name] = examples(replace(LAW_TASKS[name], steps=steps), given.schedules)
        print(f"{name}: {len(made[name].moves)} examples of {steps} steps", flush=True)
    if given.ship:
        hindsight.distill(list(made.values()), SHAPES[SHIPPED_SHAPE]).save(SHIPPED)
    found = []
    for name in given.tasks:
        others = [one for other, one in made.items() if other != name]
        fits = {shape: hindsight.distill(others, hidden) for shape, hidden in SHAPES.items()}
        found.append(judge(replace(LAW_TASKS[name], steps=given.steps or steps), fits))
    summary(found)


if __name__ == "__main__":
    main(sys.argv[1:])
