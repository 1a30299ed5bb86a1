"""The sweep: one SGD step with noise for all tensors of a device and dtypes, in one launch.

Statement order is that of `reference.sgd_step` and csrc/sgd_step.h. Each path of `sweep` exists
with and without noise: a step without draws no random word.
"""

from __future__ import annotations

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
    OFFSET,
    PARAM,
    STATE0,
    STEP,
    TRITON_DTYPES,
)
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

NESTEROV = tl.constexpr(1)
DECOUPLED = tl.constexpr(2)
REGISTERS = 64
"""Most registers per thread. Left to itself the compiler takes more for a few instructions less."""


@triton.jit
def _full_blocks(rows, chunks, MOMENTUM: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    # How many blocks of this chunk the wide path takes: all that are full, or none.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    addresses = tl.load(table + PARAM) | tl.load(table + GRAD)
    if MOMENTUM:
        addresses |= tl.load(table + STATE0)
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
    MOMENTUM: tl.constexpr,
    SUMS: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sum_gu, sum_gg, sum_uu = totals
    scale, coupled, momentum, one_minus_dampening, nesterov, decay, lr = scalars
    # Each loop reads the tables for itself: what it kept for the next would cost it registers.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    element = tl.load(table + OFFSET) + start
    params = pointer_of(table, PARAM, PARAM_TYPE, start)
    grads = pointer_of(table, GRAD, GRAD_TYPE, start)
    if MOMENTUM:
        buffers = pointer_of(table, STATE0, tl.float32, start)
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
        p = load(param, inside, WIDE)
        g = load(grad, inside, WIDE)

        g = g * scale
        g = tl.where(coupled != 0, g + coupled * p, g)
        if SUMS:
            sum_gg += sum_of_threads(g * g, WIDE)
        if MOMENTUM:
            buffer = at(buffers, offset, WIDE) + lanes
            b = load(buffer, inside, WIDE)
            if SUMS:
                sum_gu += sum_of_threads(g * b, WIDE)
                sum_uu += sum_of_threads(b * b, WIDE)
        if NOISE == ON_GRADIENT:
            g = g + noise_scale * draw(element + offset, lanes, counter, WIDE, STEP_BY)
        d = g
        if MOMENTUM:
            b = b * momentum + one_minus_dampening * g
            d = tl.where(nesterov, g + momentum * b, b)
            store(buffer, b, inside, WIDE)
        p = p * decay - lr * d
        if NOISE == ON_PARAMETER:
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
    MOMENTUM: tl.constexpr,
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
        MOMENTUM,
        SUMS,
        NOISE,
        True,
        CHUNK,
        BLOCK,
    )
    if SUMS:
        wide_gu, wide_gg, wide_uu = tl.sum(wide_gu), tl.sum(wide_gg), tl.sum(wide_uu)
    full = _full_blocks(rows, chunks, MOMENTUM, CHUNK, BLOCK)
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
        MOMENTUM,
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
def sgd_step_kernel(
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
    MOMENTUM: tl.constexpr,
    NOISE_ON_PARAMETER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor; `sgd_step` gives the arguments."""
    if tl.load(block + BLOCK_ACTIVE) == 0:
        return
    full = _full_blocks(rows, chunks, MOMENTUM, CHUNK, BLOCK)
    table, _, _ = chunk_of(rows, chunks, CHUNK)

    # The tensor's scalars, in float64; each is cast once.
    group = tl.load(table + GROUP)
    lr = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_LR)
    momentum = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_MOMENTUM).to(tl.float32)
    dampening = tl.load(groups + group * GROUP_COLUMNS + GROUP_HYPER0)
    options = tl.load(groups + group * GROUP_COLUMNS + GROUP_HYPER1).to(tl.int32)
    weight_decay = tl.load(groups + group * GROUP_COLUMNS + GROUP_WEIGHT_DECAY)
    step = tl.load(tl.load(table + STEP).to(tl.pointer_type(tl.float32)))
    decoupled = (options & DECOUPLED) != 0
    nesterov = (options & NESTEROV) != 0
    coupled = tl.where(decoupled, 0.0, weight_decay).to(tl.float32)
    decay = tl.where(decoupled, 1.0 - lr * weight_decay, 1.0).to(tl.float32)
    # The first gradient goes undampened into a buffer of zeros: it is the buffer then, as in torch.
    one_minus_dampening = tl.where(step <= 1, 1.0, 1.0 - dampening).to(tl.float32)
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
        coupled,
        momentum,
        one_minus_dampening,
        nesterov,
        decay,
        lr.to(tl.float32),
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
            MOMENTUM,
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
            MOMENTUM,
            SUMS,
            NO_NOISE,
            CHUNK,
            BLOCK,
        )

    if SUMS:
        store_sums(rows, chunks, sums, partials, finished, gu, gg, uu, CHUNK)


def sgd_step(
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
    momentum: bool,
    noise_on_parameter: bool = False,
) -> None:
    """One SGD step of every tensor in place, in one launch; the twin of `reference.sgd_step`.

    `step` is already that of this step. Ends at once on the device where the step is skipped. The
    buffers, in the column `exp_avg`, are float32. All that changes between steps is read from
    memory.

    Args:
        rows: The address table, int64 [tensors, 13]; `maximize` is a column of it.
        chunks: `chunk_table` of its sizes, int32 [chunks, 2].
        block: The controller's block, float64.
        groups: float64 [groups, 5], as `SGDGroup` of csrc/sgd_step.h has them.
        effective: float64 [groups, 2]: lr and momentum of this step.
        squares: Σ g² (or Σ p²) of each whole logical tensor, float64 [tensors], read where the
            noise is not 0; ``None`` leaves noise out of the kernel.
        gradient_scale: 0-d float64 factor on every gradient; ``None`` is 1.
        sums: float64 [tensors, 3], overwritten with Σ g·u, Σ g², Σ u² (u the buffer from before the
            step); ``None`` leaves them out of the kernel.
        partials: float32 [chunks, 3], from `partial_sums`; not touched without `sums`.
        finished: int32 [tensors], likewise.
        param_dtype: The parameters' dtype.
        grad_dtype: The gradients' dtype.
        momentum: Whether the rows have buffers; all or none of a launch.
        noise_on_parameter: Add the noise to the parameter after its update.
    """
    if len(chunks) == 0:
        return
    param_name, grad_name = (
        str(dtype).removeprefix("torch.") for dtype in (param_dtype, grad_dtype)
    )
    with on_device(rows.device):
        sgd_step_kernel[(len(chunks),)](
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
            MOMENTUM=momentum,
            NOISE_ON_PARAMETER=noise_on_parameter,
            CHUNK=CHUNK,
            BLOCK=block_size(param_name, grad_name),
            num_warps=WARPS,
            maxnreg=REGISTERS,
        )
