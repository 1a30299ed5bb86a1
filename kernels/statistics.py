"""Σ g² or Σ p² of every tensor in one launch: what the noise's RMS and the clip's norm need."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from adaptiverl.kernels.chunks import CHUNK, on_device
from adaptiverl.kernels.codecs import CODECS
from adaptiverl.kernels.layout import (
    COLUMNS,
    GRAD,
    NUMEL,
    PARAM,
    STATE_ACTIVE,
    STATE_NOISE,
)
from torch import Tensor

BLOCK = 2048
WARPS = 4
POINTERS = ("rows", "chunks", "state", "squares", "partials", "finished")
FINISH = tl.constexpr(512)
"""Partial sums the last program of a tensor adds at a time"""


@triton.jit
def is_last_of_tensor(finished, row, count):
    """Whether every other chunk of this tensor is finished; their partial sums can be read then.

    An integer ticket: which program comes last differs between runs, what it adds does not.
    """
    # The partial sums were stored by threads other than the one that draws the ticket.
    tl.debug_barrier()
    ticket = tl.atomic_add(finished + row, 1, sem="acq_rel", scope="gpu")
    return ticket == count - 1


@triton.jit
def add_partials(partials, first, count, COLUMN: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of a tensor's partial sums in float64, always in the same order."""
    lanes = tl.arange(0, FINISH)
    total = tl.zeros([FINISH], tl.float64)
    for start in range(0, count, FINISH):
        chunk = first + start + lanes
        # Past the first-level cache, which may hold lines from before the others wrote.
        part = tl.load(
            partials + chunk * WIDTH + COLUMN, start + lanes < count, 0.0, cache_modifier=".cg"
        )
        total += part.to(tl.float64)
    return tl.sum(total)


@triton.jit
def _sum_blocks(begin, end, length, grad, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(begin, end):
        offset = i * BLOCK
        here = grad + offset
        if WIDE:
            # The hint sticks to the operation: it must not be one that the other path shares.
            here = tl.multiple_of(here, 16)
            g = tl.load(here + lanes).to(tl.float32)
        else:
            g = tl.load(here + lanes, offset + lanes < length, 0.0).to(tl.float32)
        total += g * g
    return tl.sum(total)


@triton.jit(do_not_specialize_on_alignment=POINTERS)
def sum_squares_kernel(
    rows,
    chunks,
    state,
    squares,
    partials,
    finished,
    GRAD_CODEC: tl.constexpr,
    ALWAYS: tl.constexpr,
    OF_PARAMETERS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor; `sum_squares` gives the arguments."""
    if tl.load(state + STATE_ACTIVE) == 0:
        return
    if not ALWAYS:
        if tl.load(state + STATE_NOISE) == 0:
            return

    program = tl.program_id(0).to(tl.int64)
    row = tl.load(chunks + 2 * program).to(tl.int64)
    number = tl.load(chunks + 2 * program + 1).to(tl.int64)
    table = rows + row * COLUMNS
    numel = tl.load(table + NUMEL)
    address = tl.load(table + (PARAM if OF_PARAMETERS else GRAD))
    start = number * CHUNK
    length = tl.minimum(numel - start, CHUNK).to(tl.int32)
    grad = address.to(tl.pointer_type(GRAD_CODEC)) + start
    full = 0
    if (address & 15) == 0:
        full = length // BLOCK
    total = _sum_blocks(0, full, length, grad, True, BLOCK)
    total += _sum_blocks(full, tl.cdiv(length, BLOCK), length, grad, False, BLOCK)
    tl.store(partials + program, total)

    count = tl.maximum(tl.cdiv(numel, CHUNK), 1)
    if is_last_of_tensor(finished, row, count):
        tl.store(squares + row, add_partials(partials, program - number, count, 0, 1))
        tl.store(finished + row, 0)


def sum_squares(
    rows: Tensor,
    chunks: Tensor,
    state: Tensor,
    squares: Tensor,
    partials: Tensor,
    finished: Tensor,
    *,
    always: bool,
    grad_dtype: torch.dtype,
    of_parameters: bool = False,
) -> None:
    """Σ g² of each raw gradient, or Σ p², in one launch; the twin of `reference.sum_squares`.

    Ends at once on the device, and leaves `squares` alone, where the step is skipped, or where no
    noise is drawn and nobody else wants the sums.

    Args:
        rows: The address table, int64 [tensors, 14].
        chunks: `chunk_table` of its sizes, int32 [chunks, 2].
        state: The controller's state, float64.
        squares: float64 [tensors]; overwritten.
        partials: float32, at least one per chunk, from `partial_sums`.
        finished: int32 [tensors], likewise.
        always: Somebody wants the sums even without noise (clipping).
        grad_dtype: The gradients' dtype; with `of_parameters` the parameters'.
        of_parameters: Σ p², what noise on the parameter needs.
    """
    if len(chunks) == 0:
        return
    with on_device(rows.device):
        sum_squares_kernel[(len(chunks),)](
            rows,
            chunks,
            state,
            squares,
            partials,
            finished,
            GRAD_CODEC=CODECS[grad_dtype],
            ALWAYS=always,
            OF_PARAMETERS=of_parameters,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
