"""The pass's kernel: one chunk of one tensor, for any algorithm.

What an algorithm does with one element is in a file of its own, as four functions that the kernel
is compiled with: `scalars`, `gradient`, `direction`, and `state` and `parameter`, which are one
function, `update`, in this file's twins, csrc/pass_loops.inc and `reference.step`.

A kernel has two loops, one with noise and one without: a step without draws no random word.
"""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels import rounding
from adaptiverl.kernels.block_codes import BLOCK as CODES
from adaptiverl.kernels.codecs import (
    load,
    load_master,
    load_slot,
    pointer_of,
    scales_of,
    store_master,
    store_slot,
)
from adaptiverl.kernels.layout import (
    EFFECTIVE_COLUMNS,
    EFFECTIVE_LR,
    ERROR,
    GRAD,
    GROUP,
    GROUP_COLUMNS,
    MAXIMIZE,
    OFFSET,
    PARAM,
    STATE0,
    STATE1,
    STATE2,
    STATE_ACTIVE,
    STATE_NOISE,
)
from adaptiverl.kernels.walk import (
    NARROW,
    NO_NOISE,
    ON_GRADIENT,
    ON_PARAMETER,
    POINTERS,
    THREADS,
    at,
    chunk_of,
    draw,
    draw_bits,
    noise_counter,
    noise_scale_of,
    store_sums,
    sum_of_threads,
)

OF_PARAM = tl.constexpr(rounding.OF_PARAM)
OF_SLOT0, OF_SLOT1, OF_SLOT2 = (tl.constexpr(factor) for factor in rounding.OF_SLOTS)


