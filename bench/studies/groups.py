"""One controller for all groups, or one of each: ``python -m bench.studies.groups``.

By paired seeds: the same start and batches for all. The second group's rate is what the user might
have got wrong: 0.1, 1 and 10 times the first's.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.control import Groups
from adaptiverl.plots import BLUE, DPI, ORANGE, STYLE
from bench.studies.paired import cell
from bench.tasks import LAW_TASKS, TASKS, Problem
from bench.tasks.base import Objective

FIRST_SEED = 600
RATE, RATIOS = 1e-3, (0.1, 1.0, 10.0)
STEPS = 1000
DRAWN = 10.0
"""The ratio that the picture is of"""
CHOICES: tuple[Groups, ...] = ("one", "own")
PRETRAINING, RANK = 300, 4
LAWS: dict[str, Control] = {"climb": Control.climb(STEPS), "the loss law": Control()}


@dataclass
class Learner:
    """What is trained, in two groups, and what it is worth at the end."""

    groups: tuple[list[nn.Parameter], list[nn.Parameter]]
    loss: Callable[[int], Tensor]
    held_out: Callable[[], float]


def embeddings(seed: int) -> Learner:
    """A character GPT's embeddings, which are its output layer too, and all the rest."""
    problem = TASKS["gpt-31k"].start(seed)
    first = [p for name, p in problem.objective.named_parameters() if _embeds(name)]
    rest = [p for name, p in problem.objective.named_parameters() if not _embeds(name)]
    return Learner((rest, first), problem.loss, problem.held_out_loss)


def _embeds(name: str) -> bool:
    return name.startswith(("token.", "position."))


class LowRank(nn.Module):
    """A frozen layer with LoRA's A and B beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.a.T @ self.b.T


def lora(seed: int) -> Learner:
    """A perceptron that has learnt digits learns their mirror images by A and B alone."""
    problem = TASKS["digits-mlp"].start(seed)
    model = problem.objective.model
    assert isinstance(model, nn.Sequential)
    optimizer = torch.optim.AdamW(problem.objective.parameters(), 1e-3)
    for step in range(PRETRAINING):
        optimizer.zero_grad()
        problem.loss(step).backward()
        optimizer.step()
    adapted = [LowRank(m) if isinstance(m, nn.Linear) else m for m in model]
    objective = Objective(nn.Sequential(*adapted), TASKS["digits-mlp"].measure)  # type: ignore[attr-defined]

    def mirrored(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, labels = batch
        return images.unflatten(1, (8, 8)).flip(2).flatten(1), labels

    learner = Problem(
        objective, lambda step: mirrored(problem.batch(step)), [*map(mirrored, problem.held_out)]
    )
    layers = [m for m in adapted if isinstance(m, LowRank)]
    groups = [m.a for m in layers], [m.b for m in layers]
    return Learner(groups, learner.loss, learner.held_out_loss)


def two_nets(seed: int) -> Learner:
    """Like actor and critic: a classifier and a regression that share a loss and nothing else."""
    actor, critic = TASKS["digits-mlp"].start(seed), LAW_TASKS["friedman"].start(seed)
    groups = list(actor.objective.parameters()), list(critic.objective.parameters())
    return Learner(
        groups,
        lambda step: actor.loss(step) + critic.loss(step),
        lambda: actor.held_out_loss() * critic.held_out_loss(),
    )


LEARNERS: dict[str, tuple[str, Callable[[int], Learner]]] = {
    "embeddings": ("31k character GPT, embeddings and the rest (nats)", embeddings),
    "lora": ("LoRA's A and B, digits and their mirror images (nats)", lora),
    "two-nets": ("digits and Friedman by one loss (product of both held-out losses)", two_nets),
}


def train(make: Callable[[int], Learner], control: Control, ratio: float, seed: int) -> "Run":
    """A run whose groups start at `RATE` and `ratio` times that."""
    learner = make(seed)
    rates = RATE, ratio * RATE
    groups = [{"params": p, "lr": lr} for p, lr in zip(learner.groups, rates, strict=True)]
    optimizer = AdaptiveAdamW(groups, RATE, control=control, seed=seed)
    for step in range(STEPS):
        loss = learner.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
    return Run(learner.held_out(), optimizer, ratio)


@dataclass
class Run:
    """What came out."""

    loss: float
    optimizer: AdaptiveAdamW
    ratio: float

    def rates(self, group: int) -> tuple[Tensor, Tensor]:
        """Steps, and a group's rate in effect after each."""
        trace = self.optimizer.trace(group)
        own = self.optimizer.control.groups == "own"
        return trace["step"], trace["lr"] * (1.0 if own or group == 0 else self.ratio)


def draw(make: Callable[[int], Learner], title: str, path: Path) -> None:
    """Both groups' rates under one controller and under two."""
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
        for ax, groups in zip(axes, CHOICES, strict=True):
            run = train(make, replace(LAWS["climb"], groups=groups), DRAWN, FIRST_SEED)
            for group, colour in enumerate((BLUE, ORANGE)):
                steps, rates = run.rates(group)
                ax.semilogy(steps, rates.clamp(min=1e-6), color=colour, label=f"group {group}")
            ax.set(title=f'groups="{groups}"', xlabel="step")
        axes[0].set(ylabel="learning rate", ylim=(1e-5, 1))
        axes[1].legend()
        figure.suptitle(title)
        figure.savefig(path, dpi=DPI)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(LEARNERS), choices=LEARNERS)
    parser.add_argument("--laws", nargs="*", default=list(LAWS)[:1], choices=LAWS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--picture", type=Path, help="draw the rates of the first task's first run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.picture is not None:
        title, make = LEARNERS[given.tasks[0]]
        draw(make, title, given.picture)
    print("| task | law | groups | " + " | ".join(f"second × {r:g}" for r in RATIOS) + " |")
    print("| --- | --- | --- |" + " ---: |" * len(RATIOS), flush=True)
    for name in given.tasks:
        for law in given.laws:
            plain: dict[float, list[float]] = {}
            for groups in CHOICES:
                cells: list[str] = []
                for ratio in RATIOS:
                    control = replace(LAWS[law], groups=groups)
                    losses = [train(LEARNERS[name][1], control, ratio, s).loss for s in seeds]
                    cells.append(cell(losses, plain.setdefault(ratio, losses)))
                print(f"| {name} | {law} | {groups} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
