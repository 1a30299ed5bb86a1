"""h, its RMS, x and e of many runs at once: the twin of `law.alignment.sense_alignment`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptiverl.law.alignment import ALIGNMENT_BETA, DIRECTION_BETA, OVERSHOOT_CLIP

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Sums(NamedTuple):
    """Of one step's gradient g and of u, the direction of the update before; float64 (cells,)."""

    gu: Floats
    gg: Floats
    uu: Floats


class Reading(NamedTuple):
    """What the sums say of every cell, (cells,) each.

    Attributes:
        score: h in units of its RMS, limited to what one step can say.
        direction: x, the score limited to [−1, 1].
        mean: e, the average of x.
        rms: Of h.
        there: False where there was nothing to read: no update before, or no gradient.
    """

    score: Floats
    direction: Floats
    mean: Floats
    rms: Floats
    there: Flags


class Sensor:
    """The averages of so many cells, each started at its first reading."""

    def __init__(self, cells: int) -> None:
        self._square, self._weight = np.zeros(cells), np.zeros(cells)
        self._direction, self._mean = np.zeros(cells), np.zeros(cells)

    def read(self, sums: Sums) -> Reading:
        """Take in the sums of one step."""
        there = (sums.gg != 0) & (sums.uu != 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = sums.gu / (np.sqrt(sums.gg) * np.sqrt(sums.uu))
        told = there & np.isfinite(cosine)
        cosine = np.where(told, cosine, 0.0)
        self._square = np.where(told, ema_of(self._square, cosine**2, ALIGNMENT_BETA), self._square)
        self._weight = np.where(told, ema_of(self._weight, 1.0, ALIGNMENT_BETA), self._weight)
        rms = np.sqrt(divided(self._square, self._weight))
        score = np.where(told, divided(cosine, rms), -1.0).clip(-OVERSHOOT_CLIP, OVERSHOOT_CLIP)
        self._direction = np.where(there, score.clip(-1.0, 1.0), self._direction)
        mean = ema_of(self._mean, self._direction, DIRECTION_BETA)
        self._mean = np.where(there, mean, self._mean)
        return Reading(score, self._direction, self._mean, rms, there)


def ema_of(average: Floats, sample: Floats | float, beta: float) -> Floats:
    """(1 − β)·average + β·sample, of every cell."""
    return (1 - beta) * average + beta * sample


def divided(x: Floats, scale: Floats) -> Floats:
    """x/scale, and 0 where the scale is 0."""
    return np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
