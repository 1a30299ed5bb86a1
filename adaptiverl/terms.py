"""What of each law concerns its user: what it needs, reads and starts from."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Mode = Literal["replace", "modulate"]
Law = Literal["loss", "alignment", "range_test", "bandit", "distilled"]
Home = Literal["host", "device"]
CooldownShape = Literal["linear", "1-sqrt"]
Horizon = int | Literal["auto"] | None
Pair = tuple[float, float]

ALIGNMENT_LR_BOUNDS: Pair = (1e-4, 1e4)
"""The alignment law's default ones: it looks over decades (method.md#alignment-bounds)."""
ALIGNMENT_START = 0.01
"""Where it starts to look, as a multiple of the α at the start (method.md#search)."""
RAMP_LR_BOUNDS: Pair = (1e-6, 3.0)
"""The range test's default ones, and so where its ramp starts: learning rates (method.md#ramp)."""
RAMP_FLOOR = 100.0
"""Where it starts to judge updates, as a multiple of where the ramp starts."""
SEARCH_STEPS = 40
"""Steps that every ramp may take, whatever the horizon: its mark is there after some thirty."""
SEARCH_SHARE = 0.15
"""Share of the horizon that it may take, where that is more."""
SEARCH_AT_MOST = 0.25
"""A run of which those steps would be more is too short for a ramp."""
NOMINAL_HORIZON = 1000
"""Steps of a run like those that the laws were measured on; where nobody can say."""


class LawTerms(NamedTuple):
    """What of a law concerns its user; `adaptiverl/law` is what it does."""

    needs_loss: bool
    """Without observations it moves nothing"""
    options: tuple[str, ...]
    """Fields of `Control` that only this law reads; None where they are left out"""
    lr_bounds: dict[Mode, Pair]
    """(α_min, α_max) where none are given, by mode: multiples of the α at the start, or rates"""
    start: float
    """Where α starts unless `acquire_from` says it, in the same unit"""
    in_rates: bool = False
    """Both are learning rates: what the user gave sets the groups' ratios alone"""
    hears_losses: bool = False
    """It does without observations, but is the better for them"""
    learned: bool = False
    """It was fitted: it moves the knobs whatever the gains are, and reads the gradients, too"""


LAW_TERMS: dict[Law, LawTerms] = {
    "loss": LawTerms(True, (), {"replace": (0.01, 10.0), "modulate": (0.1, 10.0)}, start=1.0),
    "alignment": LawTerms(
        False,
        ("acquire_from", "reuse"),
        {"replace": ALIGNMENT_LR_BOUNDS, "modulate": ALIGNMENT_LR_BOUNDS},
        start=ALIGNMENT_START,
    ),
    "range_test": LawTerms(
        False,
        ("acquire_from", "snapshot"),
        {"replace": RAMP_LR_BOUNDS, "modulate": RAMP_LR_BOUNDS},
        start=RAMP_LR_BOUNDS[0],
        in_rates=True,
        hears_losses=True,
    ),
    "bandit": LawTerms(
        True,
        ("arms", "window", "discount"),
        {"replace": (0.01, 10.0), "modulate": (0.1, 10.0)},
        start=1.0,
    ),
    "distilled": LawTerms(
        True,
        ("weights",),
        {"replace": ALIGNMENT_LR_BOUNDS, "modulate": ALIGNMENT_LR_BOUNDS},
        start=1.0,
        learned=True,
    ),
}


def search_within(horizon: int | None, cooldown: float) -> int:
    """Steps that the range test's ramp may take; 0: the run is too short for one.

    A ramp that takes more than a quarter of the run, or reaches into the cooldown, is none
    (method.md#short-runs).
    """
    if horizon is None:
        return math.floor(SEARCH_SHARE * NOMINAL_HORIZON)
    if horizon * min(SEARCH_AT_MOST, 1 - cooldown) < SEARCH_STEPS:
        return 0
    return max(SEARCH_STEPS, math.floor(SEARCH_SHARE * horizon))
