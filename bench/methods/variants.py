"""Our searches with another number each, for `bench.alignment_variants`: is there a better one?

The numbers are the package's own, changed while an optimizer is made; no `Control` has them.
"""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from adaptiverl.law import numbers
from bench.methods.base import Parameters
from bench.methods.ours import Adaptive, Controls, Steered, find_lr, range_test


@dataclass(frozen=True, kw_only=True)
class Varied(Adaptive):
    """A law with one of the constants of `adaptiverl.law.numbers` changed."""

    constant: str  # its name there
    value: float

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        if not hasattr(numbers, self.constant):
            raise ValueError(f"adaptiverl.law.numbers has no {self.constant}")
        with patch.object(numbers, self.constant, self.value):
            return super().start(parameters, rate, horizon, seed)


def _varied(whole: str, law: Controls, constant: str, value: float) -> Varied:
    title = f"{whole}: {value:g} of the mark"
    name = f"{whole}:{value:g}-of-the-mark"
    more: dict[str, Any] = {
        "control": law,
        "constant": constant,
        "value": value,
        "has_horizon": True,
    }
    return Varied(name=name, title=title, **more)


_VARIANTS = (
    *(_varied("alignment", find_lr, "CLIMB_SHARE", share) for share in (1.4, 2.0)),
    *(_varied("range-test", range_test, "RAMP_SHARE", share) for share in (0.7, 1.0)),
)
VARIANTS: dict[str, Varied] = {method.name: method for method in _VARIANTS}
"""By name, each a search with one number changed."""
