"""The sweep: one AdamW step with noise for all tensors of a device and dtypes, in one launch.

Statement order is that of `reference.adamw_step` and csrc/adamw_step.h. Each path of `sweep` exists
with and without noise: a step without draws no random word.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from adaptiverl.kernels.chunks import CHUNK, on_device
from adaptiverl.kernels.layout import (
    BLOCK_ACTIVE,
    BLOCK_NOISE,
    EFFECTIVE_COLUMNS,
    EFFECTIVE_LR,
    EFFECTIVE_MOMENTUM,
    GRAD,
    GROUP,
    GROUP_COLUMNS,
    GROUP_HYPER0,
    GROUP_HYPER1,
    GROUP_WEIGHT_DECAY,
    MAXIMIZE,
    MU_PRODUCT,
    OFFSET,
    PARAM,
    STATE0,
    STATE1,
    STATE2,
    STEP,
    TRITON_DTYPES,
)
from adaptiverl.kernels.philox import reciprocal, sqrt
from adaptiverl.kernels.sweep import (
    NARROW,
    NO_NOISE,
    ON_GRADIENT,
    ON_PARAMETER,
    POINTERS,
    THREADS,
    WARPS,
    at,
    block_size,
    chunk_of,
    draw,
    load,
    noise_counter,
    noise_scale_of,
    pointer_of,
    store,
    store_sums,
    sum_of_threads,
)
from torch import Tensor

ROOT_SCALE = tl.constexpr(2.0**12)
"""What `_scaled_root` multiplies a root by"""


@triton.jit
def _scaled_root(v):
    # 2^12 times the root of v. The fast root flushes subnormals to 0, where m/(√v + 0) would be
    # infinite: so v is lifted out of their range, which costs one product; taking it back is free,
    # in the scalar that the root meets next. The price: v overflows from 2^104 on instead of 2^128,
    # with float32's outcome for an infinite v, no update.
    return sqrt(v * (ROOT_SCALE * ROOT_SCALE))


@triton.jit
def _full_blocks(rows, chunks, AMSGRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    # How many blocks of this chunk the wide path takes: all that are full, or none.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    addresses = tl.load(table + PARAM) | tl.load(table + GRAD)
    addresses |= tl.load(table + STATE0) | tl.load(table + STATE1)
    if AMSGRAD:
        addresses |= tl.load(table + STATE2)
    element = tl.load(table + OFFSET) + start
    full = 0
    if ((addresses & 15) == 0) & ((element & 3) == 0):
        full = length // BLOCK
    return full


@triton.jit
def _sweep(
    full,
    totals,
    rows,
    chunks,
    scalars,
    noise_scale,
    counter,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SUMS: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sum_gu, sum_gg, sum_uu = totals
    scale, one_minus_momentum, beta2, one_minus_beta2, inverse_bias2_sqrt, eps, decay, step_size = (
        scalars
    )
    # Each loop reads the tables for itself: what it kept for the next would cost it registers.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    element = tl.load(table + OFFSET) + start
    params = pointer_of(table, PARAM, PARAM_TYPE, start)
    grads = pointer_of(table, GRAD, GRAD_TYPE, start)
    exp_avgs = pointer_of(table, STATE0, tl.float32, start)
    exp_avg_sqs = pointer_of(table, STATE1, tl.float32, start)
    if AMSGRAD:
        max_exp_avg_sqs = pointer_of(table, STATE2, tl.float32, start)
    STEP_BY: tl.constexpr = BLOCK if WIDE else NARROW
    if WIDE:
        first = 0
        last = full
    else:
        first = full * (BLOCK // NARROW)
        last = tl.cdiv(length, NARROW)
    lanes = tl.arange(0, STEP_BY)
    for i in range(first, last):
        offset = i * STEP_BY
        inside = offset + lanes < length
        param = at(params, offset, WIDE) + lanes
        grad = at(grads, offset, WIDE) + lanes
        exp_avg = at(exp_avgs, offset, WIDE) + lanes
        exp_avg_sq = at(exp_avg_sqs, offset, WIDE) + lanes
        g = load(grad, inside, WIDE)
        m = load(exp_avg, inside, WIDE)
        v = load(exp_avg_sq, inside, WIDE)

        g = g * scale
        if SUMS:
            u = m * reciprocal(_scaled_root(v) * (1.0 / ROOT_SCALE) + eps)
            counted = g
            if not WIDE:
                # With eps = 0, u is 0/0 outside.
                u = tl.where(inside, u, 0.0)
                counted = tl.where(inside, g, 0.0)
            sum_gu += sum_of_threads(counted * u, WIDE)
            sum_gg += sum_of_threads(counted * counted, WIDE)
            sum_uu += sum_of_threads(u * u, WIDE)
        if NOISE == ON_GRADIENT:
            g = g + noise_scale * draw(element + offset, lanes, counter, WIDE, STEP_BY)
        p = load(param, inside, WIDE)
        m = m + one_minus_momentum * (g - m)
        v = v * beta2 + one_minus_beta2 * (g * g)
        v_hat = v
        if AMSGRAD:
            max_exp_avg_sq = at(max_exp_avg_sqs, offset, WIDE) + lanes
            v_max = load(max_exp_avg_sq, inside, WIDE)
            v_hat = tl.maximum(v_max, v, propagate_nan=tl.PropagateNan.ALL)
            store(max_exp_avg_sq, v_hat, inside, WIDE)
        denominator = _scaled_root(v_hat) * inverse_bias2_sqrt + eps
        p = p * decay - step_size * (m * reciprocal(denominator))
        store(exp_avg, m, inside, WIDE)
        store(exp_avg_sq, v, inside, WIDE)
        if NOISE == ON_PARAMETER:
            # After the moments have left their registers.
            p = p + noise_scale * draw(element + offset, lanes, counter, WIDE, STEP_BY)
        store(param, p, inside, WIDE)
    return sum_gu, sum_gg, sum_uu


@triton.jit
def _sweep_chunk(
    full,
    rows,
    chunks,
    scalars,
    noise_scale,
    counter,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    SUMS: tl.constexpr,
    NOISE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    zeros = tl.zeros([THREADS], tl.float32)
    wide_gu, wide_gg, wide_uu = _sweep(
        full,
        (zeros, zeros, zeros),
        rows,
        chunks,
        scalars,
        noise_scale,
        counter,
        PARAM_TYPE,
        GRAD_TYPE,
        AMSGRAD,
        SUMS,
        NOISE,
        True,
        CHUNK,
        BLOCK,
    )
    if SUMS:
        wide_gu, wide_gg, wide_uu = tl.sum(wide_gu), tl.sum(wide_gg), tl.sum(wide_uu)
    full = _full_blocks(rows, chunks, AMSGRAD, CHUNK, BLOCK)
    gu, gg, uu = _sweep(
        full,
        (zeros, zeros, zeros),
        rows,
        chunks,
        scalars,
        noise_scale,
        counter,
        PARAM_TYPE,
        GRAD_TYPE,
        AMSGRAD,
        SUMS,
        NOISE,
        False,
        CHUNK,
        BLOCK,
    )
    if SUMS:
        gu, gg, uu = wide_gu + tl.sum(gu), wide_gg + tl.sum(gg), wide_uu + tl.sum(uu)
    return gu, gg, uu


# Addresses' alignment is no part of what is compiled: one binary per choice of options, and the one
# that codegen.py reads.
@triton.jit(do_not_specialize_on_alignment=POINTERS)
def adamw_step_kernel(
    rows,
    chunks,
    block,
    groups,
    effective,
    squares,
    gradient_scale,
    sums,
    partials,
    finished,
    PARAM_TYPE: tl.constexpr,
    GRAD_TYPE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    NOISE_ON_PARAMETER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor; `adamw_step` gives the arguments."""
    if tl.load(block + BLOCK_ACTIVE) == 0:
        return
    full = _full_blocks(rows, chunks, AMSGRAD, CHUNK, BLOCK)
    table, _, _ = chunk_of(rows, chunks, CHUNK)

    # The tensor's scalars, in float64; each is cast once.
    group = tl.load(table + GROUP)
    lr = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_LR)
    momentum = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_MOMENTUM)
    beta2 = tl.load(groups + group * GROUP_COLUMNS + GROUP_HYPER0)
    eps = tl.load(groups + group * GROUP_COLUMNS + GROUP_HYPER1).to(tl.float32)
    weight_decay = tl.load(groups + group * GROUP_COLUMNS + GROUP_WEIGHT_DECAY)
    step = tl.load(tl.load(table + STEP).to(tl.pointer_type(tl.float32))).to(tl.float64)
    mu_product = tl.load(tl.load(table + MU_PRODUCT).to(tl.pointer_type(tl.float64)))
    bias2_sqrt = tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    step_size = (lr / (1.0 - mu_product)).to(tl.float32)
    # A product for the statement order's quotient, and the other end of `_scaled_root`.
    inverse_bias2_sqrt = (1.0 / (bias2_sqrt * ROOT_SCALE)).to(tl.float32)
    decay = (1.0 - lr * weight_decay).to(tl.float32)
    one_minus_momentum = (1.0 - momentum).to(tl.float32)
    one_minus_beta2 = (1.0 - beta2).to(tl.float32)
    beta2 = beta2.to(tl.float32)
    scale = 1.0
    if gradient_scale is not None:
        scale = tl.load(gradient_scale).to(tl.float32)
    scale = tl.where(tl.load(table + MAXIMIZE) != 0, -scale, scale)

    noise = tl.zeros([], tl.float64)
    noise_scale = 0.0
    if squares is not None:
        noise = tl.load(block + BLOCK_NOISE)
        unit = None
        if NOISE_ON_PARAMETER:
            unit = lr
        elif gradient_scale is not None:
            unit = tl.load(gradient_scale)
        noise_scale = noise_scale_of(table, chunks, block, squares, unit)
    counter = noise_counter(table, block)

    scalars = (
        scale,
        one_minus_momentum,
        beta2,
        one_minus_beta2,
        inverse_bias2_sqrt,
        eps,
        decay,
        step_size,
    )
    SUMS: tl.constexpr = sums is not None
    if noise != 0:
        gu, gg, uu = _sweep_chunk(
            full,
            rows,
            chunks,
            scalars,
            noise_scale,
            counter,
            PARAM_TYPE,
            GRAD_TYPE,
            AMSGRAD,
            SUMS,
            ON_PARAMETER if NOISE_ON_PARAMETER else ON_GRADIENT,
            CHUNK,
            BLOCK,
        )
    else:
        gu, gg, uu = _sweep_chunk(
            full,
            rows,
            chunks,
            scalars,
            noise_scale,
            counter,
            PARAM_TYPE,
            GRAD_TYPE,
            AMSGRAD,
            SUMS,
            NO_NOISE,
            CHUNK,
            BLOCK,
        )

    if SUMS:
        store_sums(rows, chunks, sums, partials, finished, gu, gg, uu, CHUNK)


