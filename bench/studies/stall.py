"""A loss that falls and then stays the same to the last bit: what the sensors make of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from adaptiverl import AdaptiveAdamW

FALL, REST = 100, 3000


class Stall(NamedTuple):
    """The end of such a course.

    Attributes:
        level: Where the loss stays.
        residue: ℓ̄ − ℓ, in units of the loss's last place.
        direction: Δ̃ℓ, which should be 0.
        rise: How much log α rose while nothing happened.
    """

    level: float
    residue: float
    direction: float
    rise: float


def stall(level: float) -> Stall:
    """Show such a loss, which stays at ``level``, to the controller of an idle optimizer."""
    optimizer = AdaptiveAdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    for step in range(FALL + REST):
        falling = 3 * math.exp(-step / 30) if step < FALL else 0.0
        optimizer.step(loss=level + falling)
    trace = optimizer.trace()
    still = trace["lr"][trace["step"] >= FALL + REST // 3]
    return Stall(
        level,
        residue=(float(trace["loss_mean"][-1]) - level) / math.ulp(level),
        direction=float(trace["loss_direction"][-1]),
        rise=float((still[-1] / still[0]).log()),
    )
