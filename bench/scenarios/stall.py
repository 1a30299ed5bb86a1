"""A loss that falls and then stays the same to the last bit: what the sensors make of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from unittest import mock

from adaptiverl import Control
from adaptiverl.law import sensors
from adaptiverl.law.replay import replay

FALL, REST = 100, 3000


@dataclass(frozen=True)
class Stall:
    """The end of such a course.

    Attributes:
        level: Where the loss stays.
        residue: ℓ̄ − ℓ, in units of the loss's last place.
        direction: Δ̃ℓ, which should be 0.
        rise: How much log α rose while nothing happened.
        guarded: Δ̃ℓ had a step that ℓ̄ cannot take counted as none.
    """

    level: float
    residue: float
    direction: float
    rise: float
    guarded: float


def stall(level: float, control: Control | None = None) -> Stall:
    """Replay such a loss.

    Args:
        level: Where it stays, not 0.
        control: Another `Control` than the default.
    """
    control = control or Control()
    falling = [level + 3 * math.exp(-step / 30) for step in range(FALL)]
    losses = falling + [level] * REST
    history = replay(losses, control, lr=1e-3)
    with mock.patch.object(sensors, "innovation", _guarded(sensors.innovation)):
        guarded = replay(losses, control, lr=1e-3)[-1].loss_direction
    end = history[-1]
    residue = (end.loss_mean - level) / math.ulp(level)
    rise = end.log_lr - history[FALL + REST // 3].log_lr
    return Stall(level, residue, end.loss_direction, rise, guarded)


def _guarded(innovation):  # type: ignore[no-untyped-def]
    """`sensors.innovation`, and 0 where ℓ̄ + β·(ℓ − ℓ̄) rounds to ℓ̄."""

    def guarded(
        sample: float, mean: float, scale: float, count: float, beta: float, spike_clip: float
    ) -> float:
        surprise = innovation(sample, mean, scale, count, beta, spike_clip)
        return 0.0 if mean + beta * surprise == mean else surprise

    return guarded
