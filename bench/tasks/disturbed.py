"""What the scenarios train beside `Passages`: noisy labels that go wrong, and a quadratic."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tasks.base import Batch, Objective, Problem, Task
from bench.tasks.characters import Disturbed
from bench.tasks.data import digits_in_unit
from bench.tasks.supervised import perceptron


@dataclass(frozen=True, kw_only=True)
class WrongLabels(Disturbed):
    """Digits drawn at random by a perceptron 64-64-10, some of the labels wrong."""

    batch: int = 32
    wrong: float = 0.0  # share of labels replaced by a class drawn at random, anew for every batch
    disturbed: float = 1.0  # that share while the task is disturbed

    def start(self, seed: int) -> Problem:
        torch.manual_seed(seed)
        images, labels = digits_in_unit()
        objective = Objective(perceptron(64, 64, 10), F.cross_entropy)
        generator = torch.Generator().manual_seed(seed)
        drawn = [self._draw(len(images), generator) for _ in range(self.steps)]

        def batch(step: int) -> Batch:
            index, other, chance = drawn[step]
            share = self.disturbed if self.is_disturbed(step) else self.wrong
            return images[index], torch.where(chance < share, other, labels[index])

        return Problem(objective, batch)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.randint(count, (self.batch,), generator=generator),
            torch.randint(10, (self.batch,), generator=generator),
            torch.rand(self.batch, generator=generator),
        )


class Bowl(nn.Module):
    """½·mean(h·(x − target)²) in as many dimensions as x has, h from 0.01 to 1."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x, self.curvature = nn.Parameter(x), torch.logspace(-2, 0, len(x))

    def forward(self, target: Tensor) -> Tensor:
        return (0.5 * self.curvature * (self.x - target) ** 2).mean()


@dataclass(frozen=True, kw_only=True)
class Quadratic(Task):
    """A bowl in 200 dimensions whose minimum jumps about."""

    batch: int = 1
    noise: float = 0.0  # standard deviation of the jumps

    def start(self, seed: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        bowl = Bowl(3 * torch.randn(200, generator=generator))
        targets = [self.noise * torch.randn(200, generator=generator) for _ in range(self.steps)]
        return Problem(bowl, lambda step: (targets[step],))
