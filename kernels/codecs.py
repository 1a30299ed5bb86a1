"""How a kernel reads and writes what is stored: one codec for each way, a constexpr of a kernel.

A codec is its element type: what is read becomes float32, what is written is rounded once, to
nearest, or by chance where there are random bits (method.md#storage). A way that needs more than
that (a scale beside a block of 8-bit numbers) is one more case in these functions; the kernels that
call them stay as they are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CODECS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def pointer_of(table, COLUMN: tl.constexpr, CODEC: tl.constexpr, start):
    """Where element `start` of one of a row's tensors lies."""
    return tl.load(table + COLUMN).to(tl.pointer_type(CODEC)) + start


@triton.jit
def load(pointers, inside, WIDE: tl.constexpr):
    """Elements as float32; on the masked path 0 outside."""
    if WIDE:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, inside, 0.0)
    return values.to(tl.float32)


@triton.jit
def store(pointers, value, inside, bits, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """Elements rounded once, to what they are kept in.

    `bits` are 16 random ones for each element, `FACTOR` is whose they are (`rounding.OF_PARAM`);
    without, or in float32, to nearest.
    """
    kept = value
    if bits is not None:
        kept = by_chance(value, bits, FACTOR, pointers.dtype.element_ty)
    kept = kept.to(pointers.dtype.element_ty)
    if WIDE:
        tl.store(pointers, kept)
    else:
        tl.store(pointers, kept, inside)


@triton.jit
def by_chance(value, bits, FACTOR: tl.constexpr, CODEC: tl.constexpr):
    """One of the two neighbours of a float32 in 16 bits: `rounding.round_stochastically`."""
    random = bits
    if FACTOR != 1:
        random = (bits * FACTOR) & 0xFFFF
    result = value
    if CODEC == tl.bfloat16:
        cut = ((value.to(tl.uint32, bitcast=True) + random) >> 16).to(tl.uint16)
        # What is added carries a NaN's lower bits into its sign.
        cut = tl.where(value == value, cut, 0x7FC0)
        result = cut.to(tl.bfloat16, bitcast=True)
    if CODEC == tl.float16:
        # Below 2^-14 float16 has steps of 2^-24: those that float32 has 13 bits above, once 2^-14
        # is added.
        small = tl.abs(value) < 6.103515625e-05
        lift = tl.where(small, tl.where(value < 0, -6.103515625e-05, 6.103515625e-05), 0.0)
        raw = (value + lift).to(tl.uint32, bitcast=True) + (random >> 3)
        cut = (raw & 0xFFFFE000).to(tl.float32, bitcast=True) - lift
        result = tl.where(value == value, cut, value)
    return result
