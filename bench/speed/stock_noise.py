"""Gradient noise (method.md#noise) composed from torch's own operations, in two ways."""

import math

import torch
from torch import Tensor

# The drawn numbers stay in the cache until they are added; at most this many run on one thread.
CPU_BLOCK = 32768


class PlainNoise:
    """As one writes it down: each tensor's RMS, one draw, one sum."""

    def __init__(self, gradients: list[Tensor], sigma: float) -> None:
        self._sigma = sigma

    def __call__(self, gradients: list[Tensor]) -> None:
        for gradient in gradients:
            rms = gradient.square().mean().sqrt()
            gradient.add_(torch.randn_like(gradient) * (self._sigma * rms))


class TunedNoise:
    """The fastest composition we found; bench/README.md says what it does on each device."""

    def __init__(self, gradients: list[Tensor], sigma: float) -> None:
        self._factors = [sigma / math.sqrt(g.numel()) for g in gradients]
        self._on_host = gradients[0].device.type == "cpu"
        size = CPU_BLOCK if self._on_host else sum(g.numel() for g in gradients)
        self._buffer = torch.empty(size, dtype=gradients[0].dtype, device=gradients[0].device)

    def __call__(self, gradients: list[Tensor]) -> None:
        norms = torch._foreach_norm(gradients)
        if self._on_host:
            self._add_blocks(gradients, norms)
        else:
            self._add_tensors(gradients, norms)

    def _add_blocks(self, gradients: list[Tensor], norms: tuple[Tensor, ...]) -> None:
        for gradient, norm, factor in zip(gradients, norms, self._factors, strict=True):
            scale = factor * norm.item()
            for block in gradient.view(-1).split(CPU_BLOCK):
                block.add_(self._buffer[: block.numel()].normal_(), alpha=scale)

    def _add_tensors(self, gradients: list[Tensor], norms: tuple[Tensor, ...]) -> None:
        draws = self._buffer.normal_().split([g.numel() for g in gradients])
        for gradient, norm, factor, xi in zip(gradients, norms, self._factors, draws, strict=True):
            gradient.addcmul_(xi.view_as(gradient), norm, value=factor)
