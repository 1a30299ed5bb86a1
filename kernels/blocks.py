"""Blocks of 8-bit codes, and a scale for each block, in plain torch (method.md#blocks).

The twins are csrc/blocks.inc and kernels/block_codes.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Elements that share a scale, counted in C order from a tensor's first one here"""
ALIGNMENT = 16
"""Bytes that the place of the scales behind the codes is a multiple of"""
SMALLEST, LARGEST = 2.0**-120, 2.0**100
"""Scales below are 0; those above stand for a block with something that is not finite"""
CODE_BITS = 23
"""Of float32's fraction, from which a code is cut"""
ONE = 0x3F800000
"""1.0 as float32 has it"""
INFINITY = 0x7F800000
KEPT, HALF = 0xFFF0, 8
"""Of an element's 16 random bits those that round, and the middle of the rest: what is a code
already stays one, whatever the last places of a division are"""


class Map(NamedTuple):
    """μ-law companding in segments, as telephones have it: codes are cut out of 1 + z.

    Attributes:
        dtype: Of the codes; int8's upper bit is the sign, the others are the code.
        limit: The largest code, which every block has.
        fraction: Bits of a code that count within a segment; the others are the segment's number.
        top: What the largest code stands for: a block's largest number over its scale.
        factor: What an element's random bits are multiplied by before they round a scale; those of
            its code are the slot's own (`rounding.OF_SLOTS`).
    """

    dtype: torch.dtype
    limit: int
    fraction: int
    top: float
    factor: int

    @property
    def signed(self) -> bool:
        """Whether it is of numbers of either sign."""
        return self.dtype == torch.int8


SIGNED = Map(torch.int8, limit=127, fraction=5, top=14.75, factor=10745)
"""For averages of gradients: four segments of 32 steps"""
UNSIGNED = Map(torch.uint8, limit=255, fraction=4, top=63487.0, factor=26853)
"""For averages of squares: sixteen segments of 16 steps"""


def blocks_in(numel: int) -> int:
    """How many blocks so many elements make; the last may be cut."""
    return -(-numel // BLOCK)


def place_of_scales(numel: int) -> int:
    """At which byte the scales begin."""
    return -(-numel // ALIGNMENT) * ALIGNMENT


def buffer_size(numel: int) -> int:
    """Bytes of all codes and scales of a tensor."""
    return place_of_scales(numel) + 2 * blocks_in(numel)


def parts(buffer: Tensor, numel: int, kind: Map) -> tuple[Tensor, Tensor]:
    """The codes, [numel], and the scales, bfloat16 [blocks], in their memory.

    Args:
        buffer: uint8 [`buffer_size`].
        numel: Elements.
        kind: How they are coded.
    """
    codes = buffer[:numel].view(kind.dtype)
    return codes, buffer[place_of_scales(numel) :].view(torch.bfloat16)


def decode(codes: Tensor, scales: Tensor, kind: Map) -> Tensor:
    """The numbers, float32 [numel]; no step of this rounds.

    Args:
        codes: [numel].
        scales: bfloat16, one for each block.
        kind: How they are coded.
    """
    wide = codes.view(torch.uint8).to(torch.int32)
    raw = ((wide & kind.limit) << CODE_BITS - kind.fraction) + ONE
    values = (raw.view(torch.float32) - 1) * _of_each(scales.float(), len(codes))
    return torch.where(wide > kind.limit, -values, values)


def encode(
    values: Tensor, kind: Map, bits: Tensor | None = None, factor: int = 1
) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers.

    Args:
        values: float32 [numel].
        kind: How they are coded.
        bits: 16 random bits for each, int64, which round by chance; None rounds to nearest.
        factor: What those are multiplied by for the codes: the slot's own.
    """
    numel = len(values)
    raw = values.contiguous().view(torch.int32)
    magnitude = raw & 0x7FFFFFFF  # of which the largest is found without a float's exceptions
    padded = torch.nn.functional.pad(magnitude, (0, -numel % BLOCK))
    largest = padded.view(-1, BLOCK).amax(dim=1)
    scales = _scales(largest, kind, None if bits is None else bits[::BLOCK])
    usable = scales > 0
    # Of the scale before it was rounded: so the largest has the largest code, whatever chance says.
    inverse = torch.where(usable, kind.top / largest.view(torch.float32), 0.0)
    z = magnitude.view(torch.float32) * _of_each(inverse, numel)
    codes = _rounded_codes((z + 1).view(torch.int32) - ONE, kind, bits, factor)
    if kind.signed:
        codes = codes + torch.where(raw < 0, kind.limit + 1, 0)
    else:
        # What is above 0 stays there: the update divides by its root.
        codes = torch.maximum(codes, (magnitude > 0).to(codes.dtype))
    codes = (codes * _of_each(usable, numel)).to(torch.uint8)
    return codes.view(kind.dtype), scales.to(torch.bfloat16)


def _rounded_codes(raw: Tensor, kind: Map, bits: Tensor | None, factor: int) -> Tensor:
    """The codes of 1 + z, whose bits but for 1's these are."""
    dropped = CODE_BITS - kind.fraction
    if bits is None:
        return (raw + (1 << dropped - 1)) >> dropped
    return (raw + (_random(bits, factor) << dropped - 16)) >> dropped


def _scales(largest: Tensor, kind: Map, bits: Tensor | None) -> Tensor:
    """Blocks' scales as bfloat16 holds them, float32; NaN where something is not finite.

    Args:
        largest: The bits of each block's largest magnitude.
        kind: How they are coded.
        bits: The random bits of each block's first element; or None.
    """
    units = (largest.view(torch.float32) * (1 / kind.top)).view(torch.int32)
    added = (units >> 16 & 1) + 0x7FFF if bits is None else _random(bits, kind.factor)
    scales = (units + added >> 16 << 16).view(torch.float32)
    scales = torch.where(scales < SMALLEST, 0.0, scales)
    infinite = (largest >= INFINITY) | (scales > LARGEST)
    return scales.masked_fill(infinite, torch.nan)


def _random(bits: Tensor, factor: int) -> Tensor:
    """What is added below the place that is cut at, in 2^-16 of that place."""
    return ((bits * factor & KEPT) + HALF).to(torch.int32)


def _of_each(of_blocks: Tensor, numel: int) -> Tensor:
    """A number of each block for each of its elements."""
    return of_blocks.repeat_interleave(BLOCK)[:numel]
