"""Where a kernel finds what: columns of the tables, slots of the controller's state.

Written by tests/layout_files.py from adaptiverl/layout.py, which explains it. Do not edit.
"""

from __future__ import annotations

import triton.language as tl

# TensorRow: A row of the address table: where one parameter's tensors lie, int64.
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

# State: The controller's whole state, packed in this order as float64, counters included.
BLOCK_COLUMNS = tl.constexpr(47)
BLOCK_VERSION = tl.constexpr(0)
BLOCK_STEP = tl.constexpr(1)
BLOCK_SEED_LOW = tl.constexpr(2)
BLOCK_SEED_HIGH = tl.constexpr(3)
BLOCK_LOG_LR = tl.constexpr(4)
BLOCK_LOGIT_MOMENTUM = tl.constexpr(5)
BLOCK_LOG_NOISE = tl.constexpr(6)
BLOCK_LOG_LR_START = tl.constexpr(7)
BLOCK_LOGIT_MOMENTUM_START = tl.constexpr(8)
BLOCK_LR = tl.constexpr(9)
BLOCK_MOMENTUM = tl.constexpr(10)
BLOCK_NOISE = tl.constexpr(11)
BLOCK_LOSS_COUNT = tl.constexpr(12)
BLOCK_LOSS_MEAN = tl.constexpr(13)
BLOCK_LOSS_TREND = tl.constexpr(14)
BLOCK_LOSS_SCALE = tl.constexpr(15)
BLOCK_LOSS_DIRECTION = tl.constexpr(16)
BLOCK_VARIANCE = tl.constexpr(17)
BLOCK_VARIANCE_SCALE = tl.constexpr(18)
BLOCK_PLATEAU = tl.constexpr(19)
BLOCK_REWARD_COUNT = tl.constexpr(20)
BLOCK_REWARD_MEAN = tl.constexpr(21)
BLOCK_REWARD_TREND = tl.constexpr(22)
BLOCK_REWARD_SCALE = tl.constexpr(23)
BLOCK_REWARD_DIRECTION = tl.constexpr(24)
BLOCK_LOSS = tl.constexpr(25)
BLOCK_REWARD = tl.constexpr(26)
BLOCK_OBSERVED_PENDING = tl.constexpr(27)
BLOCK_REWARDED_PENDING = tl.constexpr(28)
BLOCK_NONFINITE_PENDING = tl.constexpr(29)
BLOCK_NONFINITE = tl.constexpr(30)
BLOCK_UPDATES = tl.constexpr(31)
BLOCK_ALIGNED_GU = tl.constexpr(32)
BLOCK_ALIGNED_GG = tl.constexpr(33)
BLOCK_ALIGNED_UU = tl.constexpr(34)
BLOCK_ALIGNED_PENDING = tl.constexpr(35)
BLOCK_ALIGNMENT = tl.constexpr(36)
BLOCK_ALIGNMENT_SQUARE = tl.constexpr(37)
BLOCK_ALIGNMENT_WEIGHT = tl.constexpr(38)
BLOCK_ALIGNMENT_DIRECTION = tl.constexpr(39)
BLOCK_ALIGNMENT_MEAN = tl.constexpr(40)
BLOCK_OVERSHOOT = tl.constexpr(41)
BLOCK_LOG_LR_DOWNHILL = tl.constexpr(42)
BLOCK_LOG_LR_DOUBTED = tl.constexpr(43)
BLOCK_HELD = tl.constexpr(44)
BLOCK_ANNEAL = tl.constexpr(45)
BLOCK_ACTIVE = tl.constexpr(46)

# Group: A parameter group's numbers as the user set them; hyper0 and hyper1 are the algorithm's.
GROUP_COLUMNS = tl.constexpr(5)
GROUP_LR = tl.constexpr(0)
GROUP_MOMENTUM = tl.constexpr(1)
GROUP_HYPER0 = tl.constexpr(2)
GROUP_HYPER1 = tl.constexpr(3)
GROUP_WEIGHT_DECAY = tl.constexpr(4)

# EffectiveGroup: The same as this step uses them.
EFFECTIVE_COLUMNS = tl.constexpr(2)
EFFECTIVE_LR = tl.constexpr(0)
EFFECTIVE_MOMENTUM = tl.constexpr(1)

TRITON_DTYPES = {"float32": tl.float32, "bfloat16": tl.bfloat16, "float16": tl.float16}
"""Element types a kernel is compiled for, by torch's name"""
