"""The method's noise on a tensor of any optimizer (method.md#noise)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adaptiverl.backends.operators import COMPILED
from adaptiverl.kernels.normals import normals
from adaptiverl.kernels.reference import real
from adaptiverl.layout import State


def add_noise(tensor: Tensor, index: int, state: State, scale: float = 1.0) -> None:
    """Add scale·σ·RMS·ξ, in place; ξ is what an optimizer of ours would draw there.

    Args:
        tensor: A gradient or a parameter.
        index: The parameter's place among all.
        state: The controller's of this step, on the host.
        scale: Of the noise: 1, or the group's rate for a parameter.
    """
    x = real(tensor.detach())
    if x.numel() == 0:
        return
    mean = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum() / x.numel()
    xi = _drawn(x, index, state).view(x.shape)
    x.add_((xi * (mean.sqrt() * (scale * state.noise))).to(x.dtype))


def _drawn(x: Tensor, index: int, state: State) -> Tensor:
    """Standard normals, float32 [numel]."""
    words = int(state.seed_low), int(state.seed_high)
    if x.device.type == "cpu" and COMPILED is not None:
        out = torch.empty(x.numel(), dtype=torch.float32)
        torch.ops.adaptiverl.normals_(*words, index, int(state.step), 0, out)
        return out
    key = [torch.tensor(word, dtype=torch.int64, device=x.device) for word in words]
    step = torch.tensor(int(state.step), dtype=torch.int64, device=x.device)
    return normals(key, index, step, 0, x.numel(), torch.float32)


def is_drawn(state: State) -> bool:
    """Whether σ is above 0 in this step."""
    return state.noise > 0 and math.isfinite(state.noise)
