"""The way back to where a search began: memory that is put back, or emptied, where the law says so.

A launch ends at once in every step but the one in which the controller's state asks for it, so that
no host has to know when that is. It moves bytes, and so any dtype; what is put back may lie in the
host's pinned memory, which a GPU reads by the same addresses. The twin of csrc/rewind.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from adaptiverl.kernels.chunks import CHUNK, chunk_table, on_device
from adaptiverl.kernels.layout import (
    REGION_BYTES,
    REGION_COLUMNS,
    REGION_SOURCE,
    REGION_TARGET,
    STATE_REWIND,
)
from torch import Tensor

WORD = 4
"""Bytes that are moved together where both addresses allow it"""
BLOCK = 1024
WARPS = 4
POINTERS = ("regions", "chunks", "state")


@triton.jit
def _move(target, source, first, last, BLOCK: tl.constexpr):
    # From `first` to `last`, in units of what the pointers point to; zeros where source is 0.
    kept = source.to(tl.int64) != 0
    for offset in range(first, last, BLOCK):
        lanes = offset + tl.arange(0, BLOCK)
        inside = lanes < last
        value = tl.load(source + lanes, inside & kept, 0)
        tl.store(target + lanes, value, inside)


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def rewind_kernel(
    regions, chunks, state, CHUNK: tl.constexpr, WORD: tl.constexpr, BLOCK: tl.constexpr
):
    """One chunk of one region; `rewind` gives the arguments."""
    if tl.load(state + STATE_REWIND) == 0:
        return
    program = tl.program_id(0).to(tl.int64)
    table = regions + tl.load(chunks + 2 * program).to(tl.int64) * REGION_COLUMNS
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK * WORD
    target = tl.load(table + REGION_TARGET)
    source = tl.load(table + REGION_SOURCE)
    length = tl.minimum(tl.load(table + REGION_BYTES) - start, CHUNK * WORD).to(tl.int32)
    words = 0
    if ((target | source) & (WORD - 1)) == 0:
        words = length // WORD
    begin = tl.where(source == 0, source, source + start)
    _move(
        (target + start).to(tl.pointer_type(tl.int32)),
        begin.to(tl.pointer_type(tl.int32)),
        0,
        words,
        BLOCK,
    )
    _move(
        (target + start).to(tl.pointer_type(tl.int8)),
        begin.to(tl.pointer_type(tl.int8)),
        words * WORD,
        length,
        BLOCK,
    )


def chunks_of(sizes: Sequence[int]) -> Tensor:
    """The chunks of regions of these sizes in bytes: `chunks.chunk_table` of their words."""
    return chunk_table([-(-size // WORD) for size in sizes])


def rewind(regions: Tensor, chunks: Tensor, state: Tensor) -> None:
    """Put every region back; nothing unless the controller's state says so.

    Args:
        regions: int64 [regions, 3], a `layout.Region` each.
        chunks: `chunks_of` their sizes, int32 [chunks, 2].
        state: The controller's state, float64.
    """
    if len(chunks) == 0:
        return
    with on_device(regions.device):
        rewind_kernel[(len(chunks),)](
            regions, chunks, state, CHUNK=CHUNK, WORD=WORD, BLOCK=BLOCK, num_warps=WARPS
        )
