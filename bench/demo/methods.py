"""The three ways to train, one small dataclass each, with one starting rate for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from adaptiverl import AdaptiveAdamW, Control

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
WARM_UP_FRACTION = 0.1

# Column name to values, one per recorded step: "step", "lr", "momentum", "noise" and, where
# there is a controller, "plateau" and its other sensors.
Trace = dict[str, list[float]]


class Method(Protocol):
    """What the training loop asks of a way to train."""

    name: ClassVar[str]

    def start(self, parameters: Iterable[nn.Parameter], steps: int, seed: int) -> None:
        """Make the optimizer for a run of ``steps`` steps."""

    def step(self, loss: Tensor) -> None:
        """Use and clear the gradients that ``loss`` left."""

    def knobs(self) -> dict[str, float]:
        """Return "lr", "momentum" and "noise" as they are now; may wait for the device."""

    def trace(self) -> Trace:
        """Return what the knobs were over the run."""


@dataclass
class ConstantAdamW:
    """torch.optim.AdamW (fused, its fastest form) at the starting rate throughout.

    Attributes:
        lr: learning rate α.
    """

    name: ClassVar[str] = "AdamW constant"
    lr: float
    optimizer: torch.optim.AdamW = field(init=False, repr=False)
    rates: list[float] = field(init=False, repr=False, default_factory=list)

    def start(self, parameters: Iterable[nn.Parameter], steps: int, seed: int) -> None:
        """Make the optimizer; it draws nothing, so the seed goes unused."""
        self.optimizer = torch.optim.AdamW(
            parameters, lr=self.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, loss: Tensor) -> None:
        """Take one step; the loss itself goes unused."""
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad()

    def knobs(self) -> dict[str, float]:
        """Return the rate of the last step, β₁, and no noise."""
        return {"lr": self.rates[-1], "momentum": BETAS[0], "noise": 0.0}

    def trace(self) -> Trace:
        """Return the rate of every step."""
        count = len(self.rates)
        return {
            "step": [float(step) for step in range(1, count + 1)],
            "lr": self.rates,
            "momentum": [BETAS[0]] * count,
            "noise": [0.0] * count,
        }


@dataclass
class CosineAdamW(ConstantAdamW):
    """The same with a linear warm-up to the rate over a tenth of the run, then a cosine to 0."""

    name: ClassVar[str] = "AdamW warm-up + cosine"
    schedule: LambdaLR = field(init=False, repr=False)

    def start(self, parameters: Iterable[nn.Parameter], steps: int, seed: int) -> None:
        """Make the optimizer and its schedule."""
        super().start(parameters, steps, seed)
        self.schedule = LambdaLR(self.optimizer, lambda done: cosine_factor(done, steps))

    def step(self, loss: Tensor) -> None:
        """Take one step and move the schedule."""
        super().step(loss)
        self.schedule.step()


@dataclass
class Adaptive:
    """AdaptiveAdamW with the default ``Control()``: the same rate, betas and weight decay.

    Attributes:
        lr: learning rate α at the start.
    """

    name: ClassVar[str] = "AdaptiveAdamW"
    lr: float
    optimizer: AdaptiveAdamW = field(init=False, repr=False)

    def start(self, parameters: Iterable[nn.Parameter], steps: int, seed: int) -> None:
        """Make the optimizer; ``seed`` is that of its gradient noise."""
        self.optimizer = AdaptiveAdamW(
            parameters,
            lr=self.lr,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            control=Control(),
            seed=seed,
        )

    def step(self, loss: Tensor) -> None:
        """Show the controller the loss, then take one step."""
        self.optimizer.observe(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def knobs(self) -> dict[str, float]:
        """Return the effective knobs; waits for the device."""
        return dict(self.optimizer.knobs())

    def trace(self) -> Trace:
        """Return the controller's own record, one entry per update of the knobs."""
        return {column: values.tolist() for column, values in self.optimizer.trace().items()}


def cosine_factor(done: int, steps: int) -> float:
    """Return what the rate is multiplied by after ``done`` of ``steps`` steps, in [0, 1]."""
    warm_up = max(1, round(WARM_UP_FRACTION * steps))
    if done < warm_up:
        return (done + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, steps - warm_up)))


def methods(lr: float) -> list[Method]:
    """Return the three in the order in which they run, all starting at ``lr``."""
    return [ConstantAdamW(lr), CosineAdamW(lr), Adaptive(lr)]
