"""What a method is: a way to train from a given starting rate, told how long the run will be."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 1e-2
WARM_UP = 0.05
COOLDOWN = 0.4

Decay = Literal["none", "cosine", "linear", "cooldown"]
Schedule = Callable[[int], float]


class Stepper(Protocol):
    """A method at work on one model."""

    def step(self, loss: Tensor) -> None:
        """Use and clear the gradients that ``loss`` left."""

    def finish(self) -> None:
        """Leave the parameters as they are to be judged."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to train. The fields in its ``repr`` are its definition.

    Attributes:
        name: On the command line and in the rows.
        title: For people.
        has_horizon: Whether what it does depends on the number of steps it is told, beyond a
            warm-up.
        is_ours: Whether it depends on this project's code.
    """

    has_horizon: ClassVar[bool] = False
    is_ours: ClassVar[bool] = False

    name: str
    title: str = field(repr=False)

    def missing(self) -> str | None:
        """Why this method cannot run here, with what would help; ``None`` where it can."""
        return None

    @abstractmethod
    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Stepper:
        """Make the optimizer of one run.

        Args:
            parameters: Of the model.
            rate: The starting learning rate, > 0.
            horizon: The number of steps that the method is told the run will have.
            seed: Of what the method itself draws.
        """


@dataclass
class Scheduled:
    """An optimizer whose rate is a function of the step.

    Attributes:
        optimizer: Any of torch's kind.
        schedule: Maps the number of steps taken to the rate of the next.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    taken: int = 0

    def step(self, loss: Tensor) -> None:
        """Set the rate, then step; the loss itself goes unused."""
        set_rate(self.optimizer, self.schedule(self.taken))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1

    def finish(self) -> None:
        """Nothing: the parameters are what they are."""


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def adamw(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """torch's AdamW in its fastest form, with the settings that every method shares."""
    return torch.optim.AdamW(
        parameters, lr=rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )


def warm_up_steps(horizon: int) -> int:
    """How long the rate rises linearly at the start: 5 % of the run, one step at least."""
    return max(1, round(WARM_UP * horizon))


def schedule(rate: float, horizon: int, decay: Decay, warm_up: bool = True) -> Schedule:
    """The rate of every step: a linear warm-up to ``rate``, then the decay to zero at ``horizon``.

    Args:
        rate: The highest rate.
        horizon: The step at which the decay reaches zero, where it then stays.
        decay: ``"none"``; ``"cosine"`` and ``"linear"`` from the end of the warm-up on;
            ``"cooldown"``, linear over the last 40 %.
        warm_up: Whether there is one.
    """
    rise = warm_up_steps(horizon) if warm_up else 0
    rest = max(1, horizon - rise)

    def factor(taken: int) -> float:
        if taken < rise:
            return (taken + 1) / rise
        left = max(0.0, (horizon - taken) / rest)
        if decay == "cosine":
            return 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
        if decay == "linear":
            return min(1.0, left)
        if decay == "cooldown":
            return min(1.0, max(0.0, (horizon - taken) / (COOLDOWN * horizon)))
        return 1.0

    return lambda taken: rate * factor(taken)
