"""Lion: what it does with one element. Twins: csrc/lion.cpp and `elements.Lion`."""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.decay import decay_share
from adaptiverl.kernels.layout import (
    EFFECTIVE_LR,
    EFFECTIVE_MOMENTUM,
    GROUP_HYPER0,
)


@triton.jit
def scalars(row, group, effective, controller):
    """What all elements of a tensor share: computed in float64, each cast once."""
    lr = tl.load(effective + EFFECTIVE_LR)
    momentum = tl.load(effective + EFFECTIVE_MOMENTUM)
    beta2 = tl.load(group + GROUP_HYPER0)
    decay = (1.0 - decay_share(group, effective, controller)).to(tl.float32)
    one_minus_momentum = (1.0 - momentum).to(tl.float32)
    one_minus_beta2 = (1.0 - beta2).to(tl.float32)
    momentum = momentum.to(tl.float32)
    return (
        momentum,
        one_minus_momentum,
        beta2.to(tl.float32),
        one_minus_beta2,
        decay,
        lr.to(tl.float32),
    )


@triton.jit
def gradient(scalars, g, p):
    """The gradient that enters the state, but for the noise."""
    return g


@triton.jit
def direction(scalars, g, exp_avg, state1, state2):
    """The direction of the update before this one, but for its sign."""
    return exp_avg


@triton.jit
def state(scalars, g, exp_avg, state1, state2):
    """The slots after the step, in their order; the first half of the twins' `update`."""
    _, _, beta2, one_minus_beta2, _, _ = scalars
    return (beta2 * exp_avg + one_minus_beta2 * g,)


@triton.jit
def parameter(scalars, g, p, exp_avg, state1, state2, new):
    """The parameter after the step, `new` being the slots after it; the second half."""
    momentum, one_minus_momentum, _, _, decay, lr = scalars
    c = momentum * exp_avg + one_minus_momentum * g
    # A NaN is its own sign: the parameter shows it.
    sign = tl.where(c > 0, 1.0, tl.where(c < 0, -1.0, c))
    return p * decay - lr * sign
