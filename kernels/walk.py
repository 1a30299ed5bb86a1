"""How a program of the pass finds its chunk, walks its two paths, draws noise and leaves its sums.

A program takes one chunk of one tensor. Its full blocks go through the wide path, unmasked 128-bit
loads and stores, if all is aligned to 16 bytes and the chunk opens with a quad of the noise;
everything else goes through the masked path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from adaptiverl.kernels.layout import (
    COLUMNS,
    INDEX,
    LOGICAL_NUMEL,
    NUMEL,
    STATE_NOISE,
    STATE_SEED_HIGH,
    STATE_SEED_LOW,
    STATE_STEP,
)
from adaptiverl.kernels.philox import element_normals, octet_normals, quad_normals
from adaptiverl.kernels.rounding_bits import element_bits, octet_bits, quad_bits
from adaptiverl.kernels.statistics import add_partials, is_last_of_tensor
from adaptiverl.kernels.sums import ALIGNMENT

WIDTH = tl.constexpr(ALIGNMENT.width)
NARROW = tl.constexpr(256)
"""Elements per round of the masked path. Not BLOCK: equal ranges would be merged, and tie the
masked path's layout to the wide one's"""
WARPS = 4
THREADS = tl.constexpr(32 * WARPS)
POINTERS = (
    "rows",
    "chunks",
    "state",
    "groups",
    "effective",
    "squares",
    "gradient_scale",
    "sums",
    "partials",
    "finished",
)
"""The pass's arguments in memory, in their order"""

# What a loop is compiled to do with the noise: one loop for each, without branches.
NO_NOISE = tl.constexpr(0)
ON_GRADIENT = tl.constexpr(1)
ON_PARAMETER = tl.constexpr(2)


@triton.jit
def sum_of_threads(values, NEIGHBOURS: tl.constexpr, WIDE: tl.constexpr):
    """Over each thread's own elements: no thread waits for another inside the loop."""
    RUN: tl.constexpr = NEIGHBOURS if WIDE else 1
    apart = values.reshape(values.shape[0] // (RUN * THREADS), THREADS, RUN)
    return tl.sum(tl.sum(apart, axis=2), axis=0)


@triton.jit
def chunk_of(rows, chunks, CHUNK: tl.constexpr):
    """This program's row of the address table, its first element in the tensor, its length.

    The place is 64 bits wide: a tensor may have more than 2^31 elements.
    """
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(chunks + 2 * program).to(tl.int64)
    number = tl.load(chunks + 2 * program + 1).to(tl.int64)
    table = rows + row * COLUMNS
    start = number * CHUNK
    return table, start, tl.minimum(tl.load(table + NUMEL) - start, CHUNK).to(tl.int32)


@triton.jit
def at(base, offset, WIDE: tl.constexpr):
    """Where a round begins."""
    pointer = base + offset
    if WIDE:
        # A pointer read from a table tells the compiler nothing: without the hint it loads 4 bytes
        # at a time. The hint sticks to the operation, so it goes on one that only this path has.
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def noise_scale_of(table, chunks, state, squares, unit):
    """σ·RMS·unit in float32, of the logical tensor whose sum of squares `squares` holds.

    `unit` is the gradients' factor, or the learning rate; None is 1.
    """
    noise = tl.load(state + STATE_NOISE)
    square = tl.load(squares + tl.load(chunks + 2 * tl.program_id(0).to(tl.int64)))
    logical_numel = tl.maximum(tl.load(table + LOGICAL_NUMEL), 1).to(tl.float64)
    noise_scale = noise * tl.sqrt(square / logical_numel)
    if unit is not None:
        noise_scale = noise_scale * unit
    return noise_scale.to(tl.float32)


@triton.jit
def noise_counter(table, state):
    """What all elements of a parameter share at one step: index, step, and the key."""
    index = tl.load(table + INDEX).to(tl.uint32)
    step = tl.load(state + STATE_STEP).to(tl.int64).to(tl.uint32)
    seed_low = tl.load(state + STATE_SEED_LOW).to(tl.int64).to(tl.uint32)
    seed_high = tl.load(state + STATE_SEED_HIGH).to(tl.int64).to(tl.uint32)
    return index, step, seed_low, seed_high


@triton.jit
def draw(
    element, lanes, counter, NEIGHBOURS: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr
):
    """ξ of the COUNT elements from `element` on; on the wide path it opens a quad."""
    index, step, seed_low, seed_high = counter
    if not WIDE:
        xi = element_normals(element + lanes, index, step, seed_low, seed_high)
    elif NEIGHBOURS == 8:
        xi = octet_normals(element >> 2, index, step, seed_low, seed_high, COUNT // 4)
    else:
        xi = quad_normals(element >> 2, index, step, seed_low, seed_high, COUNT // 4)
    return xi


@triton.jit
def draw_bits(
    element, lanes, counter, NEIGHBOURS: tl.constexpr, WIDE: tl.constexpr, COUNT: tl.constexpr
):
    """16 random bits of the COUNT elements from `element` on, on the wide path opening an octet."""
    if not WIDE:
        bits = element_bits(element + lanes, counter)
    elif NEIGHBOURS == 8:
        bits = octet_bits(element, counter, COUNT)
    else:
        bits = quad_bits(element, counter, COUNT)
    return bits


@triton.jit
def store_sums(rows, chunks, sums, partials, finished, gu, gg, uu, CHUNK: tl.constexpr):
    """A chunk's sums; the tensor's, if every other chunk of it has left its own."""
    program = tl.program_id(0).to(tl.int64)
    tl.store(partials + program * WIDTH, gu)
    tl.store(partials + program * WIDTH + 1, gg)
    tl.store(partials + program * WIDTH + 2, uu)
    # Read again rather than kept in registers through the loops.
    row = tl.load(chunks + 2 * program).to(tl.int64)
    number = tl.load(chunks + 2 * program + 1).to(tl.int64)
    count = tl.maximum(tl.cdiv(tl.load(rows + row * COLUMNS + NUMEL), CHUNK), 1)
    if is_last_of_tensor(finished, row, count):
        for COLUMN in tl.static_range(WIDTH):
            total = add_partials(partials, program - number, count, COLUMN, WIDTH)
            tl.store(sums + row * WIDTH + COLUMN, total)
        tl.store(finished + row, 0)


def neighbours(dtypes: Sequence[torch.dtype]) -> int:
    """Neighbouring elements that one thread holds on the wide path, of all that a launch walks.

    16 bytes of the widest. Beside float32's four, eight neighbours of 16 bits would have to go
    through shared memory.
    """
    return 8 if max(dtype.itemsize for dtype in dtypes) == 2 else 4


def block_size(dtypes: Sequence[torch.dtype]) -> int:
    """Elements per round of the wide path, of all dtypes that a launch walks.

    1024: two runs of four neighbours per thread, or one of eight. Where float32 meets others, one
    of four.
    """
    alike = len({dtype.itemsize for dtype in dtypes}) == 1
    return 1024 if alike or neighbours(dtypes) == 8 else 512
