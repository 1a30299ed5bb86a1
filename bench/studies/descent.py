"""The searches with SGD, beside a tuned SGD with a cosine: ``python -m bench.studies.descent``.

The cosine's rate is chosen on seeds A; all is compared on seeds B, paired.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adaptiverl import AdaptiveSGD, Control
from bench.figures import estimate
from bench.methods.base import Method, Parameters, Stepper
from bench.methods.ours import Steered, climb, find_lr
from bench.run.cells import Cell
from bench.run.grid import complete, current, plan
from bench.run.rows import Row, Rows
from bench.tables import ratio_text
from bench.tasks import LAW_TASKS

MOMENTUM = 0.9
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
CHOSEN, JUDGED = range(6000, 6003), range(7000, 7010)
USUAL = ("digits", "moons", "friedman")


@dataclass(frozen=True, kw_only=True)
class SGD(Method):
    """torch's, with momentum and a cosine."""

    has_horizon = True

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Stepper:
        optimizer = torch.optim.SGD(parameters, rate, MOMENTUM)
        return Stepper(optimizer, self.schedule(rate, horizon, "cosine"))


@dataclass(frozen=True, kw_only=True)
class Searching(Method):
    """`AdaptiveSGD` under a search, told the loss."""

    is_ours = True

    control: Callable[[int], Control]

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        return Steered(
            AdaptiveSGD(
                parameters,
                rate,
                MOMENTUM,
                control=self.control(horizon),
                seed=seed,
                process_group=False,
            )
        )


COSINE = SGD(name="sgd-cosine", has_horizon=True)
SEARCHES = (  # rows are named by what the two were called: "find-lr" is the climb
    Searching(name="sgd-range-test", control=find_lr, has_horizon=True),
    Searching(name="sgd-find-lr", control=climb, has_horizon=True),
)


def line(task: str, rows: Sequence[Row]) -> str:
    """The task's line of the table."""
    mine = [row for row in rows if row.task == task]

    def losses(method: str, rate: float | None = None) -> dict[int, float]:
        return {
            row.seed: row.initial if row.diverged else row.final
            for row in mine
            if row.method == method and rate in (None, row.rate)
        }

    def on_a(rate: float) -> float:
        return sum(losses(COSINE.name, rate)[seed] for seed in CHOSEN)

    best = min(RATES, key=on_a)
    below = losses(COSINE.name, best)
    cells = []
    for search in SEARCHES:
        found = losses(search.name)
        logs = estimate(math.log(found[seed] / below[seed]) for seed in JUDGED)
        cells.append(ratio_text(logs.exponential()))
    return f"| {task} | {best:g} | {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=LAW_TASKS)
    parser.add_argument("--out", type=Path, default=Path("runs/descent"))
    parser.add_argument("--together", type=int, default=64)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tasks = [LAW_TASKS[name] for name in given.tasks]
    cells: list[Cell] = [
        *plan(tasks, [COSINE], RATES, [*CHOSEN, *JUDGED]),
        *plan(tasks, SEARCHES, [1e-3], JUDGED),
    ]
    with Rows(given.out / "rows.csv") as store:
        for cell, message in complete(store, cells, 1, "vmap", given.together):
            print(cell.key, message, file=sys.stderr)
        rows = current(store.rows, cells)
    print("| task | SGD's best rate | " + " | ".join(m.name for m in SEARCHES) + " |")
    print("| --- | ---: |" + " ---: |" * len(SEARCHES))
    print("\n".join(line(name, rows) for name in given.tasks))


if __name__ == "__main__":
    main(sys.argv[1:])
