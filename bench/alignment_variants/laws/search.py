"""The laws that hold by a test: Page's cumulative sum of the log-likelihood that h is below 0.

`Search` is what they share; a variant overrides one of its parts. The numbers are those of
`adaptiverl.laws` unless a variant says otherwise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from adaptiverl.law.alignment import (
    CLEARLY_DOWNHILL,
    DIRECTION_BETA,
    GROWTH,
    OVERSHOOT_ENOUGH,
    OVERSHOOT_NONE,
    OVERSHOOT_SIZE,
    REACH,
    SAME_RATE,
)
from bench.alignment_variants.laws.base import COOLDOWN, Alignment, Setting
from bench.alignment_variants.sensor import Flags, Floats, Reading, divided, ema_of

SLOW_BETA = 0.05
RMS_GROWTH, RMS_GROWTH_LIMIT = 0.5, 0.4


@dataclass(kw_only=True)
class Search(Alignment):
    """Climb until updates are sure to overshoot; then go back to the rate that was marked.

    Attributes:
        growth: log-units, times 1 − μ, that log α gains in a step while nothing speaks against it.
        fade: Growth is times (1 − S/enough) to this power; 0: none of it.
        size: δ, how far below 0 the mean of h is that the test looks for, in units of h's RMS.
        enough: S at which a rate is held.
        reach: log-units that α may lie above the mark.
        share: What is held of the marked rate.
        latest: Share of the run after which the mark is held whatever the test says.
    """

    growth: float = GROWTH
    fade: float = 1.0
    size: float = OVERSHOOT_SIZE
    enough: float = OVERSHOOT_ENOUGH
    reach: float = REACH
    share: float = 1.0
    latest: float = 1 - COOLDOWN

    def begin(self, setting: Setting) -> None:
        """No rate marked yet, and nothing held against any."""
        super().begin(setting)
        self.overshoot = np.zeros(len(setting.rates))
        self.mark = np.full(len(setting.rates), -math.inf)

    def move(self, step: int, reading: Reading, searching: Flags) -> None:
        """Mark, test, then hold or climb."""
        self.listen(reading, searching)
        marked = self.mark > -math.inf
        alarm = searching & (self.overshoot > self.enough)
        self.overshoot = np.where(alarm & ~marked, 0.0, self.overshoot)
        sure = self.is_sure(alarm & marked)
        self._climb(reading, searching & ~(alarm & marked))
        late = ~self.held & (step >= self.latest * self.setting.steps)
        self._settle(step, sure | late)

    def _climb(self, reading: Reading, climbing: Flags) -> None:
        gain = 1 - self.setting.momentum
        higher = self.log_rate + gain * (self.push(reading) + self.grow(reading))
        marked = self.mark > -math.inf
        limit = np.add(self.mark, self.reach, where=marked, out=np.full_like(self.mark, math.inf))
        self.log_rate = np.where(climbing, np.minimum(higher, limit), self.log_rate)

    def _settle(self, step: int, cells: Flags) -> None:
        back = np.where(self.mark > -math.inf, self.mark, self.log_rate)
        self.log_rate = np.where(cells, back + math.log(self.share), self.log_rate)
        self.hold(step, cells)

    @abstractmethod
    def listen(self, reading: Reading, searching: Flags) -> None:
        """Add up what speaks against the present rate, and mark it where nothing does."""

    def is_sure(self, alarm: Flags) -> Flags:
        """Where an alarm is to be believed."""
        return alarm

    def test(self, reading: Reading, cells: Flags) -> None:
        """Page's sum of these cells; `adaptiverl.law.alignment.next_overshoot`."""
        evidence = -self.size * reading.score - self.size * self.size / 2
        self.overshoot = np.where(cells, np.maximum(self.overshoot + evidence, 0), self.overshoot)

    def push(self, reading: Reading) -> Floats:
        """How strongly h itself moves log α, times 1 − μ: e less what chance makes of it."""
        return beyond(reading.mean, 1.0)

    def grow(self, reading: Reading) -> Floats:
        """What log α gains beside, times 1 − μ."""
        return self.growth * (1 - self.overshoot / self.enough).clip(0.0) ** self.fade


def beyond(mean: Floats, square: Floats | float) -> Floats:
    """`adaptiverl.law.alignment.beyond_noise`, for an x whose mean square is given."""
    own = mean * mean
    error = np.maximum(square - own, 0.0) * DIRECTION_BETA / (2 - DIRECTION_BETA)
    return np.where(own > error, mean * (1 - divided(error, own)), 0.0)


