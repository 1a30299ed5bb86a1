"""What a gradient scaler hands the step, and how a skipped step is told from others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef


class Scaling(NamedTuple):
    """What a gradient scaler hands the step; 0-d tensors."""

    grad_scale: Tensor | None = None
    """What the loss was multiplied by"""
    found_inf: Tensor | None = None
    """Not 0: the step is to be skipped"""


def scaling_of(optimizer: torch.optim.Optimizer) -> Scaling:
    """What a scaler has set on the optimizer for the length of this step."""
    return Scaling(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))


def watch(param: Tensor) -> Callable[[], bool]:
    """Tells from now on whether the parameter's gradient of this moment was thrown away."""
    assert param.grad is not None
    seen = TensorWeakRef(param.grad)  # accumulating adds to it and leaves it where it is
    owner = TensorWeakRef(param)

    def thrown_away() -> bool:
        here = owner()
        return here is None or here.grad is None or here.grad is not seen()

    return thrown_away
