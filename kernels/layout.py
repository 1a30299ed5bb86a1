"""Where a kernel finds what: columns of the tables and slots of the controller's block.

The twin of csrc/tables.h and csrc/control_law.h, which name the fields; `tests/test_kernels.py`
holds the numbers to them.
"""

from __future__ import annotations

import triton.language as tl

# csrc/tables.h, TensorRow: one row of the address table, int64.
COLUMNS = tl.constexpr(13)
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
STATE0 = tl.constexpr(2)
STATE1 = tl.constexpr(3)
STATE2 = tl.constexpr(4)
STEP = tl.constexpr(5)
MU_PRODUCT = tl.constexpr(6)
NUMEL = tl.constexpr(7)
GROUP = tl.constexpr(8)
INDEX = tl.constexpr(9)
OFFSET = tl.constexpr(10)
LOGICAL_NUMEL = tl.constexpr(11)
MAXIMIZE = tl.constexpr(12)

# csrc/control_law.h, State: the block, float64.
BLOCK_STEP = tl.constexpr(1)
BLOCK_SEED_LOW = tl.constexpr(2)
BLOCK_SEED_HIGH = tl.constexpr(3)
BLOCK_ACTIVE = tl.constexpr(46)
BLOCK_NOISE = tl.constexpr(11)

# csrc/control_law.h, Group and EffectiveGroup: float64.
GROUP_COLUMNS = tl.constexpr(5)
GROUP_HYPER0 = tl.constexpr(2)
GROUP_HYPER1 = tl.constexpr(3)
GROUP_WEIGHT_DECAY = tl.constexpr(4)
EFFECTIVE_COLUMNS = tl.constexpr(2)
EFFECTIVE_LR = tl.constexpr(0)
EFFECTIVE_MOMENTUM = tl.constexpr(1)

TRITON_DTYPES = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}
"""Element types a kernel is compiled for, by torch's name"""
