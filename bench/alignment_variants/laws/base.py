"""What a law is: rates of all cells in every step; the schedules; and how found rates anneal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from adaptiverl import Control
from adaptiverl.control import ALIGNMENT_LR_BOUNDS, ALIGNMENT_START
from bench.alignment_variants.sensor import Flags, Floats, Reading

COOLDOWN = Control().cooldown
WARM_UP = 0.05
"""Of the run, in the schedules."""


class Setting(NamedTuple):
    """What a law knows of the runs.

    Attributes:
        rates: The user's, float64 (cells,).
        steps: T.
        momentum: μ, which no law here moves.
    """

    rates: Floats
    steps: int
    momentum: float


class Law(ABC):
    """Sets the rate of every cell, step by step. One object is one run of all cells."""

    setting: Setting

    def begin(self, setting: Setting) -> None:
        """Make the state before the first step."""
        self.setting = setting

    @abstractmethod
    def next_rates(self, step: int, reading: Reading) -> Floats:
        """The rates of a step, counted from 1, by what the sums of the step before say."""

    @property
    @abstractmethod
    def found(self) -> Floats:
        """The rates as they are now, without annealing."""

    @property
    def held_at(self) -> Floats:
        """The steps at which the cells were held; NaN where they are not."""
        return np.full_like(self.setting.rates, math.nan)


def cosine(step: int, steps: int) -> float:
    """A warm-up, then half a cosine that would reach 0 at step T + 1."""
    warm_up = WARM_UP * steps
    if step - 1 > warm_up:
        return 0.5 * (1 + math.cos(math.pi * (step - 1 - warm_up) / (steps - warm_up)))
    return min(1.0, step / warm_up)


@dataclass
class Schedule(Law):
    """A warm-up and then, of the user's rate, always the same share in the same step."""

    kind: Literal["constant", "cosine", "cooldown"]

    def next_rates(self, step: int, reading: Reading) -> Floats:
        """Whatever was read."""
        return self.setting.rates * self._share(step, self.setting.steps)

    @property
    def found(self) -> Floats:
        """The user's rates."""
        return self.setting.rates

    def _share(self, step: int, steps: int) -> float:
        if self.kind == "cosine":
            return cosine(step, steps)
        share = min(1.0, step / (WARM_UP * steps))
        if self.kind == "cooldown":
            share = min(share, (steps - step + 1) / (COOLDOWN * steps))
        return share


Anneal = Callable[[int, int, Floats], "Floats | float"]
"""What a found rate is multiplied by, of the step, T, and the steps at which cells were held."""


def cooldown(share: float) -> Anneal:
    """1, then linearly to 0 over the last share of the run."""
    return lambda step, steps, held_at: min(max((steps - step) / (share * steps), 0.0), 1.0)


def unannealed(step: int, steps: int, held_at: Floats) -> float:
    """1."""
    return 1.0


def under_cosine(step: int, steps: int, held_at: Floats) -> float:
    """The scheduler's share, as in ``Control(mode="modulate")``."""
    return cosine(step, steps)


def linear_from_hold(step: int, steps: int, held_at: Floats) -> Floats:
    """1 until a cell is held, then linearly to 0 over all that is left."""
    begun = np.where(np.isnan(held_at), step, held_at)
    return 1 - (step - begun) / np.maximum(steps - begun, 1)


def cosine_from_hold(step: int, steps: int, held_at: Floats) -> Floats:
    """1 until a cell is held, then half a cosine to 0 over all that is left."""
    return 0.5 * (1 - np.cos(math.pi * linear_from_hold(step, steps, held_at)))


@dataclass(kw_only=True)
class Alignment(Law):
    """A law that starts low and moves log α by what the sensor reads.

    Attributes:
        anneal: How a rate is annealed, found or not.
    """

    anneal: Anneal = field(default_factory=lambda: cooldown(COOLDOWN))

    def begin(self, setting: Setting) -> None:
        """At a hundredth of the user's rate, as the optimizer does."""
        super().begin(setting)
        self.log_rate = np.log(ALIGNMENT_START * setting.rates)
        self._low, self._high = (np.log(bound * setting.rates) for bound in ALIGNMENT_LR_BOUNDS)
        self.held = np.zeros(len(setting.rates), dtype=bool)
        self._held_at = np.full(len(setting.rates), math.nan)

    def next_rates(self, step: int, reading: Reading) -> Floats:
        """Move what is not held, then anneal."""
        self.move(step, reading, reading.there & ~self.held)
        self.log_rate = self.log_rate.clip(self._low, self._high)
        return self.found * self.anneal(step, self.setting.steps, self._held_at)

    @abstractmethod
    def move(self, step: int, reading: Reading, searching: Flags) -> None:
        """Move ``log_rate`` of the cells that are searching; hold those that are there."""

    def hold(self, step: int, cells: Flags) -> None:
        """Keep these cells' rates from now on."""
        self._held_at[cells & ~self.held] = step
        self.held |= cells

    def release(self, cells: Flags) -> None:
        """Let these cells search again."""
        self._held_at[cells] = math.nan
        self.held &= ~cells

    @property
    def found(self) -> Floats:
        """α as it is now, without annealing."""
        return np.exp(self.log_rate)

    @property
    def held_at(self) -> Floats:
        """The steps at which the cells were held; NaN where they are not."""
        return self._held_at
