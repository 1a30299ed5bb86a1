"""The sums that a pass leaves behind, named once (method.md#alignment).

csrc/ has them as `AlignmentSums`; `tests/test_kernels.py` holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Sums over a tensor's elements that cost a pass nothing, since it has every number at hand.

    Attributes:
        names: Of the sums, in the order in which they lie side by side.
    """

    names: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many there are."""
        return len(self.names)


ALIGNMENT = Statistics(names=("gu", "gg", "uu"))
"""Σ g·u, Σ g², Σ u²: g is the gradient that enters the state, but for the noise; u the direction of
the update before."""
