"""Our searches with one thing changed each, for `bench.alignment_variants`: is there a better one?

What is changed is the package's own, while an optimizer is made or steps; no `Control` has it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from torch import Tensor

from adaptiverl.law import numbers
from adaptiverl.law import range_test as law
from adaptiverl.law.alignment import next_overshoot
from adaptiverl.law.knobs import bounded_log_lr
from adaptiverl.layout import ControlNumbers, State
from bench.methods.base import Parameters
from bench.methods.ours import Adaptive, Controls, Steered, climb, find_lr


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


class Patched(Steered):
    """A stepper whose law has another creep meanwhile."""

    creep: Callable[[State, ControlNumbers, float | None], None]

    def step(self, loss: Tensor) -> None:
        with patch.object(law, "creep", self.creep):
            super().step(loss)


@dataclass(frozen=True, kw_only=True)
class Creeping(Adaptive):
    """The range test with another way for the held rate to rise."""

    creep: Callable[[State, ControlNumbers, float | None], None]

    def missing(self) -> str | None:
        if os.environ.get("ADAPTIVERL_PURE") != "1":
            return "it changes the law in Python: run with ADAPTIVERL_PURE=1"
        return super().missing()

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        made = super().start(parameters, rate, horizon, seed)
        stepper = Patched(made.optimizer, made.schedule)
        stepper.creep = self.creep
        return stepper


CLEARLY, PACE, SHORT = 1.0, 0.02, 0.2


def climb_on(state: State, control: ControlNumbers, score: float | None) -> None:
    """In a fifth of the run after the warm-up, up by 2 % a step while S⁺ is above 1."""
    warm = state.held_at + control.warm_up
    ready = warm < state.step < min(warm + SHORT * control.horizon, control.hold_by)
    log_lr = state.log_lr
    if ready and score is not None and score == score:
        state.undershoot = next_overshoot(state.undershoot, -score)
        log_lr += PACE * (state.undershoot > CLEARLY)
    state.log_lr = bounded_log_lr(log_lr, state.log_lr, control)


OF = {"CLIMB_SHARE": "of the mark", "RAMP_SHARE": "of the mark", "WARM_UP": "of the run warms up"}
"""What a constant is a share of"""


def _varied(whole: str, law: Controls, constant: str, value: float) -> Varied:
    title = f"{whole}: {value:g} {OF[constant]}"
    name = f"{whole}:{value:g}-{OF[constant].replace(' ', '-')}"
    more: dict[str, Any] = {
        "control": law,
        "constant": constant,
        "value": value,
        "has_horizon": True,
    }
    return Varied(name=name, title=title, **more)


_VARIANTS = (
    *(_varied("alignment", climb, "CLIMB_SHARE", share) for share in (1.4, 2.0)),
    *(_varied("range-test", find_lr, "RAMP_SHARE", share) for share in (0.35, 0.5, 1.0)),
    *(_varied("range-test", find_lr, "WARM_UP", share) for share in (0.03, 0.3)),
)
CLIMBS_ON = Creeping(
    name="range-test:climbs-on",
    title="range-test: climbs on",
    control=find_lr,
    creep=climb_on,
    has_horizon=True,
)
VARIANTS: dict[str, Adaptive] = {method.name: method for method in (*_VARIANTS, CLIMBS_ON)}
"""By name, each a search with one thing changed."""
