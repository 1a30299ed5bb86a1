"""What pulses are worth (method.md#pulse): ``python -m bench.studies.pulse``.

Every task's held-out set is cut in two: one half is what pulses see, the other what is reported.
The cosine's rate is chosen on other seeds than those that are reported, and so were the constants
of the rule.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from bench.methods import METHODS, Method
from bench.methods.base import Parameters
from bench.methods.ours import Adaptive, Controls, Steered, climb, find_lr
from bench.pictures.pulse import draw
from bench.run.cells import Cell
from bench.run.side_by_side import run_together
from bench.tasks import TASKS, Batch, Problem, Task

USUAL = (
    *("digits-mislabelled", "logreg", "digits-noise", "digits", "auto", "sin", "digits-cnn-32"),
    *("friedman", "moons", "auto-tanh", "digits-deep"),
)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
CHOSEN_ON = (20, 21, 22, 23)
REPORTED_ON = (700, 701, 702, 703, 704, 705)
PULSES = 100
"""In a run"""


@dataclass(frozen=True, kw_only=True)
class Halved(Task):
    """A task that is judged by one half of its held-out examples."""

    whole: Task

    def start(self, seed: int) -> Problem:
        problem = self.whole.start(seed)
        return replace(problem, held_out=[half_of(problem, 1)])


def half_of(problem: Problem, which: int) -> Batch:
    """Every other example that is held out."""
    parts = zip(*problem.held_out, strict=True)
    return tuple(torch.cat(part)[which::2] for part in parts)


class Pulsing(Steered):
    """Tells the optimizer the other half's loss now and then."""

    seen: Problem
    parameters: Parameters
    spacing: int
    keeps: bool
    least = float("inf")
    best: Sequence[Tensor] = ()

    def step(self, loss: Tensor) -> None:
        super().step(loss)
        if self.taken % self.spacing == 0:
            validation = self.validation_loss()
            self.optimizer.pulse(validation)
            if self.keeps and validation < self.least:
                self.least = float(validation)
                self.best = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def validation_loss(self) -> Tensor:
        objective = self.seen.objective
        names = [name for name, _ in objective.named_parameters()]
        own: dict[str, Tensor] = dict(zip(names, self.parameters, strict=True))
        objective.eval()
        loss: Tensor = functional_call(objective, own, self.seen.held_out[0])
        objective.train()
        return loss

    def finish(self) -> None:
        """The weights of the least pulse, where they were kept."""
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.best, strict=False):
                parameter.copy_(kept)


@dataclass(frozen=True, kw_only=True)
class Pulsed(Adaptive):
    task: Task
    keeps: bool = False  # whether the weights of the least pulse are put back at the end

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        stepper = Pulsing(super().start(parameters, rate, horizon, seed).optimizer)
        problem = self.task.start(seed)
        stepper.seen = replace(problem, held_out=[half_of(problem, 0)])
        stepper.parameters, stepper.keeps = list(parameters), self.keeps
        stepper.spacing = max(1, horizon // PULSES)
        return stepper


LAWS: dict[str, Controls] = {"climb": climb, "find_lr": find_lr}


def ways(task: Task, laws: Sequence[str]) -> dict[str, Method]:
    """What is compared, but for the cosine."""
    found: dict[str, Method] = {}
    for law in laws:
        found[law] = Adaptive(name=law, control=LAWS[law])
        for keeps, name in ((False, f"{law}, pulse"), (True, f"{law}, pulse, best weights")):
            found[name] = Pulsed(name=name, control=LAWS[law], task=task, keeps=keeps)
    return found


def losses(cells: Sequence[Cell]) -> list[float]:
    """The final loss of each, in order."""
    return [outcome.final for outcome in run_together(cells)]


def best_rate(task: Task, seeds: Sequence[int]) -> float:
    """Of the cosine, by the mean over these seeds."""
    cells = [Cell(task, METHODS["cosine"], rate, seed) for rate in RATES for seed in seeds]
    found = losses(cells)
    means = [statistics.mean(found[i * len(seeds) :][: len(seeds)]) for i in range(len(RATES))]
    return RATES[means.index(min(means))]


def ratio(own: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Mean over the reference's mean, and the standard error by the paired differences."""
    mean = statistics.mean(reference)
    differences = [(a - b) / mean for a, b in zip(own, reference, strict=True)]
    return 1 + statistics.mean(differences), statistics.stdev(differences) / len(own) ** 0.5


def curves(task: Task, seed: int) -> dict[str, list[tuple[float, ...]]]:
    """Of the climb with pulses and without: step, held-out loss as pulses see it, ℓ̄ and α."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for name, moves in (("climb", False), ("climb, pulse", True)):
        problem = task.start(seed)
        parameters = list(problem.objective.parameters())
        method = Pulsed(name=name, control=climb, task=task)
        stepper: Any = method.start(parameters, 1e-3, task.steps, seed)
        pulse = stepper.optimizer.pulse
        rows = found[name] = []

        def note(loss: Tensor, stepper: Any = stepper, rows: Any = rows, tell: Any = None) -> None:
            if tell is not None:
                tell(loss)
            knobs = stepper.optimizer.knobs()
            rows.append((knobs["step"], float(loss), knobs["loss_mean"], knobs["lr"]))

        stepper.optimizer.pulse = partial(note, tell=pulse if moves else None)
        for step in range(task.steps):
            loss = problem.loss(step)
            loss.backward()
            stepper.step(loss.detach())
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=TASKS, metavar="TASK")
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=LAWS, metavar="LAW")
    parser.add_argument("--chosen-on", nargs="*", type=int, default=CHOSEN_ON, metavar="SEED")
    parser.add_argument("--reported-on", nargs="*", type=int, default=REPORTED_ON, metavar="SEED")
    parser.add_argument("--picture", type=Path, help="draw one run of the first task")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.picture is not None:
        draw(curves(TASKS[given.tasks[0]], given.reported_on[0]), given.picture)
    names = list(ways(TASKS[given.tasks[0]], given.laws))
    print("| task | cosine, its rate | " + " | ".join(names) + " |")
    print("| --- | ---: |" + " ---: |" * len(names), flush=True)
    for name in given.tasks:
        whole = TASKS[name]
        task = Halved(name=name, steps=whole.steps, batch=whole.batch, whole=whole)
        rate = best_rate(task, given.chosen_on)
        cells = [Cell(task, METHODS["cosine"], rate, seed) for seed in given.reported_on]
        reference = losses(cells)
        row = []
        for method in ways(whole, given.laws).values():
            own = losses([Cell(task, method, 1e-3, seed) for seed in given.reported_on])
            mean, error = ratio(own, reference)
            row.append(f"{mean:.3f} ± {error:.3f}")
        print(
            f"| {name} | {statistics.mean(reference):.4f}, {rate:g} | {' | '.join(row)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
