"""The schedule that hindsight has to beat: the best of a grid of cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adaptiverl.hindsight.schedule import cosine_rates
from adaptiverl.hindsight.training import Training
from adaptiverl.hindsight.unrolled import final_losses

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def cosine(lr: float, steps: int, momentum: float = 0.9) -> Tensor:
    """α, μ, σ of every step: a warm-up over 5 %, then a cosine to 0; float64 [steps, 3]."""
    rates = cosine_rates(lr, steps)
    return torch.stack([rates, torch.full_like(rates, momentum), torch.zeros_like(rates)], 1)


def best_cosine(
    training: Training, rates: Sequence[float] = RATES, momentum: float = 0.9
) -> tuple[float, Tensor]:
    """The rate whose runs end best, and their losses.

    Args:
        training: What is trained.
        rates: The grid.
        momentum: μ.

    Returns:
        The rate; its judged losses, float [runs].

    Raises:
        ValueError: The runs of every rate diverge.
    """
    knobs = torch.stack([cosine(rate, training.steps, momentum) for rate in rates])
    losses = final_losses(training, knobs)
    means = losses.double().mean(1).nan_to_num(math.inf)
    if not means.isfinite().any():
        raise ValueError(
            f"the runs end at no finite loss with a cosine from any of {tuple(rates)}: give lower "
            "rates"
        )
    best = int(means.argmin())
    return rates[best], losses[best]