@dataclass(kw_only=True)
class Once(Search):
    """Marks the rate while e > θ, tests from the first mark on, holds at the first alarm.

    Attributes:
        clearly: θ.
    """

    clearly: float = CLEARLY_DOWNHILL

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Mark, then test what has a mark."""
        good = searching & self.is_good(reading)
        self.mark = np.where(good, self.log_rate, self.mark)
        self.test(reading, searching & (self.mark > -math.inf))

    def is_good(self, reading: Reading) -> Flags:
        """Whether updates clearly point downhill."""
        return reading.mean > self.clearly


@dataclass(kw_only=True)
class Final(Once):
    """The law of `adaptiverl.laws`: looks again at an alarm, and holds the lower of two marks.

    Attributes:
        none: S from which on a mark may only rise.
        same: log-units within which the second alarm's mark may lie above the first one's.
        holds_lower: Whether it is the lower of the two that is held.
    """

    none: float = OVERSHOOT_NONE
    same: float = SAME_RATE
    holds_lower: bool = True

    def begin(self, setting: Setting) -> None:
        """No rate was doubted yet."""
        super().begin(setting)
        self.doubted = np.full(len(setting.rates), -math.inf)

    def is_good(self, reading: Reading) -> Flags:
        """A mark may not fall while the test speaks against the rate."""
        may_be_marked = (self.log_rate >= self.mark) | (self.overshoot < self.none)
        return super().is_good(reading) & may_be_marked

    def is_sure(self, alarm: Flags) -> Flags:
        """Where the last alarm was at this rate; elsewhere the test starts afresh at the mark."""
        again = alarm & (self.mark > self.doubted + self.same)
        self.doubted = np.where(again, self.mark, self.doubted)
        self.log_rate = np.where(again, self.mark, self.log_rate)
        self.overshoot = np.where(again, 0.0, self.overshoot)
        sure = alarm & ~again
        if self.holds_lower:
            self.mark = np.where(sure, np.minimum(self.mark, self.doubted), self.mark)
        return sure


@dataclass(kw_only=True)
class FinalUnmarked(Final):
    """Marks no rate at all, higher or lower, while the test speaks against it."""

    def is_good(self, reading: Reading) -> Flags:
        """By S and e."""
        return super().is_good(reading) & (self.overshoot < self.none)


@dataclass(kw_only=True)
class Cusum(Search):
    """Tests from the first step and holds the rate at which it is sure."""

    fade: float = 0.0

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Every rate is the marked one."""
        self.test(reading, searching)
        self.mark = np.where(searching, self.log_rate, self.mark)


@dataclass(kw_only=True)
class RawCusum(Cusum):
    """Moves with x instead of e."""

    def push(self, reading: Reading) -> Floats:
        """x itself."""
        return reading.direction


@dataclass(kw_only=True)
class ChangePoint(Search):
    """Goes back to where S was last 0: the most likely point at which h fell below 0."""

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Test, then mark what nothing speaks against."""
        self.test(reading, searching)
        self.mark = np.where(searching & (self.overshoot == 0), self.log_rate, self.mark)


@dataclass(kw_only=True)
class RmsGrowth(ChangePoint):
    """Grows with the RMS of h: small where h is all noise."""

    def grow(self, reading: Reading) -> Floats:
        """Half of it, limited."""
        growth = np.minimum(RMS_GROWTH * reading.rms, RMS_GROWTH_LIMIT)
        return growth * (1 - self.overshoot / self.enough).clip(0.0)


@dataclass(kw_only=True)
class Unshrunk(ChangePoint):
    """Moves with the whole e, noise and all."""

    def push(self, reading: Reading) -> Floats:
        """e itself."""
        return reading.mean


@dataclass(kw_only=True)
class NoDescent(Unshrunk):
    """Never moves down: only the test speaks against a rate."""

    def push(self, reading: Reading) -> Floats:
        """e, and 0 where it is negative and a rate is marked."""
        marked = self.mark > -math.inf
        return np.where(marked, np.maximum(reading.mean, 0.0), reading.mean)


@dataclass(kw_only=True)
class EarlyTest(Once):
    """Tests before there is a mark as well; an alarm without one starts the test afresh."""

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Test all, then mark."""
        self.test(reading, searching)
        good = searching & self.is_good(reading)
        self.mark = np.where(good, self.log_rate, self.mark)


@dataclass(kw_only=True)
class MeasuredNoise(Once):
    """Measures the mean square of x instead of taking it for 1."""

    def begin(self, setting: Setting) -> None:
        """It starts at 1."""
        super().begin(setting)
        self.square = np.ones(len(setting.rates))

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Average x² beside."""
        super().listen(reading, searching)
        square = ema_of(self.square, reading.direction**2, SLOW_BETA)
        self.square = np.where(reading.there, square, self.square)

    def push(self, reading: Reading) -> Floats:
        """e less what chance makes of it, by that measure."""
        return beyond(reading.mean, self.square)


@dataclass(kw_only=True)
class SlowGate(Once):
    """Marks a rate only where a slow average of x is above 0 as well."""

    def begin(self, setting: Setting) -> None:
        """It starts at 0."""
        super().begin(setting)
        self.slow = np.zeros(len(setting.rates))

    def listen(self, reading: Reading, searching: Flags) -> None:
        """Average x slowly before anything is marked."""
        slow = ema_of(self.slow, reading.direction, SLOW_BETA)
        self.slow = np.where(reading.there, slow, self.slow)
        super().listen(reading, searching)

    def is_good(self, reading: Reading) -> Flags:
        """By both averages."""
        return super().is_good(reading) & (self.slow > 0)
