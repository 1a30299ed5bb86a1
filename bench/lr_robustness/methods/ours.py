"""AdaptiveAdamW: the specification's law and the alignment law, alone and over a cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from bench.lr_robustness.methods.base import (
    BETAS,
    WEIGHT_DECAY,
    Method,
    Schedule,
    schedule,
    set_rate,
)

Law = Literal["loss", "alignment"]


@dataclass
class Steered:
    """AdaptiveAdamW at work, alone or under a scheduler.

    Attributes:
        optimizer: Is shown every loss.
        schedule: Maps the number of steps taken to the rate of the next; ``None``: no scheduler.
    """

    optimizer: AdaptiveAdamW
    schedule: Schedule | None = None
    taken: int = 0

    def step(self, loss: Tensor) -> None:
        """Set the scheduler's rate if there is one, show the controller the loss, and step."""
        if self.schedule is not None:
            set_rate(self.optimizer, self.schedule(self.taken))
        self.optimizer.observe(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.taken += 1

    def finish(self) -> None:
        """Nothing: the parameters are what they are."""


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    """One of the laws in ``mode="replace"``: it owns the rate.

    Attributes:
        law: As in ``Control``.
    """

    is_ours = True

    law: Law

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Steered:
        """Make the optimizer with the law's defaults."""
        control = Control() if self.law == "loss" else Control.find_lr(horizon=None)
        return Steered(_optimizer(parameters, rate, control, seed))


@dataclass(frozen=True, kw_only=True)
class AdaptiveWithHorizon(Method):
    """The alignment law, told when the run ends: it cools down by itself."""

    has_horizon = True
    is_ours = True

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Steered:
        """Make the optimizer with the preset."""
        return Steered(_optimizer(parameters, rate, Control.find_lr(horizon=horizon), seed))


@dataclass(frozen=True, kw_only=True)
class AdaptiveOverCosine(Method):
    """One of the laws in ``mode="modulate"``: it multiplies a cosine to zero.

    The loss law's cosine has the warm-up of all schedules. The alignment law's search is one, so
    that its cosine has none, as the README advises.

    Attributes:
        law: As in ``Control``.
    """

    has_horizon = True
    is_ours = True

    law: Law

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Steered:
        """Make the optimizer and the schedule that it multiplies."""
        searches = self.law == "alignment"
        found = replace(Control.find_lr(horizon), mode="modulate")
        control = found if searches else Control(mode="modulate")
        optimizer = _optimizer(parameters, rate, control, seed)
        return Steered(optimizer, schedule(rate, horizon, "cosine", warm_up=not searches))


def _optimizer(
    parameters: Sequence[nn.Parameter], rate: float, control: Control, seed: int
) -> AdaptiveAdamW:
    return AdaptiveAdamW(
        parameters,
        lr=rate,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        control=control,
        seed=seed,
        process_group=False,
    )
