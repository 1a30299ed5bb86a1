"""How α comes down to zero at the end of a run (method.md#cooldown).

The twin of csrc/law/cooldown.h.
"""

from __future__ import annotations

import math

from adaptiverl.law.arithmetic import clip
from adaptiverl.layout import COOLDOWN_1_SQRT, ControlNumbers, State


def is_cooling(state: State, control: ControlNumbers) -> bool:
    """Whether the cooldown has begun, be it this controller's or a scheduler's."""
    return state.step >= control.hold_by


def annealing(step: float, control: ControlNumbers) -> float:
    """What is left of α: 1 − p, or 1 − √p, with p the share of the cooldown that is over.

    It is 1 where the controller does not anneal.
    """
    if control.annealed_over == 0:
        return 1.0
    left = clip((control.horizon - step) / control.annealed_over, 0.0, 1.0)
    if control.cooldown_shape == COOLDOWN_1_SQRT:
        return 1 - math.sqrt(1 - left)
    return left
