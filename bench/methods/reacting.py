"""AdamW under the schedulers that react to a metric: here the training loss, smoothed.

Both see the same average as AdaptiveAdamW's own sensors do, once per step, after the same warm-up
as every schedule. Their settings were chosen once, for all tasks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bench.methods.base import AdamW, Parameters, Stepper


@dataclass
class Reacting(Stepper):
    """A warm-up, then a scheduler that is told the smoothed loss of every step."""

    scheduler: Any = None  # moves the optimizer's rate when its step is told a metric
    warm_up: int = 0  # number of steps before it is told any
    beta: float = 1.0  # weight of the newest loss in the average
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
    scheduler: Callable[[torch.optim.Optimizer, float, int], Any]
    factor: float  # what the rate is multiplied by
    patience: int  # steps that it waits before it does so
    beta: float = 0.02  # weight of the newest loss in the average

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Reacting:
        optimizer, warm_up = self.optimizer(parameters, rate), self.warm_up_steps(horizon)
        rising = self.schedule(rate, horizon, "none")
        scheduler = self.scheduler(optimizer, self.factor, self.patience)
        return Reacting(optimizer, rising, scheduler, warm_up, self.beta)


def reduce_on_plateau(optimizer: torch.optim.Optimizer, factor: float, patience: int) -> Any:
    """torch's; its default factor of 0.1 is for a few cuts in a long run."""
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=1e-4)


def greedy(optimizer: torch.optim.Optimizer, factor: float, patience: int) -> Any:
    """transformers' GreedyLR: raises the rate while the loss improves, lowers it otherwise.

    Its lowest rate by default, 1e-3, would forbid most of AdamW's.
    """
    from transformers.optimization import GreedyLR

    return GreedyLR(optimizer, factor=factor, patience=patience, min_lr=1e-6, max_lr=1.0)
