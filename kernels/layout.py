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
STATE_COLUMNS = tl.constexpr(47)
STATE_VERSION = tl.constexpr(0)
STATE_STEP = tl.constexpr(1)
STATE_SEED_LOW = tl.constexpr(2)
STATE_SEED_HIGH = tl.constexpr(3)
STATE_LOG_LR = tl.constexpr(4)
STATE_LOGIT_MOMENTUM = tl.constexpr(5)
STATE_LOG_NOISE = tl.constexpr(6)
STATE_LOG_LR_START = tl.constexpr(7)
STATE_LOGIT_MOMENTUM_START = tl.constexpr(8)
STATE_LR = tl.constexpr(9)
STATE_MOMENTUM = tl.constexpr(10)
STATE_NOISE = tl.constexpr(11)
STATE_LOSS_COUNT = tl.constexpr(12)
STATE_LOSS_MEAN = tl.constexpr(13)
STATE_LOSS_TREND = tl.constexpr(14)
STATE_LOSS_SCALE = tl.constexpr(15)
STATE_LOSS_DIRECTION = tl.constexpr(16)
STATE_VARIANCE = tl.constexpr(17)
STATE_VARIANCE_SCALE = tl.constexpr(18)
STATE_PLATEAU = tl.constexpr(19)
STATE_REWARD_COUNT = tl.constexpr(20)
STATE_REWARD_MEAN = tl.constexpr(21)
STATE_REWARD_TREND = tl.constexpr(22)
STATE_REWARD_SCALE = tl.constexpr(23)
STATE_REWARD_DIRECTION = tl.constexpr(24)
STATE_LOSS = tl.constexpr(25)
STATE_REWARD = tl.constexpr(26)
STATE_OBSERVED_PENDING = tl.constexpr(27)
STATE_REWARDED_PENDING = tl.constexpr(28)
STATE_NONFINITE_PENDING = tl.constexpr(29)
STATE_NONFINITE = tl.constexpr(30)
STATE_UPDATES = tl.constexpr(31)
STATE_ALIGNED_GU = tl.constexpr(32)
STATE_ALIGNED_GG = tl.constexpr(33)
STATE_ALIGNED_UU = tl.constexpr(34)
STATE_ALIGNED_PENDING = tl.constexpr(35)
STATE_ALIGNMENT = tl.constexpr(36)
STATE_ALIGNMENT_SQUARE = tl.constexpr(37)
STATE_ALIGNMENT_WEIGHT = tl.constexpr(38)
STATE_ALIGNMENT_DIRECTION = tl.constexpr(39)
STATE_ALIGNMENT_MEAN = tl.constexpr(40)
STATE_OVERSHOOT = tl.constexpr(41)
STATE_LOG_LR_DOWNHILL = tl.constexpr(42)
STATE_LOG_LR_DOUBTED = tl.constexpr(43)
STATE_HELD = tl.constexpr(44)
STATE_ANNEAL = tl.constexpr(45)
STATE_ACTIVE = tl.constexpr(46)

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
