"""The generalisation pulse in float64, from its definition (method.md#pulse): no state but a list.

What it is told is what the controller knows when a pulse comes; what it says is what must follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LARGEST = 2.0**1000


def weighted(samples: list[float], rate: float) -> float:
    """The exponential average that starts at 0, over what its weights add up to."""
    weights = rate * (1 - rate) ** np.arange(len(samples))[::-1]
    return float(np.dot(weights, samples) / weights.sum())


def limited(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


@dataclass
class OraclePulse:
    """Everything that pulses decide.

    Attributes:
        spacing: Steps between two readings, at least.
        log_lr_min: The lower bound of log alpha.
        ceiling: What log alpha may not exceed; infinite before the first cut.
    """

    spacing: float
    log_lr_min: float
    readings: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    last_at: float = 0.0
    least: float = math.inf
    training_then: float | None = None
    mean: float = 0.0
    limit: float = 0.0
    last_cut: int | None = None
    cuts: int = 0
    ceiling: float = math.inf

    def pulse(
        self, loss: float, step: float, training: float | None, log_lr: float, counts: bool
    ) -> float:
        """One pulse.

        Args:
            loss: The held-out loss.
            step: Steps taken.
            training: The mean of the training losses; None where there is none.
            log_lr: log alpha.
            counts: Whether the weights are those that will be trained on.

        Returns:
            log alpha afterwards.
        """
        if not counts or step == 0:
            if self.last_cut is not None:  # the rest after a cut goes on
                self.last_cut -= len(self.readings)
            self.readings, self.waiting = [], []
            return log_lr
        if not math.isfinite(loss):
            return log_lr
        self.waiting.append(limited(loss))
        if self.readings and step - self.last_at < self.spacing:
            return log_lr
        self.read(step, training)
        rested = self.last_cut is None or len(self.readings) - self.last_cut >= 5
        falling = training is None or self.training_then is None or training < self.training_then
        if len(self.readings) < 5 or not rested or not falling or self.mean <= self.limit:
            return log_lr
        self.cuts += 1
        self.last_cut = len(self.readings)
        self.ceiling = min(log_lr, max(log_lr - math.log(10), self.log_lr_min))
        return self.ceiling

    def read(self, step: float, training: float | None) -> None:
        """A reading: the mean, its least value and the limit above that."""
        value, self.waiting = float(np.mean(np.array(self.waiting) / 2) * 2), []
        self.readings.append(value)
        self.last_at = step
        y = self.readings
        weights = np.array([1.0] + [0.2] * (len(y) - 1))
        weights *= 0.8 ** np.arange(len(y))[::-1]
        self.mean = float(np.dot(weights, y))
        if len(y) < 5 or self.mean < self.least:
            self.least, self.training_then = self.mean, training
        steps = [limited(b - a) for a, b in pairwise(y)]
        sizes = [abs(b - a) for a, b in pairwise(steps)]
        # Of white noise with standard deviation s the mean size is s·√(12/π); of 9 = 1.8/0.2
        # numbers that count alike, as many as the mean looks back over, s/3 is the error.
        noise = weighted(sizes, 0.1) / math.sqrt(12 / math.pi) if sizes else 0.0
        self.limit = self.least + 3 * math.sqrt(2) * noise / 3
