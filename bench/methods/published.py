"""Optimizers by others that promise less tuning, from PyPI, used as their authors recommend."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.methods.base import Decay, Method, Parameters, Stepper


class Averaging(Stepper):
    """Schedule-Free at work: it trains one point and is judged at another."""

    @contextlib.contextmanager
    def judged(self) -> Iterator[None]:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kept = [p.detach().clone() for p in parameters]
        self.optimizer.eval()
        yield
        self.optimizer.train()
        # Going there and back rounds; looking must not change a run.
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

    def finish(self) -> None:
        self.optimizer.eval()


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Method):
    """Schedule-Free AdamW with its own warm-up, as long as the others'."""

    package: str = "schedulefree"

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Averaging:
        from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]

        steps = self.warm_up_steps(horizon)
        optimizer = AdamWScheduleFree(parameters, lr=rate, warmup_steps=steps, **self.shared())
        optimizer.train()
        return Averaging(optimizer)


@dataclass(frozen=True, kw_only=True)
class Prodigy(Method):
    """Prodigy, which finds its own rate: ``lr`` stays 1, and may be annealed by a cosine.

    Its authors' d0, 1e-6, is a thousandth of AdamW's default rate; so it is of every rate here.
    """

    package: str = "prodigyopt"
    warm_up: float = 0.0
    decay: Decay = "cosine"
    d0_per_rate: float = 1e-3  # d0 divided by the starting rate

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Stepper:
        import prodigyopt  # type: ignore[import-untyped]

        advice = {"use_bias_correction": True, "safeguard_warmup": True}
        # Its constructor prints a line for every run.
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = prodigyopt.Prodigy(
                parameters, lr=1.0, d0=self.d0_per_rate * rate, **advice, **self.shared()
            )
        return Stepper(optimizer, self.schedule(1.0, horizon, self.decay))
