"""The one factor on every gradient, in one launch: what clipping leaves, over the loss scale."""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.chunks import on_device
from torch import Tensor

BLOCK = 1024
WARPS = 4
POINTERS = ("squares", "limit", "grad_scale", "factor")


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=POINTERS)
def gradient_scale_kernel(squares, count, limit, grad_scale, factor, BLOCK: tl.constexpr):
    """One program; `gradient_scale` gives the arguments."""
    scale = tl.full([], 1.0, tl.float64)
    if grad_scale is not None:
        scale = 1.0 / tl.load(grad_scale).to(tl.float64)
    if limit is not None:
        lanes = tl.arange(0, BLOCK)
        sums = tl.zeros([BLOCK], tl.float64)
        for start in range(0, count, BLOCK):
            sums += tl.load(squares + start + lanes, start + lanes < count, 0.0)
        norm = tl.sqrt(tl.sum(sums)) * scale
        clipped = tl.load(limit) / (norm + 1e-6)
        scale = scale * tl.minimum(clipped, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(factor, scale)


def gradient_scale(
    squares: Tensor, limit: Tensor | None, grad_scale: Tensor | None, factor: Tensor
) -> None:
    """What `reference.gradient_scale` computes, in one launch, always in the same order.

    Args:
        squares: Σ g² of every tensor, float64 [tensors], contiguous.
        limit: The global norm to clip to, 0-d float64; ``None``: no clipping, `squares` is not
            read.
        grad_scale: What a gradient scaler multiplied the loss by, one float32 or float64; ``None``
            is 1.
        factor: 0-d float64; overwritten.
    """
    with on_device(factor.device):
        gradient_scale_kernel[(1,)](
            squares, squares.numel(), limit, grad_scale, factor, BLOCK=BLOCK, num_warps=WARPS
        )