@triton.jit
def _full_blocks(
    rows,
    chunks,
    ERRORS: tl.constexpr,
    SLOT0: tl.constexpr,
    SLOT1: tl.constexpr,
    SLOT2: tl.constexpr,
    RUN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # How many blocks of this chunk the wide path takes: all that are full, or none.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    addresses = tl.load(table + PARAM) | tl.load(table + GRAD)
    if ERRORS:
        addresses |= tl.load(table + ERROR)
    if SLOT0 is not None:
        addresses |= tl.load(table + STATE0)
    if SLOT1 is not None:
        addresses |= tl.load(table + STATE1)
    if SLOT2 is not None:
        addresses |= tl.load(table + STATE2)
    element = tl.load(table + OFFSET) + start
    full = 0
    if ((addresses & 15) == 0) & ((element & (RUN - 1)) == 0):
        full = length // BLOCK
    return full


@triton.jit
def _step_path(
    full,
    rows,
    chunks,
    scale,
    noise_scale,
    counter,
    scalars,
    PARAM_CODEC: tl.constexpr,
    GRAD_CODEC: tl.constexpr,
    ERRORS: tl.constexpr,
    SLOT0: tl.constexpr,
    SLOT1: tl.constexpr,
    SLOT2: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIRECTION: tl.constexpr,
    STATE: tl.constexpr,
    PARAMETER: tl.constexpr,
    ROUND: tl.constexpr,
    ROUND_PARAM: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    SUMS: tl.constexpr,
    NOISE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Each loop reads the tables for itself: what it kept for the next would cost it registers.
    table, start, length = chunk_of(rows, chunks, CHUNK)
    element = tl.load(table + OFFSET) + start
    params = pointer_of(table, PARAM, PARAM_CODEC, start)
    grads = pointer_of(table, GRAD, GRAD_CODEC, start)
    if ERRORS:
        errors = pointer_of(table, ERROR, tl.int8, start)
    if SLOT0 is not None:
        slots0 = pointer_of(table, STATE0, SLOT0, start)
        scales0 = scales_of(table, STATE0, SLOT0, start)
    if SLOT1 is not None:
        slots1 = pointer_of(table, STATE1, SLOT1, start)
        scales1 = scales_of(table, STATE1, SLOT1, start)
    if SLOT2 is not None:
        slots2 = pointer_of(table, STATE2, SLOT2, start)
        scales2 = scales_of(table, STATE2, SLOT2, start)
    STEP_BY: tl.constexpr = BLOCK if WIDE else NARROW
    if WIDE:
        first = 0
        last = full
    else:
        first = full * (BLOCK // NARROW)
        last = tl.cdiv(length, NARROW)
    lanes = tl.arange(0, STEP_BY)
    sum_gu = tl.zeros([THREADS], tl.float32)
    sum_gg = tl.zeros([THREADS], tl.float32)
    sum_uu = tl.zeros([THREADS], tl.float32)
    for i in range(first, last):
        offset = i * STEP_BY
        block = offset // CODES
        inside = offset + lanes < length
        param = at(params, offset, WIDE) + lanes
        grad = at(grads, offset, WIDE) + lanes
        g = load(grad, inside, WIDE)
        state0 = None
        state1 = None
        state2 = None
        if SLOT0 is not None:
            slot0 = at(slots0, offset, WIDE) + lanes
            state0 = load_slot(slot0, scales0, block, inside, SLOT0, WIDE)
        if SLOT1 is not None:
            slot1 = at(slots1, offset, WIDE) + lanes
            state1 = load_slot(slot1, scales1, block, inside, SLOT1, WIDE)
        if SLOT2 is not None:
            slot2 = at(slots2, offset, WIDE) + lanes
            state2 = load_slot(slot2, scales2, block, inside, SLOT2, WIDE)
        error = None
        if ERRORS:
            error = at(errors, offset, WIDE) + lanes
        p = load_master(param, error, inside, WIDE)
        bits = None
        if ROUND:
            bits = draw_bits(element + offset, lanes, counter, NEIGHBOURS, WIDE, STEP_BY)

        g = GRADIENT(scalars, g * scale, p)
        if SUMS:
            u = DIRECTION(scalars, g, state0, state1, state2)
            counted = g
            if not WIDE:
                # Outside, zeros were loaded, of which a function may make anything: 0/0 is NaN.
                u = tl.where(inside, u, 0.0)
                counted = tl.where(inside, g, 0.0)
            sum_gu += sum_of_threads(counted * u, NEIGHBOURS, WIDE)
            sum_gg += sum_of_threads(counted * counted, NEIGHBOURS, WIDE)
            sum_uu += sum_of_threads(u * u, NEIGHBOURS, WIDE)
        if NOISE == ON_GRADIENT:
            xi = draw(element + offset, lanes, counter, NEIGHBOURS, WIDE, STEP_BY)
            g = g + noise_scale * xi
        new = STATE(scalars, g, state0, state1, state2)
        if SLOT2 is not None:
            # Before the parameter is worked out: after that, Triton 3.6 has no registers left.
            store_slot(
                slot2, scales2, block, new[2], inside, bits, OF_SLOT2, SLOT2, NEIGHBOURS, WIDE
            )
        p = PARAMETER(scalars, g, p, state0, state1, state2, new)
        if SLOT0 is not None:
            store_slot(
                slot0, scales0, block, new[0], inside, bits, OF_SLOT0, SLOT0, NEIGHBOURS, WIDE
            )
        if SLOT1 is not None:
            store_slot(
                slot1, scales1, block, new[1], inside, bits, OF_SLOT1, SLOT1, NEIGHBOURS, WIDE
            )
        if NOISE == ON_PARAMETER:
            # After the state has left its registers.
            xi = draw(element + offset, lanes, counter, NEIGHBOURS, WIDE, STEP_BY)
            p = p + noise_scale * xi
        if ROUND_PARAM:
            store_master(param, error, p, inside, bits, OF_PARAM, WIDE)
        else:
            store_master(param, error, p, inside, None, OF_PARAM, WIDE)
    return sum_gu, sum_gg, sum_uu


@triton.jit
def _step_chunk(
    full,
    rows,
    chunks,
    scale,
    noise_scale,
    counter,
    scalars,
    PARAM_CODEC: tl.constexpr,
    GRAD_CODEC: tl.constexpr,
    ERRORS: tl.constexpr,
    SLOT0: tl.constexpr,
    SLOT1: tl.constexpr,
    SLOT2: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIRECTION: tl.constexpr,
    STATE: tl.constexpr,
    PARAMETER: tl.constexpr,
    ROUND: tl.constexpr,
    ROUND_PARAM: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    SUMS: tl.constexpr,
    NOISE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The wide path, then the masked one for what it left.
    gu = 0.0
    gg = 0.0
    uu = 0.0
    for WIDE in tl.static_range(1, -1, -1):
        if not WIDE:
            RUN: tl.constexpr = 8 if ROUND else 4
            full = _full_blocks(rows, chunks, ERRORS, SLOT0, SLOT1, SLOT2, RUN, CHUNK, BLOCK)
        path_gu, path_gg, path_uu = _step_path(
            full,
            rows,
            chunks,
            scale,
            noise_scale,
            counter,
            scalars,
            PARAM_CODEC,
            GRAD_CODEC,
            ERRORS,
            SLOT0,
            SLOT1,
            SLOT2,
            GRADIENT,
            DIRECTION,
            STATE,
            PARAMETER,
            ROUND,
            ROUND_PARAM,
            NEIGHBOURS,
            SUMS,
            NOISE,
            WIDE,
            CHUNK,
            BLOCK,
        )
        if SUMS:
            gu += tl.sum(path_gu)
            gg += tl.sum(path_gg)
            uu += tl.sum(path_uu)
    return gu, gg, uu


# Addresses' alignment is no part of what is compiled: one binary per choice of options, and the one
# that codegen.py reads.
@triton.jit(do_not_specialize_on_alignment=POINTERS)
def step_kernel(
    rows,
    chunks,
    state,
    groups,
    effective,
    squares,
    gradient_scale,
    sums,
    partials,
    finished,
    PARAM_CODEC: tl.constexpr,
    GRAD_CODEC: tl.constexpr,
    ERRORS: tl.constexpr,
    SLOT0: tl.constexpr,
    SLOT1: tl.constexpr,
    SLOT2: tl.constexpr,
    SCALARS: tl.constexpr,
    GRADIENT: tl.constexpr,
    DIRECTION: tl.constexpr,
    STATE: tl.constexpr,
    PARAMETER: tl.constexpr,
    ROUND: tl.constexpr,
    ROUND_PARAM: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    NOISE_ON_PARAMETER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor; `step` gives the arguments."""
    if tl.load(state + STATE_ACTIVE) == 0:
        return
    # A wide round opens with the first of the elements that share a block of random words.
    RUN: tl.constexpr = 8 if ROUND else 4
    full = _full_blocks(rows, chunks, ERRORS, SLOT0, SLOT1, SLOT2, RUN, CHUNK, BLOCK)
    table, _, _ = chunk_of(rows, chunks, CHUNK)
    group = tl.load(table + GROUP)
    knobs = effective + group * EFFECTIVE_COLUMNS
    scalars = SCALARS(table, groups + group * GROUP_COLUMNS, knobs, state)
    scale = 1.0
    if gradient_scale is not None:
        scale = tl.load(gradient_scale).to(tl.float32)
    scale = tl.where(tl.load(table + MAXIMIZE) != 0, -scale, scale)

    noise = tl.zeros([], tl.float64)
    noise_scale = 0.0
    if squares is not None:
        noise = tl.load(state + STATE_NOISE)
        unit = None
        if NOISE_ON_PARAMETER:
            unit = tl.load(knobs + EFFECTIVE_LR)
        elif gradient_scale is not None:
            unit = tl.load(gradient_scale)
        noise_scale = noise_scale_of(table, chunks, state, squares, unit)
    counter = noise_counter(table, state)

    SUMS: tl.constexpr = sums is not None
    if noise != 0:
        gu, gg, uu = _step_chunk(
            full,
            rows,
            chunks,
            scale,
            noise_scale,
            counter,
            scalars,
            PARAM_CODEC,
            GRAD_CODEC,
            ERRORS,
            SLOT0,
            SLOT1,
            SLOT2,
            GRADIENT,
            DIRECTION,
            STATE,
            PARAMETER,
            ROUND,
            ROUND_PARAM,
            NEIGHBOURS,
            SUMS,
            ON_PARAMETER if NOISE_ON_PARAMETER else ON_GRADIENT,
            CHUNK,
            BLOCK,
        )
    else:
        gu, gg, uu = _step_chunk(
            full,
            rows,
            chunks,
            scale,
            noise_scale,
            counter,
            scalars,
            PARAM_CODEC,
            GRAD_CODEC,
            ERRORS,
            SLOT0,
            SLOT1,
            SLOT2,
            GRADIENT,
            DIRECTION,
            STATE,
            PARAMETER,
            ROUND,
            ROUND_PARAM,
            NEIGHBOURS,
            SUMS,
            NO_NOISE,
            CHUNK,
            BLOCK,
        )

    if SUMS:
        store_sums(rows, chunks, sums, partials, finished, gu, gg, uu, CHUNK)
