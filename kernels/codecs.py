"""How a kernel reads and writes what is stored: one codec for each way, a constexpr of a kernel.

A codec is its element type: what is read becomes float32, what is written is rounded once, to
nearest, or by chance where there are random bits (method.md#storage). Slots may also be kept in
blocks of 8-bit codes, int8 or uint8, whose scales lie behind them (kernels/block_codes.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from adaptiverl.kernels.block_codes import BLOCK, load_decoded, place_of_scales, store_encoded
from adaptiverl.kernels.layout import NUMEL

CODECS = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
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
def stands_alone(whole):
    """0 and what is not finite, by float32's bits: a parameter that is so has no error term."""
    magnitude = whole & 0x7FFFFFFF
    return (magnitude == 0) | (magnitude >= 0x7F800000)


@triton.jit
def load_master(pointers, errors, inside, WIDE: tl.constexpr):
    """A parameter's elements as float32, of 24 bits where `errors` is not None: `error_term`."""
    values = load(pointers, inside, WIDE)
    if errors is not None:
        if WIDE:
            term = tl.load(errors)
        else:
            term = tl.load(errors, inside, 0)
        whole = values.to(tl.int32, bitcast=True)
        joined = (whole + (term.to(tl.int32) << 8)).to(tl.float32, bitcast=True)
        values = tl.where(stands_alone(whole), values, joined)
    return values


@triton.jit
def store_master(pointers, errors, value, inside, bits, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """The other way; arguments as in `store`, and `errors` as in `load_master`."""
    if errors is None:
        store(pointers, value, inside, bits, FACTOR, WIDE)
    else:
        whole = value.to(tl.uint32, bitcast=True)
        addend = ((whole >> 8) & 1) + 0x7F
        if bits is not None:
            addend = bits >> 8
        kept = whole + addend
        upper = (kept + 0x8000) & 0xFFFF0000
        upper = tl.where(value == value, upper, 0x7FC00000)
        term = tl.where(stands_alone(upper), 0, kept >> 8).to(tl.int8)
        param = (upper >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        if WIDE:
            tl.store(pointers, param)
            tl.store(errors, term)
        else:
            tl.store(pointers, param, inside)
            tl.store(errors, term, inside)


@triton.jit
def scales_of(table, COLUMN: tl.constexpr, CODEC: tl.constexpr, start):
    """Where the scale of the block that element `start` opens lies; None where there are none."""
    scales = None
    if CODEC == tl.int8 or CODEC == tl.uint8:
        begin = place_of_scales(tl.load(table + NUMEL)) + start // BLOCK * 2
        scales = (tl.load(table + COLUMN) + begin).to(tl.pointer_type(tl.bfloat16))
    return scales


@triton.jit
def load_slot(pointers, scales, block, inside, CODEC: tl.constexpr, WIDE: tl.constexpr):
    """A slot's elements as float32; `block` is the number of the first one's block."""
    if CODEC == tl.int8 or CODEC == tl.uint8:
        values = load_decoded(pointers, scales + block, inside, CODEC, WIDE)
    else:
        values = load(pointers, inside, WIDE)
    return values


@triton.jit
def store_slot(
    pointers,
    scales,
    block,
    value,
    inside,
    bits,
    FACTOR: tl.constexpr,
    CODEC: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A slot's elements as they are kept; `block` as in `load_slot`."""
    if CODEC == tl.int8 or CODEC == tl.uint8:
        store_encoded(
            pointers, scales + block, value, inside, bits, FACTOR, CODEC, NEIGHBOURS, WIDE
        )
    else:
        store(pointers, value, inside, bits, FACTOR, WIDE)


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
