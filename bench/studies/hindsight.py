"""How much better than the best cosine a schedule is that was made in hindsight, by both methods.

``python -m bench.studies.hindsight``: every schedule is chosen on some seeds and on one half of the
held-out set, and judged on other seeds and on the other half (docs/extensions.md#hindsight).
"""

import argparse
import math
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptiverl import hindsight
from adaptiverl.hindsight import Schedule, Training
from adaptiverl.hindsight.cosines import RATES, cosine
from bench.pictures.schedules import draw
from bench.tasks import LAW_TASKS, Batch, Task

USUAL = ("moons", "auto", "friedman", "digits", "digits-mislabelled")
OUT = Path("runs/hindsight")
STEPS = 300
CHOSEN, JUDGED = range(700, 704), range(800, 816)
"""Seeds that schedules are made on, and those that they are judged on"""
DESCENTS, SMOOTHINGS, PACE = 14, 4, 0.12


def training(task: Task, half: int, seeds: Sequence[int]) -> Training:
    """A task as `adaptiverl.hindsight` trains it, judged on one half of its held-out set."""

    def make(seed: int) -> tuple[nn.Module, Callable[[int], Batch]]:
        problem = task.start(seed)
        return problem.objective, problem.batch

    def loss(objective: nn.Module, *batch: Tensor) -> Tensor:
        found: Tensor = objective(*batch)
        return found

    held_out: list[Batch] = [tuple(x[half::2] for x in b) for b in task.start(0).held_out]
    return hindsight.training_of(make, loss, held_out, task.steps, seeds)


def study(task: Task, out: Path) -> str:
    """One line of the table; the schedules are kept."""
    chosen, judged = training(task, 0, CHOSEN), training(task, 1, JUDGED)
    rate, losses = hindsight.best_cosine(chosen)
    start = Schedule.like(cosine(rate, task.steps)[:, 0])
    reference = float(losses.double().mean())
    found = {
        "smooth": hindsight.smooth(chosen, start, rounds=SMOOTHINGS),
        "descend": hindsight.descend(chosen, start, rounds=DESCENTS, pace=PACE),
    }
    for name, one in found.items():
        one.schedule.save(out / f"{task.name}-{name}.json")
    of_cosine, *others = tried_on(judged, rate, [one.schedule for one in found.values()])
    cells = [f"{task.name}", f"{rate:g}", f"{of_cosine.mean():.4f}"]
    for one, other in zip(found.values(), others, strict=True):
        cells += [f"{one.after / reference - 1:+.1%}", against(other, of_cosine)]
    return f"| {' | '.join(cells)} |"


def kept(names: Sequence[str], folder: Path) -> dict[str, dict[str, Schedule]]:
    """What an earlier run of this command wrote, by task and by way."""
    ways = {"smoothing": "smooth", "hypergradients": "descend"}
    return {
        name: {way: Schedule.load(folder / f"{name}-{file}.json") for way, file in ways.items()}
        for name in names
    }


def tried_on(judged: Training, rate: float, schedules: Sequence[Schedule]) -> Tensor:
    """Losses of the cosine from a rate, and of schedules, on the same seeds: [1 + n, seeds]."""
    knobs = [cosine(rate, judged.steps), *(schedule.knobs() for schedule in schedules)]
    return hindsight.final_losses(judged, torch.stack(knobs)).double()


def against(losses: Tensor, reference: Tensor) -> str:
    """The mean paired difference, in shares of the reference's mean, with its standard error."""
    shares = (losses - reference) / reference.mean()
    error = shares.std() / math.sqrt(len(shares))
    return f"{shares.mean():+.1%} ± {error:.1%}"


def memory_of(steps: int) -> str:
    """What one hypergradient takes beyond what was there before; 29,458 numbers, one seed."""
    inputs, labels = torch.randn(2000, 64), torch.randint(0, 10, (2000,))

    def make(seed: int) -> tuple[nn.Module, Callable[[int], Batch]]:
        torch.manual_seed(seed)
        layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 152), nn.ReLU())
        net = nn.Sequential(*layers, nn.Linear(152, 10))
        return net, lambda step: (inputs[step % 30 * 64 :][:64], labels[step % 30 * 64 :][:64])

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(x), y)

    trained = hindsight.training_of(make, loss, [(inputs, labels)], steps, seeds=(0,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hindsight.hypergradient(trained, Schedule.constant(1e-3, steps))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{trained.start().numel():,} numbers, {steps:,} steps: {taken / 1024:.0f} MiB at most"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=LAW_TASKS, metavar="T")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT, help=f"of the schedules ({OUT})")
    parser.add_argument("--draw", type=Path, help="train nothing: draw the schedules kept in --out")
    parser.add_argument("--memory", action="store_true", help="of one hypergradient, and no more")
    given = parser.parse_args(arguments)
    if given.memory:
        print(memory_of(given.steps))
        return
    if given.draw is not None:
        draw(kept(given.tasks, given.out), given.draw)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(
        f"{given.steps} steps, {len(RATES)} rates; chosen on {len(CHOSEN)} seeds, judged on "
        f"{len(JUDGED)} others\n"
    )
    print(
        "| task | best cosine: rate | its loss | smoothing: chosen | judged | hypergradients: "
        "chosen | judged |"
    )
    print("| --- |" + " ---: |" * 6, flush=True)
    for name in given.tasks:
        print(study(replace(LAW_TASKS[name], steps=given.steps), given.out), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
