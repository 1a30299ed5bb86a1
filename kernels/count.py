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
    GROUP_COLUMNS,
    GROUP_MOMENTUM,
    MU_PRODUCT,
    PRODUCT_LEFT_PRODUCT,
    PRODUCT_LEFT_STEP,
    PRODUCT_PRODUCT,
    STATE_ACTIVE,
    STEP,
)
from torch import Tensor

BLOCK = 128
WARPS = 4
POINTERS = ("rows", "state", "groups", "effective")


@triton.jit
def product_of(address, kept, steps, momentum):
    """The product of the momenta of so many steps; the twin of csrc/tables.h's."""
    product = tl.load(address + PRODUCT_PRODUCT, kept, 1.0)
    left = tl.load(address + PRODUCT_LEFT_PRODUCT, kept, 1.0)
    edited = (steps != tl.load(address + PRODUCT_LEFT_STEP, kept, 0.0)) & (product == left)
    # There is no power of float64 here; the sum in the exponent rounds a little more.
    power = tl.exp(steps * tl.log(momentum))
    return tl.where(steps == 0, 1.0, tl.where(edited, power, product))


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=POINTERS)
def count_steps_kernel(rows, count, state, groups, effective, BLOCK: tl.constexpr):
    """A row of the address table per lane; `count_steps` gives the arguments."""
    if tl.load(state + STATE_ACTIVE) == 0:
        return
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < count
    table = rows + lanes.to(tl.int64) * COLUMNS
    step = tl.load(table + STEP, inside, 0).to(tl.pointer_type(tl.float32))
    counted = tl.load(step, inside, 0.0)
    stepped = counted + 1.0
    tl.store(step, stepped, inside)
    address = tl.load(table + MU_PRODUCT, inside, 0)
    kept = inside & (address != 0)
    product = address.to(tl.pointer_type(tl.float64))
    group = tl.load(table + GROUP, inside, 0)
    given = tl.load(groups + group * GROUP_COLUMNS + GROUP_MOMENTUM, inside, 1.0)
    momentum = tl.load(effective + group * EFFECTIVE_COLUMNS + EFFECTIVE_MOMENTUM, inside, 1.0)
    after = product_of(product, kept, counted.to(tl.float64), given) * momentum
    tl.store(product + PRODUCT_PRODUCT, after, kept)
    tl.store(product + PRODUCT_LEFT_PRODUCT, after, kept)
    tl.store(product + PRODUCT_LEFT_STEP, stepped.to(tl.float64), kept)


def count_steps(rows: Tensor, state: Tensor, groups: Tensor, effective: Tensor) -> None:
    """Advance every row's `step` and, where it has one, `mu_product`; nothing if it is skipped.

    Args:
        rows: The address table, int64 [tensors, 14].
        state: The controller's state, float64.
        groups: float64 [groups, 5]: their numbers as the user set them.
        effective: float64 [groups, 2]: lr and momentum of this step.
    """
    count = len(rows)
    if count == 0:
        return
    with on_device(rows.device):
        count_steps_kernel[(triton.cdiv(count, BLOCK),)](
            rows, count, state, groups, effective, BLOCK=BLOCK, num_warps=WARPS
        )
