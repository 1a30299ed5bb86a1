"""Blocks of 8-bit codes in Triton: the twin of `blocks.decode` and `blocks.encode`.

The elements of a round are whole blocks, and on the wide path each block lies in the threads of one
warp: what its elements have in common is found without shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels import blocks
from adaptiverl.kernels.philox import INTERPRETED, reciprocal

BLOCK = tl.constexpr(blocks.BLOCK)
ALIGNMENT = tl.constexpr(blocks.ALIGNMENT)
SMALLEST, LARGEST = tl.constexpr(blocks.SMALLEST), tl.constexpr(blocks.LARGEST)
ONE, INFINITY = tl.constexpr(blocks.ONE), tl.constexpr(blocks.INFINITY)
KEPT, HALF = tl.constexpr(blocks.KEPT), tl.constexpr(blocks.HALF)
LIMIT, LIMIT_UNSIGNED = (tl.constexpr(kind.limit) for kind in (blocks.SIGNED, blocks.UNSIGNED))
DROPPED, DROPPED_UNSIGNED = (
    tl.constexpr(blocks.CODE_BITS - kind.fraction) for kind in (blocks.SIGNED, blocks.UNSIGNED)
)
SHARE, SHARE_UNSIGNED = (tl.constexpr(1 / kind.top) for kind in (blocks.SIGNED, blocks.UNSIGNED))
TOP_SIGNED, TOP_UNSIGNED = (tl.constexpr(kind.top) for kind in (blocks.SIGNED, blocks.UNSIGNED))
OF_SCALE, OF_SCALE_UNSIGNED = (
    tl.constexpr(kind.factor) for kind in (blocks.SIGNED, blocks.UNSIGNED)
)


def _store_first(neighbours: int) -> str:
    """PTX: the first of so many halves to its address, where its flag is not 0."""
    outputs = neighbours // 4
    address, half, flag = (outputs + i * neighbours for i in range(3))
    zeros = " ".join(f"mov.b32 ${i}, 0;" for i in range(outputs))
    return f"""{{
        .reg .pred first;
        .reg .b16 half;
        setp.ne.b32 first, ${flag}, 0;
        cvt.u16.u32 half, ${half};
        @first st.global.b16 [${address}], half;
        {zeros}
    }}"""


def _registers(neighbours: int) -> str:
    """The operands of that: what it gives, addresses, halves, flags."""
    kinds = ["=r"] * (neighbours // 4) + ["l"] * neighbours + ["r"] * 2 * neighbours
    return ",".join(kinds)


STORE_FIRST_OF_4, STORE_FIRST_OF_8 = (tl.constexpr(_store_first(n)) for n in (4, 8))
STORE_REGISTERS_OF_4, STORE_REGISTERS_OF_8 = (tl.constexpr(_registers(n)) for n in (4, 8))


@triton.jit
def place_of_scales(numel):
    """At which byte behind the codes of so many elements the scales begin."""
    return (numel + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@triton.jit
def load_decoded(codes, scales, inside, CODEC: tl.constexpr, WIDE: tl.constexpr):
    """Elements as float32; on the masked path 0 outside. `scales`: where the first's scale lies."""
    COUNT: tl.constexpr = codes.shape[0]
    of_each = scales + tl.arange(0, COUNT) // BLOCK
    if WIDE:
        code = tl.load(codes).to(tl.int32) & 0xFF
        unit = tl.load(of_each).to(tl.float32)
    else:
        code = tl.load(codes, inside, 0).to(tl.int32) & 0xFF
        unit = tl.load(of_each, inside, 0.0).to(tl.float32)
    DROP: tl.constexpr = DROPPED if CODEC == tl.int8 else DROPPED_UNSIGNED
    MOST: tl.constexpr = LIMIT if CODEC == tl.int8 else LIMIT_UNSIGNED
    raw = ((code & MOST) << DROP) + ONE
    value = (raw.to(tl.float32, bitcast=True) - 1.0) * unit
    if CODEC == tl.int8:
        sign = (code & (MOST + 1)) << 24
        value = (value.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return value


@triton.jit
def store_encoded(
    codes,
    scales,
    value,
    inside,
    bits,
    FACTOR: tl.constexpr,
    CODEC: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Elements to their codes, and blocks' scales, by 16 random bits for each element."""
    COUNT: tl.constexpr = codes.shape[0]
    SIGNED: tl.constexpr = CODEC == tl.int8
    DROP: tl.constexpr = DROPPED if SIGNED else DROPPED_UNSIGNED
    MOST: tl.constexpr = LIMIT if SIGNED else LIMIT_UNSIGNED
    if not WIDE:
        value = tl.where(inside, value, 0.0)
    whole = value.to(tl.int32, bitcast=True)
    magnitude = whole & 0x7FFFFFFF
    apart = magnitude.reshape(COUNT // BLOCK, BLOCK)
    largest = tl.max(apart, axis=1, keep_dims=True)
    opens = (tl.arange(0, BLOCK) == 0)[None, :]
    OF: tl.constexpr = OF_SCALE if SIGNED else OF_SCALE_UNSIGNED
    chosen = ((bits * OF & KEPT) + HALF).to(tl.int32).reshape(COUNT // BLOCK, BLOCK)
    random_of_scale = tl.sum(tl.where(opens, chosen, 0), axis=1, keep_dims=True)
    unit = _unit(largest, random_of_scale, SIGNED)
    usable = unit > 0
    # Of the scale before it was rounded: so the largest has the largest code, whatever chance says.
    TOP: tl.constexpr = TOP_SIGNED if SIGNED else TOP_UNSIGNED
    divisor = tl.where(usable, largest.to(tl.float32, bitcast=True), 1.0)
    inverse = tl.where(usable, reciprocal(divisor) * TOP, 0.0)
    z = apart.to(tl.float32, bitcast=True) * inverse
    raw = (z + 1.0).to(tl.int32, bitcast=True) - ONE
    random = ((bits * FACTOR & KEPT) + HALF).to(tl.int32) << (DROP - 16)
    code = (raw + random.reshape(COUNT // BLOCK, BLOCK)) >> DROP
    if not SIGNED:
        # What is above 0 stays there: the update divides by its root.
        code = tl.where((code == 0) & (apart > 0), 1, code)
    code = tl.where(usable, code, 0).reshape(COUNT)
    if SIGNED:
        code |= (whole >> 24) & (MOST + 1)
    lanes = tl.arange(0, COUNT)
    of_each = scales + lanes // BLOCK
    opens_block = lanes % BLOCK == 0
    # The lower half is 0, or a NaN's.
    half = tl.broadcast_to(unit.to(tl.int32, bitcast=True) >> 16, COUNT // BLOCK, BLOCK)
    half = half.reshape(COUNT)
    if WIDE:
        tl.store(codes, code.to(CODEC))
        _store_of_blocks(of_each, half, opens_block, NEIGHBOURS)
    else:
        tl.store(codes, code.to(CODEC), inside)
        scale = half.to(tl.int16).to(tl.bfloat16, bitcast=True)
        tl.store(of_each, scale, opens_block & inside)


@triton.jit
def _store_of_blocks(pointers, halves, opens_block, NEIGHBOURS: tl.constexpr):
    # A thread holds NEIGHBOURS elements side by side, of which only the first can open a block. A
    # store of Triton's own would bring the values into the order of the addresses first, through
    # shared memory.
    if INTERPRETED:
        tl.store(pointers, halves.to(tl.int16).to(tl.bfloat16, bitcast=True), opens_block)
    else:
        tl.inline_asm_elementwise(
            STORE_FIRST_OF_8 if NEIGHBOURS == 8 else STORE_FIRST_OF_4,
            STORE_REGISTERS_OF_8 if NEIGHBOURS == 8 else STORE_REGISTERS_OF_4,
            [pointers.to(tl.int64), halves, opens_block.to(tl.int32)],
            dtype=tl.int8,
            is_pure=False,
            pack=NEIGHBOURS,
        )


@triton.jit
def _unit(largest, random, SIGNED: tl.constexpr):
    # A block's scale as bfloat16 holds it, from the bits of its largest magnitude.
    SHARE_OF: tl.constexpr = SHARE if SIGNED else SHARE_UNSIGNED
    unit = (largest.to(tl.float32, bitcast=True) * SHARE_OF).to(tl.int32, bitcast=True)
    unit = (unit + random) & -65536
    unit = unit.to(tl.float32, bitcast=True)
    infinite = (largest >= INFINITY) | (unit > LARGEST)
    return tl.where(infinite, float("nan"), tl.where(unit < SMALLEST, 0.0, unit))
