"""Who is compared: torch's AdamW, stock clipping and noise on top of it, and ours."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from bench.speed import names
from bench.speed.stock_noise import PlainNoise, TunedNoise
from bench.speed.workspace import Workspace

LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2
SIGMA = 0.01
NO_NOISE = Control(noise_bounds=(0.0, 0.0))
# σ is held at its lower bound: it is drawn at every step.
STEADY_NOISE = Control(noise_bounds=(SIGMA, SIGMA))
# The search is confined to the rate that everybody has.
ALIGNED = Control(law="alignment", acquire_from=LR, lr_bounds=(LR, LR))
# States that last: on the same gradients no update overshoots, so that no search ends; and where
# the run is too short for one the rate is held at once.
PINNED: dict[str, Any] = {"lr_bounds": (LR, LR), "acquire_from": LR, "noise_bounds": (0.0, 0.0)}
ENDLESS, TOO_SHORT = 10**9, 1
CLIMBING = replace(Control.climb(ENDLESS), **PINNED)
CLIMBED = replace(Control.climb(1), cooldown=0.0, **PINNED)
# Two thousand steps up to that rate, so that its updates are none meanwhile.
FOOT = 1e-300
UP_TO_IT = PINNED | {"lr_bounds": (FOOT, LR), "acquire_from": FOOT}
RAMPING = replace(Control.find_lr(ENDLESS), **UP_TO_IT)
COOLING = replace(Control.find_lr(TOO_SHORT), cooldown=0.0, **PINNED)
RAMPED = replace(COOLING, gradient_sensors=True)  # which ask for the sums that the creep reads
CLIP_SHARE = 0.5  # of the gradients' norm: clipping always has something to do


class Stepper(NamedTuple):
    """One contender at work: its step as in a training loop, and σ in effect, which waits."""

    step: Callable[[], object]
    optimizer: torch.optim.Optimizer
    noise: Callable[[], float]


Build = Callable[[Workspace], Stepper]
Noise = Callable[[list[Tensor], float], Callable[[list[Tensor]], None]]


def torchs(
    *, foreach: bool = False, fused: bool = False, noise: Noise | None = None, clip: bool = False
) -> Build:
    def build(w: Workspace) -> Stepper:
        capturable = fused and w.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            w.params, LR, BETAS, EPS, WEIGHT_DECAY,
            foreach=foreach, fused=fused, capturable=capturable,
        )  # fmt: skip
        w.lend_moments(optimizer, w.dtype, w.device if fused else torch.device("cpu"))
        add_noise = None if noise is None else noise(w.gradients, SIGMA)

        def step() -> None:
            # The order of method.md#clipping.
            if clip:
                nn.utils.clip_grad_norm_(w.params, w.gradient_norm * CLIP_SHARE)
            if add_noise is not None:
                add_noise(w.gradients)
            optimizer.step()

        sigma = 0.0 if noise is None else SIGMA
        return Stepper(step, optimizer, lambda: sigma)

    return build


def ours(
    control: Control,
    *,
    clip: bool = False,
    observes: bool = True,
    idle: bool = False,
    state_dtype: torch.dtype = torch.float32,
) -> Build:
    """`AdaptiveAdamW`, told a loss before every step unless `observes` is False.

    With `idle` it has no gradients: what every step of ours pays for being steered.
    """
    # Another checkout's package, which may be timed along, knows no other.
    storage: dict[str, Any] = {} if state_dtype == torch.float32 else {"state_dtype": state_dtype}

    def build(w: Workspace) -> Stepper:
        nothing = [nn.Parameter(torch.empty(0, device=w.device))]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*leaves the search")  # one holds at once
            optimizer = AdaptiveAdamW(
                nothing if idle else w.params, LR, BETAS, EPS, WEIGHT_DECAY,
                capturable=w.device.type == "cuda", control=control,
                max_grad_norm=w.gradient_norm * CLIP_SHARE if clip else None, **storage,
            )  # fmt: skip
        if not idle and state_dtype in w.moments:  # codes are the optimizer's own
            w.lend_moments(optimizer, state_dtype, w.device)

        def step() -> None:
            optimizer.observe(next(w.losses))
            optimizer.step()

        def noise() -> float:
            return optimizer.knobs()["noise"]

        return Stepper(step if observes else optimizer.step, optimizer, noise)

    return build


class Contender(NamedTuple):
    """A row of the table: the noise that it must draw, and whose work it does (whose rows)."""

    build: Build
    sigma: float = 0.0
    rivals: tuple[str, ...] = ()


AGAINST_FUSED = (0.0, (names.FUSED,))
CONTENDERS: dict[str, Contender] = {
    names.FUSED: Contender(torchs(fused=True)),
    names.FOREACH: Contender(torchs(foreach=True)),
    names.SINGLE: Contender(torchs()),
    names.OURS: Contender(ours(Control()), *AGAINST_FUSED),
    names.UNTOLD: Contender(ours(Control(), observes=False), *AGAINST_FUSED),
    names.FROZEN: Contender(ours(Control.frozen()), *AGAINST_FUSED),
    names.FROZEN_UNTOLD: Contender(ours(Control.frozen(), observes=False), *AGAINST_FUSED),
    names.PLAIN: Contender(ours(NO_NOISE), *AGAINST_FUSED),
    names.SHORT: Contender(ours(NO_NOISE, state_dtype=torch.bfloat16), *AGAINST_FUSED),
    names.CODED: Contender(ours(NO_NOISE, state_dtype=torch.int8), *AGAINST_FUSED),
    names.ALIGNMENT: Contender(ours(ALIGNED), 0, (names.OURS, names.FUSED)),
    names.CLIMBING: Contender(ours(CLIMBING), 0, (names.PLAIN,)),
    names.CLIMBED: Contender(ours(CLIMBED), 0, (names.PLAIN,)),
    names.RAMPING: Contender(ours(RAMPING), 0, (names.PLAIN,)),
    names.RAMPED: Contender(ours(RAMPED), 0, (names.PLAIN,)),
    names.COOLING: Contender(ours(COOLING), 0, (names.PLAIN,)),
    names.PLAIN_NOISE: Contender(torchs(fused=True, noise=PlainNoise), SIGMA),
    names.TUNED_NOISE: Contender(torchs(fused=True, noise=TunedNoise), SIGMA),
    names.NOISE: Contender(ours(STEADY_NOISE), SIGMA, (names.PLAIN_NOISE, names.TUNED_NOISE)),
    names.CLIPPED: Contender(torchs(fused=True, clip=True)),
    names.CLIP: Contender(ours(NO_NOISE, clip=True), 0, (names.CLIPPED,)),
    names.STOCK: Contender(torchs(fused=True, noise=TunedNoise, clip=True), SIGMA),
    names.ALL: Contender(ours(STEADY_NOISE, clip=True), SIGMA, (names.STOCK,)),
    names.IDLE: Contender(ours(STEADY_NOISE, idle=True), SIGMA),
}  # in the tables' order. Those without noise and clipping do the same step, but for rounding
