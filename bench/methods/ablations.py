"""Our laws without one of their parts each: what is that part worth?"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from adaptiverl import Control
from bench.methods.base import Parameters
from bench.methods.ours import Adaptive, Controls, Steered, climb, find_lr, loss_law


@dataclass(frozen=True, kw_only=True)
class Ablated(Adaptive):
    """A law with some of its `Control`'s fields changed."""

    whole: str  # the method that this is a part of
    told: bool = True  # whether it is shown the loss
    from_the_rate: bool = False  # whether a search starts at the rate, not at a hundredth of it

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        if self.from_the_rate:
            control = partial(changed, self.control, (("acquire_from", rate),))
            there = replace(self, control=control, from_the_rate=False)
            return there.start(parameters, rate, horizon, seed)
        stepper = super().start(parameters, rate, horizon, seed)
        return stepper if self.told else Untold(stepper.optimizer, stepper.schedule)


class Untold(Steered):
    def show(self, loss: Tensor) -> None:
        """Nothing is shown."""


def changed(law: Controls, changes: tuple[tuple[str, Any], ...], horizon: int) -> Control:
    return replace(law(horizon), **dict(changes))


def _part(whole: str, name: str, law: Controls, more: dict[str, Any], **changes: Any) -> Ablated:
    title = f"{whole}: {name}"
    key = f"{whole}:{name.replace(' ', '-')}"
    control = partial(changed, law, tuple(changes.items()))
    return Ablated(name=key, title=title, whole=whole, control=control, **more)


TOLD = {"has_horizon": True}
STILL_ALPHA = {"gain_lr_reward": 0.0, "gain_lr_loss": 0.0}
STILL_MU = {"gain_momentum_reward": 0.0, "gain_momentum_loss": 0.0}
GAINS = ("lr_reward", "lr_loss", "momentum_reward", "momentum_loss")
NO_GAINS = {f"gain_{name}": 0.0 for name in (*GAINS, "noise_plateau", "noise_reward")}
OF_LOSS, OF_REWARD = (
    {f"gain_{n}": 0.0 for n in GAINS if n.endswith(k)} for k in ("loss", "reward")
)

_ABLATIONS = (
    _part("loss", "loss only", loss_law, {}, **OF_REWARD),
    _part("loss", "reward only", loss_law, {}, **OF_LOSS),
    _part("loss", "mu frozen", loss_law, {}, **STILL_MU),
    _part("loss", "alpha frozen", loss_law, {}, **STILL_ALPHA),
    _part("loss", "sigma off", loss_law, {}, noise_bounds=(0.0, 0.0)),
    _part("loss", "sigma frozen at 0.05", loss_law, {}, noise_bounds=(0.05, 0.05)),
    _part("loss", "noise on the parameter", loss_law, {}, noise_target="parameter"),
    _part("loss", "no clipping of spikes", loss_law, {}, spike_clip=math.inf),
    _part("loss", "no cap on the change", loss_law, {}, lr_change=(0.01, 100.0)),
    _part("alignment", "no cooldown", climb, TOLD, cooldown=0.0),
    _part("alignment", "from the rate itself", climb, {**TOLD, "from_the_rate": True}),
    _part("range-test", "no cooldown", find_lr, TOLD, cooldown=0.0),
    _part("range-test", "told no loss", find_lr, {**TOLD, "told": False}),
    _part("bandit", "no choice", loss_law, {}, **NO_GAINS),
)
ABLATIONS: dict[str, Ablated] = {method.name: method for method in _ABLATIONS}
"""By name, each a law's without one part."""
