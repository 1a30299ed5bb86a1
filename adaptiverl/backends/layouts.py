"""Whether tensors lie so that a pass over addresses can walk them side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def lie_alike(tensors: Sequence[Tensor], noisy: bool) -> bool:
    """Whether element i of one is element i of all, in memory.

    Noise belongs to an element's place in C order (method.md#random-numbers). Without it any order
    without gaps will do that is the same for all, as that of channels-last or of transposed
    tensors.
    """
    first = tensors[0]
    if any(
        t.device != first.device
        or t.shape != first.shape
        or t.is_neg()
        or is_fake(t)
        or is_traceable_wrapper_subclass(t)
        for t in tensors
    ):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    return not noisy and is_dense(first) and all(_order(t) == _order(first) for t in tensors)


def is_fake(tensor: Tensor) -> bool:
    """Whether it has neither memory nor values, as while a program is traced or its memory planned.

    Where nobody imported fake tensors, there is none.
    """
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Strides of the dimensions that are walked."""
    return [(d, s) for d, s in enumerate(tensor.stride()) if tensor.shape[d] > 1]


def is_dense(tensor: Tensor) -> bool:
    """Whether some order of its dimensions makes it contiguous."""
    outermost_first = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(outermost_first).is_contiguous()
