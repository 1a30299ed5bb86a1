"""How long the searches for a rate take, and what they hold: ``python -m bench.studies.searches``.

Each run is trained until its rate is held, and no further. Rows go to ``--out``, as CSV.
"""

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from adaptiverl.law.numbers import WARM_UP
from bench.machine import commit
from bench.methods import METHODS, Method
from bench.run.cells import Cell, train
from bench.studies.grid import longer
from bench.tasks import LAW_TASKS, Task

USUAL = ("digits", "auto", "sin", "logreg", "digits-mislabelled", "friedman", "moons", "auto-tanh")
SEARCHES = ("range-test", "alignment")
RATES = (1e-4, 1e-1)


class Found(NamedTuple):
    """A search that is over."""

    task: str
    method: str
    rate: float  # that it was given
    seed: int
    steps: int  # of the run
    ramp: int  # steps until the weights went back; 0 under a law that never goes back
    search: int  # steps until a rate is held
    held: float  # that rate


def searched(task: Task, method: Method, rate: float, seed: int) -> Found:
    """One run, until its rate is held."""
    cell = Cell(task, method, rate, seed)
    problem = task.start(seed)
    stepper = cell.stepper(problem.objective.parameters())
    ramp, before = 0, 0.0
    for step in range(task.steps):
        train(problem, stepper, [step])
        knobs = stepper.optimizer.knobs()
        # A ramp only rises, until it ends far below its top.
        if method.name == "range-test" and not ramp and knobs["alpha"] < before:
            ramp = step + 1
        before = knobs["alpha"]
        if knobs["held"]:
            break
    search = step + 1
    if ramp == search:  # the warm-up has begun
        rest = math.ceil(WARM_UP * task.steps)
        train(problem, stepper, range(search, min(search + rest, task.steps)))
    held = stepper.optimizer.knobs()["alpha"]
    return Found(task.name, method.name, rate, seed, task.steps, ramp, search, held)


def line(name: str, found: Sequence[Found]) -> str:
    """Of one task and method: median and most of both counts, the held rate and its scatter."""
    ramps, searches = [f.ramp for f in found], [f.search for f in found]
    logs = [math.log10(f.held) for f in found]
    climbed = sum(f.search > f.ramp for f in found)  # all of a law without a ramp
    counts = [f"{statistics.median(x):g}, {max(x)}" for x in (ramps, searches)]
    held = f"{10 ** statistics.fmean(logs):.2g} (± {statistics.stdev(logs):.2f} decades)"
    return f"| {name} | {' | '.join(counts)} | {climbed} of {len(found)} | {held} |"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=LAW_TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(7000, 7010)))
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES))
    parser.add_argument("--longer", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/searches.csv"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    revision = commit()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    print("| search | ramp: median, most | until held | climbed on | held rate |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Found._fields, "commit"])
        for task in [longer(LAW_TASKS[name], given.longer) for name in given.tasks]:
            for method in SEARCHES:
                for rate in given.rates:
                    found = [searched(task, METHODS[method], rate, seed) for seed in given.seeds]
                    writer.writerows([*one, revision] for one in found)
                    print(line(f"{task.name}, {method} from {rate:g}", found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
