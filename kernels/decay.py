"""What decoupled weight decay takes off a parameter (method.md#weight-decay).

Twins: csrc/decay.h and `elements.decay_share`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.layout import EFFECTIVE_LR, GROUP_LR, GROUP_WEIGHT_DECAY, STATE_ANNEAL


@triton.jit
def decay_share(group, effective, state):
    """Below 0 the weight decay is independent of the controller."""
    weight_decay = tl.load(group + GROUP_WEIGHT_DECAY)
    own = tl.load(group + GROUP_LR) * tl.load(state + STATE_ANNEAL) * -weight_decay
    return tl.where(weight_decay < 0, own, tl.load(effective + EFFECTIVE_LR) * weight_decay)
