"""A curve that a small network finds hard: training begins on a plateau full of noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lr_robustness.tasks.base import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Sines(Task):
    """sin(12x) + ½ sin(31x + 1) on [−1, 1], by a tanh network 1-64-64-1.

    Attributes:
        noise: Standard deviation of what is added to the training targets, anew in every batch.
            The held-out targets are the curve itself.
    """

    noise: float = 0.2

    def start(self, seed: int) -> Problem:
        """Draw the weights, the points and the noise."""
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Linear(1, 64), nn.Tanh()), *(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, 1)
        )
        generator = torch.Generator().manual_seed(seed)
        shape = (self.steps, self.batch, 1)
        x = 2 * torch.rand(shape, generator=generator) - 1
        y = curve(x) + self.noise * torch.randn(shape, generator=generator)
        grid = torch.linspace(-1, 1, 512).unsqueeze(1)
        return Problem(
            model,
            lambda step: (x[step], y[step]),
            lambda x, y: F.mse_loss(model(x), y),
            [(grid, curve(grid))],
        )


def curve(x: Tensor) -> Tensor:
    """What is learnt."""
    return torch.sin(12 * x) + 0.5 * torch.sin(31 * x + 1)
