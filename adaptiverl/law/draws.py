"""Normal numbers that a law draws, as a function of their place. The twin of csrc/law/draws.h.

The generator is the noise's, Philox 4x32 with ten rounds (method.md#random-numbers), at counters
that no noise has (method.md#draws).
"""

from __future__ import annotations

import math

WORD = 2**32
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
STREAM = 2**30
"""The counter's second word; the noise's stays below it, and roundings have 2^31"""


def philox4x32(
    c0: int, c1: int, c2: int, c3: int, key_low: int, key_high: int
) -> tuple[int, int, int, int]:
    """Four random words of a counter and a key; all are words of 32 bits."""
    for _ in range(ROUNDS):
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c2 = (product1 // WORD) ^ c1 ^ key_low, (product0 // WORD) ^ c3 ^ key_high
        c1, c3 = product1 % WORD, product0 % WORD
        key_low, key_high = (key_low + KEY_STEPS[0]) % WORD, (key_high + KEY_STEPS[1]) % WORD
    return c0, c1, c2, c3


def normal(seed_low: float, seed_high: float, draw: float, place: int) -> float:
    """A standard normal number: Box and Muller's transform in float64.

    Args:
        seed_low: Of the seed, the lower 32 bits.
        seed_high: The upper ones.
        draw: The how-manieth draw.
        place: Which of its numbers.
    """
    draw_low, draw_high = int(draw) % WORD, int(draw) // WORD
    key = int(seed_low), int(seed_high)
    radial, angular, _, _ = philox4x32(place, STREAM, draw_low, draw_high, *key)
    radius = math.sqrt(-2 * math.log((radial + 1) / WORD))
    return radius * math.cos(2 * math.pi * (angular / WORD))
