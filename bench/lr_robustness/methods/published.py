"""Optimizers by others that promise less tuning, from PyPI, used as their authors recommend."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.lr_robustness.methods.base import (
    BETAS,
    WEIGHT_DECAY,
    Method,
    Scheduled,
    schedule,
    warm_up_steps,
)


@dataclass
class Averaging:
    """Schedule-Free at work: it trains one point and is judged at another.

    Attributes:
        optimizer: An ``AdamWScheduleFree`` in training mode.
    """

    optimizer: Any

    def step(self, loss: Tensor) -> None:
        """Take one step; the loss itself goes unused."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish(self) -> None:
        """Move the parameters to the average."""
        self.optimizer.eval()


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Method):
    """Schedule-Free AdamW with its own warm-up, as long as the others'."""

    def missing(self) -> str | None:
        """Name the package where it is not installed."""
        return _absent("schedulefree")

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Averaging:
        """Make the optimizer; it draws nothing."""
        from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]

        optimizer = AdamWScheduleFree(
            parameters,
            lr=rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=warm_up_steps(horizon),
        )
        optimizer.train()
        return Averaging(optimizer)


@dataclass(frozen=True, kw_only=True)
class Prodigy(Method):
    """Prodigy, which finds its own rate: ``lr`` stays 1 and is annealed by a cosine.

    What is left to choose is d0, where its estimate starts. Its authors' 1e-6 is a thousandth of
    AdamW's default rate of 1e-3, so the starting rate here stands for a d0 of a thousandth of it:
    who leaves both at their defaults gets both authors' choice, and d0 too varies by a thousand.

    Attributes:
        d0_per_rate: d0 divided by the starting rate.
    """

    has_horizon = True

    d0_per_rate: float = 1e-3

    def missing(self) -> str | None:
        """Name the package where it is not installed."""
        return _absent("prodigyopt")

    def start(
        self, parameters: Sequence[nn.Parameter], rate: float, horizon: int, seed: int
    ) -> Scheduled:
        """Make the optimizer; it draws nothing."""
        import prodigyopt  # type: ignore[import-untyped]

        # Its constructor prints a line for every run.
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = prodigyopt.Prodigy(
                parameters,
                lr=1.0,
                betas=BETAS,
                weight_decay=WEIGHT_DECAY,
                d0=self.d0_per_rate * rate,
                use_bias_correction=True,
                safeguard_warmup=True,
            )
        return Scheduled(optimizer, schedule(1.0, horizon, "cosine", warm_up=False))


def _absent(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"it needs {package} from PyPI, which requirements.txt installs"
    return None
