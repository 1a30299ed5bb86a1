"""Who is timed, on one set of parameters that all share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control
from bench.gpu.plan import (
    ALL,
    CLIP,
    CLIPPED,
    FOREACH,
    FUSED,
    NOISE,
    PLAIN,
    SEARCH,
    SHAPES,
    STOCK,
    Workload,
)
from bench.step.stock_noise import TunedNoise

SIGMA, LR, GRADIENT = 0.01, 1e-4, 1e-3
OFF, ON = Control(noise_bounds=(0.0, 0.0)), Control(noise_bounds=(SIGMA, SIGMA))


class Memory:
    """Parameters, gradients, moments and losses of a workload.

    Args:
        workload: Shapes and dtype.
        device: Where it all lives.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.device, self.workload = device, workload
        generator = torch.Generator(device).manual_seed(0)
        dtype = getattr(torch, workload.dtype)

        def normal(shape: tuple[int, ...], size: float) -> Tensor:
            values = torch.empty(shape, dtype=dtype, device=device)
            return values.normal_(0, size, generator=generator)

        shapes = SHAPES[workload.shapes]
        self.params = [nn.Parameter(normal(shape, 0.02)) for shape in shapes]
        self.pristine = [normal(shape, GRADIENT) for shape in shapes]
        for param, gradient in zip(self.params, self.pristine, strict=True):
            param.grad = gradient.clone()
        self._moments = {dtype: self._zeros(dtype), torch.float32: self._zeros(torch.float32)}
        if dtype == torch.float32:
            self._moments[dtype] = self._moments[torch.float32]
        self.norm = GRADIENT * workload.elements**0.5
        # Falling steadily: a plateau would call for noise where a step is measured without.
        self.loss = torch.tensor(11.0, device=device)
        self.losses = cycle(torch.linspace(11, 3, 4096, device=device).unbind())

    def _zeros(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        return [
            (torch.zeros_like(p, dtype=dtype), torch.zeros_like(p, dtype=dtype))
            for p in self.params
        ]

    @property
    def gradients(self) -> list[Tensor]:
        """Stock noise and clipping change them in place."""
        return [p.grad for p in self.params if p.grad is not None]

    def restore(self) -> None:
        """Gradients as a backward pass would leave them."""
        torch._foreach_copy_(self.gradients, self.pristine)

    def lend(self, optimizer: torch.optim.Optimizer, dtype: torch.dtype, on_host: bool) -> None:
        """Give an optimizer the shared moments, as a checkpoint of AdamW's would bring them."""
        place = torch.device("cpu") if on_host else self.device
        for param, (exp_avg, exp_avg_sq) in zip(self.params, self._moments[dtype], strict=True):
            step = torch.zeros((), dtype=torch.float32, device=place)
            state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            optimizer.state[param].update(state)


@dataclass(frozen=True)
class Stepper:
    """One contender at work.

    Attributes:
        step: What is timed, as in a training loop.
        frozen_step: The same with every input in its place, for a CUDA graph; or None.
        optimizer: Its optimizer.
    """

    step: Callable[[], Any]
    frozen_step: Callable[[], Any] | None
    optimizer: torch.optim.Optimizer


def build(name: str, memory: Memory) -> Stepper:
    """A contender by its name in `plan.CONTENDERS`."""
    return _torchs(name, memory) if name.startswith("torch") else _ours(name, memory)


def _torchs(name: str, memory: Memory) -> Stepper:
    foreach = name == FOREACH
    # Capturable for its own graph; on a CPU there is none.
    capturable = not foreach and memory.device.type == "cuda"
    optimizer = torch.optim.AdamW(
        memory.params, LR, foreach=foreach, fused=not foreach, capturable=capturable
    )
    memory.lend(optimizer, memory.params[0].dtype, on_host=foreach)
    noise = TunedNoise(memory.gradients, SIGMA) if name == STOCK else None
    clips = name in (CLIPPED, STOCK)
    assert name in (FUSED, FOREACH, CLIPPED, STOCK), name

    def step() -> None:
        if clips:
            torch.nn.utils.clip_grad_norm_(memory.params, memory.norm / 2)
        if noise is not None:
            noise(memory.gradients)
        optimizer.step()

    return Stepper(step, None if foreach else step, optimizer)


def _ours(name: str, memory: Memory) -> Stepper:
    control = {PLAIN: OFF, CLIP: OFF, NOISE: ON, ALL: ON, SEARCH: Control.find_lr()}[name]
    norm = memory.norm / 2 if name in (CLIP, ALL) else None
    optimizer = AdaptiveAdamW(
        memory.params, LR, capturable=True, control=control, max_grad_norm=norm
    )
    memory.lend(optimizer, torch.float32, on_host=False)

    def step() -> None:
        optimizer.observe(next(memory.losses))
        optimizer.step()

    def frozen_step() -> None:
        optimizer.observe(memory.loss)
        optimizer.step()

    return Stepper(step, frozen_step, optimizer)


def noise_of(stepper: Stepper) -> float:
    """σ of ours; waits for the device."""
    return float(stepper.optimizer.knobs()["noise"])  # type: ignore[attr-defined]
