"""The laws that the work began with: acquire and hold by e alone, or track h's zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptiverl.law.alignment import DIRECTION_BETA
from bench.alignment_variants.laws.base import COOLDOWN, Alignment, Setting
from bench.alignment_variants.sensor import Flags, Reading, ema_of

SET_POINT = -0.1
"""q: where x is held to say that the rate is found."""
TRACKING_GAIN = 0.05
LOOK_AGAIN = 0.3
"""Where e is above this, a held rate is held to be too low."""


@dataclass(kw_only=True)
class Prototype(Alignment):
    """decisions.md 23: log α += (1 − μ)(x − q), held at the first e ≤ q."""

    def begin(self, setting: Setting) -> None:
        """e starts at 1, so that it takes a while to come down."""
        super().begin(setting)
        self.mean = np.ones(len(setting.rates))

    def move(self, step: int, reading: Reading, searching: Flags) -> None:
        """Grow and shrink with x."""
        gain = 1 - self.setting.momentum
        grown = self.log_rate + gain * (reading.direction - SET_POINT)
        self.log_rate = np.where(searching, grown, self.log_rate)
        mean = ema_of(self.mean, reading.direction, DIRECTION_BETA)
        self.mean = np.where(reading.there, mean, self.mean)
        self.hold(step, searching & (self.mean <= SET_POINT))


@dataclass(kw_only=True)
class PrototypeAgain(Prototype):
    """The prototype that acquires afresh when e rises, until the cooldown begins."""

    def move(self, step: int, reading: Reading, searching: Flags) -> None:
        """Search, or look whether to search again."""
        super().move(step, reading, searching)
        if step < (1 - COOLDOWN) * self.setting.steps:
            too_low = self.held & (self.mean > LOOK_AGAIN)
            self.release(too_low)
            self.mean = np.where(too_low, 1.0, self.mean)


@dataclass(kw_only=True)
class Tracking(Alignment):
    """log α += 0.05·x in every step: never holds."""

    def move(self, step: int, reading: Reading, searching: Flags) -> None:
        """Follow the rate at which h is 0."""
        moved = self.log_rate + TRACKING_GAIN * reading.direction
        self.log_rate = np.where(searching, moved, self.log_rate)
