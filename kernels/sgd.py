"""SGD: what it does with one element. Twins: csrc/sgd.cpp and `elements.SGD`."""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.decay import decay_share
from adaptiverl.kernels.layout import (
    EFFECTIVE_LR,
    EFFECTIVE_MOMENTUM,
    GROUP_HYPER0,
    GROUP_HYPER1,
    GROUP_WEIGHT_DECAY,
    STEP,
)

# What `hyper1` is a sum of; `hyper0` is the dampening.
NESTEROV = tl.constexpr(1)
DECOUPLED = tl.constexpr(2)


@triton.jit
def scalars(row, group, effective, controller):
    """What all elements of a tensor share: computed in float64, each cast once."""
    lr = tl.load(effective + EFFECTIVE_LR)
    momentum = tl.load(effective + EFFECTIVE_MOMENTUM).to(tl.float32)
    dampening = tl.load(group + GROUP_HYPER0)
    options = tl.load(group + GROUP_HYPER1).to(tl.int32)
    weight_decay = tl.load(group + GROUP_WEIGHT_DECAY)
    step = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32)))
    decoupled = (options & DECOUPLED) != 0
    nesterov = (options & NESTEROV) != 0
    # The first gradient goes undampened into a buffer of zeros: it is the buffer then, as in torch.
    one_minus_dampening = tl.where(step <= 1, 1.0, 1.0 - dampening).to(tl.float32)
    decay = 1.0 - decay_share(group, effective, controller)
    decay = tl.where(decoupled, decay, 1.0).to(tl.float32)
    weight_decay = tl.where(decoupled, 0.0, weight_decay).to(tl.float32)
    return weight_decay, momentum, one_minus_dampening, decay, lr.to(tl.float32), nesterov


@triton.jit
def gradient(scalars, g, p):
    """The gradient that enters the state, but for the noise: with the coupled weight decay."""
    weight_decay, _, _, _, _, _ = scalars
    return tl.where(weight_decay != 0, g + weight_decay * p, g)


@triton.jit
def direction(scalars, g, momentum_buffer, state1, state2):
    """The direction of the update before this one; 0 where none is kept."""
    u = momentum_buffer
    if momentum_buffer is None:
        u = tl.zeros_like(g)
    return u


@triton.jit
def state(scalars, g, momentum_buffer, state1, state2):
    """The slots after the step, in their order; the first half of the twins' `update`."""
    _, momentum, one_minus_dampening, _, _, _ = scalars
    b = g
    if momentum_buffer is not None:
        b = momentum_buffer * momentum + one_minus_dampening * g
    return (b,)


@triton.jit
def parameter(scalars, g, p, momentum_buffer, state1, state2, new):
    """The parameter after the step, `new` being the slots after it; the second half."""
    _, momentum, _, decay, lr, nesterov = scalars
    d = g
    if momentum_buffer is not None:
        d = tl.where(nesterov, g + momentum * new[0], new[0])
    return p * decay - lr * d
