"""What every equation is made of. The twin of csrc/law/arithmetic.h."""

from __future__ import annotations

import math


def clip(x: float, low: float, high: float) -> float:
    """X limited to [low, high]."""
    return min(max(x, low), high)


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x), in the form that cannot overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    power = math.exp(x)
    return power / (1 + power)


def logit(x: float) -> float:
    """log(x / (1 − x)), the inverse of `sigmoid`; −∞ at 0."""
    return math.log(x / (1 - x)) if x > 0 else -math.inf


def ema(average: float, sample: float, beta: float) -> float:
    """(1 − β)·average + β·sample (method.md#loss-sensor)."""
    return (1 - beta) * average + beta * sample


def ratio(x: float, scale: float) -> float:
    """X / S, and 0 where S is 0: ε is a guard, not a scale (method.md#scale-guard)."""
    return x / scale if scale > 0 else 0.0