def register_limit(architecture: int, everything: bool) -> int:
    """Registers per thread. Left to itself the compiler takes more for a few instructions less.

    Args:
        architecture: 90 for sm_90.
        everything: With amsgrad, noise and sums. On sm_100 that does not fit 64 without spilling;
            on sm_75 it does by Triton 3.7's compiler and not by 3.6's.
    """
    if everything and architecture < 80:
        return 72
    return 88 if everything and architecture >= 100 else 64


def adamw_step(
    rows: Tensor,
    chunks: Tensor,
    block: Tensor,
    groups: Tensor,
    effective: Tensor,
    squares: Tensor | None,
    gradient_scale: Tensor | None,
    sums: Tensor | None,
    partials: Tensor,
    finished: Tensor,
    *,
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    amsgrad: bool,
    noise_on_parameter: bool = False,
) -> None:
    """One AdamW step of every tensor in place, in one launch; the twin of `reference.adamw_step`.

    `step` and `mu_product` are already those of this step. Ends at once on the device where the
    step is skipped. Moments are float32. All that changes between steps is read from memory.

    Args:
        rows: The address table, int64 [tensors, 13]; `maximize` is a column of it.
        chunks: `chunk_table` of its sizes, int32 [chunks, 2].
        block: The controller's block, float64.
        groups: float64 [groups, 5].
        effective: float64 [groups, 2]: lr and momentum of this step.
        squares: Σ g² (or Σ p²) of each whole logical tensor, float64 [tensors], read where the
            noise is not 0; ``None`` leaves noise out of the kernel.
        gradient_scale: 0-d float64 factor on every gradient; ``None`` is 1.
        sums: float64 [tensors, 3], overwritten with Σ g·u, Σ g², Σ u² (u from before the update);
            ``None`` leaves them out of the kernel.
        partials: float32 [chunks, 3], from `partial_sums`; not touched without `sums`.
        finished: int32 [tensors], likewise.
        param_dtype: The parameters' dtype.
        grad_dtype: The gradients' dtype.
        amsgrad: Whether the rows' `max_exp_avg_sq` are kept.
        noise_on_parameter: Add the noise to the parameter after its update.
    """
    if len(chunks) == 0:
        return
    param_name, grad_name = (
        str(dtype).removeprefix("torch.") for dtype in (param_dtype, grad_dtype)
    )
    everything = amsgrad and squares is not None and sums is not None
    with on_device(rows.device):
        adamw_step_kernel[(len(chunks),)](
            rows,
            chunks,
            block,
            groups,
            effective,
            squares,
            gradient_scale,
            sums,
            partials,
            finished,
            PARAM_TYPE=TRITON_DTYPES[param_name],
            GRAD_TYPE=TRITON_DTYPES[grad_name],
            AMSGRAD=amsgrad,
            NOISE_ON_PARAMETER=noise_on_parameter,
            CHUNK=CHUNK,
            BLOCK=block_size(param_name, grad_name),
            num_warps=WARPS,
            maxnreg=register_limit(_architecture(rows.device), everything),
        )


@functools.cache
def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
