"""AdaptiveAdamW under any `Control`, alone or over a cosine."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control
from bench.methods.base import Method, Parameters, Stepper

Controls = Callable[[int], Control]  # what steers, by the number of steps that the method is told


class Steered(Stepper):
    def show(self, loss: Tensor) -> None:
        self.optimizer.observe(loss)


@dataclass(frozen=True, kw_only=True)
class Adaptive(Method):
    is_ours = True

    control: Controls  # makes the Control
    over_cosine: bool = False
    meets: bool = False  # whether ranks decide together, where there are several

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        control = self.control(horizon)
        optimizer = AdaptiveAdamW(
            parameters,
            lr=rate,
            control=replace(control, mode="modulate") if self.over_cosine else control,
            seed=seed,
            process_group=None if self.meets else False,
            **self.shared(),
        )
        scheduled = self.schedule(rate, horizon, "cosine") if self.over_cosine else None
        return Steered(optimizer, scheduled)


def loss_law(horizon: int) -> Control:
    return Control()


def loss_law_to_zero(horizon: int) -> Control:
    """The loss law, told when the run ends: it cools down by itself."""
    return Control(horizon=horizon)


def distilled(horizon: int) -> Control:
    return Control.distilled(horizon=horizon)


def bandit(horizon: int) -> Control:
    return Control.bandit()


def find_lr(horizon: int) -> Control:
    """The range test, told when the run ends: it cools down by itself."""
    return Control.find_lr(horizon=horizon)


def find_lr_open(horizon: int) -> Control:
    return Control.find_lr(horizon=None)


def climb(horizon: int) -> Control:
    """The alignment law, told when the run ends: it cools down by itself."""
    return Control.climb(horizon=horizon)


def climb_open(horizon: int) -> Control:
    return Control.climb(horizon=None)
