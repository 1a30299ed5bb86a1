"""AdamW under the schedulers that react to a metric: here the training loss, smoothed.

Both see the same average as AdaptiveAdamW's own sensors do, once per step, after the same warm-up
as every schedule. Their settings were chosen once, for all tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bench.methods.base import AdamW, Stepper


@dataclass
class Reacting(Stepper):
    """A warm-up, then a scheduler that is told the smoothed loss of every step.

    Attributes:
        scheduler: Moves the optimizer's rate when its ``step`` is told a metric.
        warm_up: Number of steps before it is told any.
        beta: Weight of the newest loss in the average.
    """

    scheduler: Any = None
    warm_up: int = 0
    beta: float = 1.0
    average: float = field(init=False, default=0.0)

    def step(self, loss: Tensor) -> None:
        """Step at the rate in force, then show the scheduler the average."""
        weight = self.beta if self.taken else 1.0
        if self.taken == self.warm_up:
            self.schedule = None
        super().step(loss)
        self.average += weight * (loss.item() - self.average)
        if self.taken > self.warm_up:
            self.scheduler.step(self.average)


@dataclass(frozen=True, kw_only=True)
class ReactingAdamW(AdamW):
    """AdamW under one of them.

    Attributes:
        beta: Of the loss's average.
        patience: Steps that a scheduler waits before it moves.
        factor: What the rate is then multiplied by.
    """

    beta: float = 0.02
    patience: int
    factor: float

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Reacting:
        """Make the optimizer; it draws nothing."""
        optimizer, warm_up = self.optimizer(parameters, rate), self.warm_up_steps(horizon)
        rising = self.schedule(rate, horizon, "none")
        return Reacting(optimizer, rising, self.scheduler(optimizer), warm_up, self.beta)

    @abstractmethod
    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """What moves the optimizer's rate."""


@dataclass(frozen=True, kw_only=True)
class PlateauAdamW(ReactingAdamW):
    """torch's ReduceLROnPlateau.

    It waits one time-constant of the average. Its default factor of 0.1 is for a few cuts in a
    long run.

    Attributes:
        threshold: Relative; by how much a new best must be lower.
    """

    patience: int = 50
    factor: float = 0.5
    threshold: float = 1e-4

    def scheduler(self, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
        """With these settings."""
        settings = {name: getattr(self, name) for name in ("factor", "patience", "threshold")}
        return ReduceLROnPlateau(optimizer, **settings)


@dataclass(frozen=True, kw_only=True)
class GreedyAdamW(ReactingAdamW):
    """transformers' GreedyLR: raises the rate while the loss improves, lowers it otherwise.

    Its defaults, but for the lowest rate: 1e-3 would forbid most of AdamW's.

    Attributes:
        min_lr: The lowest rate.
        max_lr: The highest.
    """

    package = "transformers"

    patience: int = 10
    factor: float = 0.95
    min_lr: float = 1e-6
    max_lr: float = 1.0

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """With these settings."""
        from transformers.optimization import GreedyLR

        names = ("factor", "patience", "min_lr", "max_lr")
        return GreedyLR(optimizer, **{name: getattr(self, name) for name in names})
