"""Who is compared: torch's AdamW, stock clipping and noise on top of it, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from bench.speed.names import (
    ALIGNMENT,
    ALL,
    CLIP,
    CLIPPED,
    FOREACH,
    FROZEN,
    FROZEN_UNTOLD,
    FUSED,
    IDLE,
    NOISE,
    OURS,
    PLAIN,
    PLAIN_NOISE,
    SINGLE,
    STOCK,
    TUNED_NOISE,
    UNTOLD,
)
from bench.speed.stock_noise import PlainNoise, TunedNoise
from bench.speed.workspace import Workspace

LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 1e-2
SIGMA = 0.01
NO_NOISE = Control(noise_bounds=(0.0, 0.0))
STEADY_NOISE = Control(noise_bounds=(SIGMA, SIGMA))
"""The controller on, σ held at its lower bound: it is drawn at every step."""
ALIGNED = Control(law="alignment", acquire_from=LR, lr_bounds=(LR, LR))
"""The alignment law at work, its search confined to the rate that everybody has."""
CLIP_SHARE = 0.5
"""Of the gradients' norm: clipping always has something to do."""


@dataclass(frozen=True)
class Stepper:
    """One contender at work.

    Attributes:
        step: What is timed, as in a training loop.
        optimizer: Its optimizer.
        noise: σ in effect; waits for the device.
        replayable: The step with every input in its place, for a CUDA graph; or None.
    """

    step: Callable[[], object]
    optimizer: torch.optim.Optimizer
    noise: Callable[[], float]
    replayable: Callable[[], object] | None


Build = Callable[[Workspace], Stepper]
Noise = Callable[[list[Tensor], float], Callable[[list[Tensor]], None]]


def torchs(
    *, foreach: bool = False, fused: bool = False, noise: Noise | None = None, clip: bool = False
) -> Build:
    """`torch.optim.AdamW`, with stock clipping and noise before it if wanted."""

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
        return Stepper(step, optimizer, lambda: sigma, step if fused else None)

    return build


def ours(
    control: Control, *, clip: bool = False, observes: bool = True, idle: bool = False
) -> Build:
    """`AdaptiveAdamW`, told a loss before every step unless `observes` is False.

    With `idle` it has no gradients: what every step of ours pays for being steered.
    """

    def build(w: Workspace) -> Stepper:
        nothing = [nn.Parameter(torch.empty(0, device=w.device))]
        optimizer = AdaptiveAdamW(
            nothing if idle else w.params, LR, BETAS, EPS, WEIGHT_DECAY,
            capturable=w.device.type == "cuda", control=control,
            max_grad_norm=w.gradient_norm * CLIP_SHARE if clip else None,
        )  # fmt: skip
        if not idle:
            w.lend_moments(optimizer, torch.float32, w.device)

        def step() -> None:
            optimizer.observe(next(w.losses))
            optimizer.step()

        def replayable() -> None:
            optimizer.observe(w.loss)
            optimizer.step()

        def noise() -> float:
            return optimizer.knobs()["noise"]

        if not observes:
            return Stepper(optimizer.step, optimizer, noise, optimizer.step)
        return Stepper(step, optimizer, noise, replayable)

    return build


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        build: Makes it on a workspace.
        sigma: The noise that it must draw; checked after the run.
        rivals: Whose work it does: the contenders that its time is divided by.
    """

    build: Build
    sigma: float = 0.0
    rivals: tuple[str, ...] = ()


CONTENDERS: dict[str, Contender] = {
    FUSED: Contender(torchs(fused=True)),
    FOREACH: Contender(torchs(foreach=True)),
    SINGLE: Contender(torchs()),
    OURS: Contender(ours(Control()), rivals=(FUSED,)),
    UNTOLD: Contender(ours(Control(), observes=False), rivals=(FUSED,)),
    FROZEN: Contender(ours(Control.frozen()), rivals=(FUSED,)),
    FROZEN_UNTOLD: Contender(ours(Control.frozen(), observes=False), rivals=(FUSED,)),
    PLAIN: Contender(ours(NO_NOISE), rivals=(FUSED,)),
    ALIGNMENT: Contender(ours(ALIGNED), rivals=(OURS, FUSED)),
    PLAIN_NOISE: Contender(torchs(fused=True, noise=PlainNoise), SIGMA),
    TUNED_NOISE: Contender(torchs(fused=True, noise=TunedNoise), SIGMA),
    NOISE: Contender(ours(STEADY_NOISE), SIGMA, (PLAIN_NOISE, TUNED_NOISE)),
    CLIPPED: Contender(torchs(fused=True, clip=True)),
    CLIP: Contender(ours(NO_NOISE, clip=True), rivals=(CLIPPED,)),
    STOCK: Contender(torchs(fused=True, noise=TunedNoise, clip=True), SIGMA),
    ALL: Contender(ours(STEADY_NOISE, clip=True), SIGMA, (STOCK,)),
    IDLE: Contender(ours(STEADY_NOISE, idle=True), SIGMA),
}
"""In the tables' order. Those without noise and clipping all do the same step."""
