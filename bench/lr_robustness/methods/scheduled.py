"""AdamW at a rate that is a function of the step: what most people use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bench.lr_robustness.methods.base import Decay, Method, Scheduled, adamw, schedule


@dataclass(frozen=True, kw_only=True)
class ConstantAdamW(Method):
    """A warm-up, then the same rate to the end."""

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Scheduled:
        """Make the optimizer; it draws nothing."""
        return Scheduled(adamw(parameters, rate), schedule(rate, horizon, "none"))


@dataclass(frozen=True, kw_only=True)
class DecayedAdamW(Method):
    """A warm-up, then down to zero at the horizon.

    Attributes:
        decay: Which way down.
    """

    has_horizon = True

    decay: Decay

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Scheduled:
        """Make the optimizer; it draws nothing."""
        return Scheduled(adamw(parameters, rate), schedule(rate, horizon, self.decay))
