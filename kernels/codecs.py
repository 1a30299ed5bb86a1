"""How a kernel reads and writes what is stored: one codec for each way, a constexpr of a kernel.

A codec is its element type: what is read becomes float32, what is written is rounded once, to
nearest. A way that needs more than that (a scale beside a block of 8-bit numbers) is one more case
in these functions; the kernels that call them stay as they are.
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
def store(pointers, value, inside, WIDE: tl.constexpr):
    """Elements rounded once, to what they are kept in."""
    if WIDE:
        tl.store(pointers, value.to(pointers.dtype.element_ty))
    else:
        tl.store(pointers, value.to(pointers.dtype.element_ty), inside)
