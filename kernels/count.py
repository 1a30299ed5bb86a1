"""One more step of every tensor, where the controller's own launch does not reach.

The controller counts the steps of the tensors on its device. Those on another device are counted
here, before their sweep: inside it, other programs of the same launch are reading the counts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.chunks import on_device
from adaptiverl.kernels.layout import (
    COLUMNS,
    EFFECTIVE_COLUMNS,
    EFFECTIVE_MOMENTUM,
    GROUP,
    MU_PRODUCT,
    STATE_ACTIVE,
    STEP,
)
from torch import Tensor

BLOCK = 128
WARPS = 4
POINTERS = ("rows", "state", "effective")


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=POINTERS)
def count_steps_kernel(rows, count, state, effective, BLOCK: tl.constexpr):
    """A row of the address table per lane; `count_steps` gives the arguments."""
    if tl.load(state + STATE_ACTIVE) == 0:
        return
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < count
    table = rows + lanes.to(tl.int64) * COLUMNS
    step = tl.load(table + STEP, inside, 0).to(tl.pointer_type(tl.float32))
    counted = tl.load(step, inside, 0.0)
    tl.store(step, counted + 1.0, inside)
    address = tl.load(table + MU_PRODUCT, inside, 0)
    kept = inside & (address != 0)
    product = address.to(tl.pointer_type(tl.float64))
    group = tl.load(table + GROUP, inside, 0)
    momentum = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_MOMENTUM, inside, 1.0)
    # It starts anew with the count, which who resets a parameter sets to 0.
    before = tl.where(counted == 0, 1.0, tl.load(product, kept, 1.0))
    tl.store(product, before * momentum, kept)


def count_steps(rows: Tensor, state: Tensor, effective: Tensor) -> None:
    """Advance every row's `step` and, where it has one, `mu_product`; nothing if it is skipped.

    Args:
        rows: The address table, int64 [tensors, 13].
        state: The controller's state, float64.
        effective: float64 [groups, 2]: lr and momentum of this step.
    """
    count = len(rows)
    if count == 0:
        return
    with on_device(rows.device):
        count_steps_kernel[(triton.cdiv(count, BLOCK),)](
            rows, count, state, effective, BLOCK=BLOCK, num_warps=WARPS
        )
