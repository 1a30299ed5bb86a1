"""AdamW under the schedulers that react to a metric: here the training loss, smoothed.

Both see the same average as AdaptiveAdamW's own sensors do, once per step, after the same warm-up
as every schedule. Their settings were chosen once, for all tasks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bench.lr_robustness.methods.base import Method, adamw, set_rate, warm_up_steps


class Scheduler(Protocol):
    """One that is told a metric."""

    def step(self, metrics: float) -> None:
        """Move the optimizer's rate, or don't."""


@dataclass
class Reacting:
    """A warm-up, then a scheduler that is told the smoothed loss of every step.

    Attributes:
        optimizer: Whose rate is moved.
        scheduler: What moves it.
        rate: Where the warm-up ends.
        warm_up: Its number of steps.
        beta: Weight of the newest loss in the average.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    rate: float
    warm_up: int
    beta: float
    taken: int = 0
    average: float = field(init=False, default=0.0)

    def step(self, loss: Tensor) -> None:
        """Step at the rate in force, then show the scheduler the average."""
        if self.taken < self.warm_up:
            set_rate(self.optimizer, self.rate * (self.taken + 1) / self.warm_up)
        self.optimizer.step()
        self.optimizer.zero_grad()
        newest = loss.item()
        weight = self.beta if self.taken else 1.0
        self.average += weight * (newest - self.average)
        self.taken += 1
        if self.taken > self.warm_up:
            self.scheduler.step(self.average)

    def finish(self) -> None:
        """Nothing: the parameters are what they are."""


@dataclass(frozen=True, kw_only=True)
class PlateauAdamW(Method):
    """torch's ReduceLROnPlateau.

    Attributes:
        beta: Of the loss's average.
        patience: Steps without a new best average; about one time-constant of it.
        factor: What the rate is then multiplied by. torch's 0.1 is for a few cuts in a long run.
        threshold: Relative; by how much a new best must be lower.
    """

    beta: float = 0.02
    patience: int = 50
    factor: float = 0.5
    threshold: float = 1e-4

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Reacting:
        """Make the optimizer; it draws nothing."""
        optimizer = adamw(parameters, rate)
        scheduler = ReduceLROnPlateau(
            optimizer, factor=self.factor, patience=self.patience, threshold=self.threshold
        )
        return Reacting(optimizer, scheduler, rate, warm_up_steps(horizon), self.beta)


@dataclass(frozen=True, kw_only=True)
class GreedyAdamW(Method):
    """transformers' GreedyLR: raises the rate while the loss improves, lowers it otherwise.

    Attributes:
        beta: Of the loss's average.
        factor: What the rate is multiplied or divided by; its default.
        patience: Steps in a row that go one way before the rate moves; its default.
        min_lr: The lowest rate. Its default, 1e-3, would forbid most of AdamW's rates.
        max_lr: The highest; its default.
    """

    beta: float = 0.02
    factor: float = 0.95
    patience: int = 10
    min_lr: float = 1e-6
    max_lr: float = 1.0

    def missing(self) -> str | None:
        """Name the package where it is not installed."""
        if importlib.util.find_spec("transformers") is None:
            return "it needs transformers 5 or later, which requirements.txt installs"
        return None

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Reacting:
        """Make the optimizer; it draws nothing."""
        from transformers.optimization import GreedyLR

        optimizer = adamw(parameters, rate)
        scheduler = GreedyLR(
            optimizer,
            factor=self.factor,
            patience=self.patience,
            min_lr=self.min_lr,
            max_lr=self.max_lr,
        )
        return Reacting(optimizer, scheduler, rate, warm_up_steps(horizon), self.beta)
