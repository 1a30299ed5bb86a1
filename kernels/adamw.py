"""AdamW: what it does with one element. Twins: csrc/adamw.cpp and `elements.AdamW`."""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels.decay import decay_share
from adaptiverl.kernels.layout import (
    EFFECTIVE_LR,
    EFFECTIVE_MOMENTUM,
    GROUP_HYPER0,
    GROUP_HYPER1,
    MU_PRODUCT,
    STEP,
)
from adaptiverl.kernels.philox import reciprocal, sqrt

ROOT_SCALE = tl.constexpr(2.0**12)
"""What `_scaled_root` multiplies a root by"""


@triton.jit
def scalars(row, group, effective, controller):
    """What all elements of a tensor share: computed in float64, each cast once."""
    lr = tl.load(effective + EFFECTIVE_LR)
    momentum = tl.load(effective + EFFECTIVE_MOMENTUM)
    beta2 = tl.load(group + GROUP_HYPER0)
    eps = tl.load(group + GROUP_HYPER1).to(tl.float32)
    step = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32))).to(tl.float64)
    mu_product = tl.load(tl.load(row + MU_PRODUCT).to(tl.pointer_type(tl.float64)))
    bias2_sqrt = tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    step_size = (lr / (1.0 - mu_product)).to(tl.float32)
    # A product for the statement order's quotient, and the other end of `_scaled_root`.
    inverse_bias2_sqrt = (1.0 / (bias2_sqrt * ROOT_SCALE)).to(tl.float32)
    decay = (1.0 - decay_share(group, effective, controller)).to(tl.float32)
    one_minus_momentum = (1.0 - momentum).to(tl.float32)
    one_minus_beta2 = (1.0 - beta2).to(tl.float32)
    beta2 = beta2.to(tl.float32)
    return one_minus_momentum, beta2, one_minus_beta2, inverse_bias2_sqrt, eps, decay, step_size


@triton.jit
def gradient(scalars, g, p):
    """The gradient that enters the state, but for the noise."""
    return g


@triton.jit
def direction(scalars, g, exp_avg, exp_avg_sq, max_exp_avg_sq):
    """The direction of the update before this one, but for its bias corrections."""
    _, _, _, _, eps, _, _ = scalars
    return exp_avg * reciprocal(_scaled_root(exp_avg_sq) * (1.0 / ROOT_SCALE) + eps)


@triton.jit
def state(scalars, g, exp_avg, exp_avg_sq, max_exp_avg_sq):
    """The slots after the step, in their order; the first half of the twins' `update`."""
    one_minus_momentum, beta2, one_minus_beta2, _, _, _, _ = scalars
    m = exp_avg + one_minus_momentum * (g - exp_avg)
    v = exp_avg_sq * beta2 + one_minus_beta2 * (g * g)
    v_hat = v
    if max_exp_avg_sq is not None:
        v_hat = tl.maximum(max_exp_avg_sq, v, propagate_nan=tl.PropagateNan.ALL)
    return m, v, v_hat


@triton.jit
def parameter(scalars, g, p, exp_avg, exp_avg_sq, max_exp_avg_sq, new):
    """The parameter after the step, `new` being the slots after it; the second half."""
    _, _, _, inverse_bias2_sqrt, eps, decay, step_size = scalars
    m, _, v_hat = new
    denominator = _scaled_root(v_hat) * inverse_bias2_sqrt + eps
    return p * decay - step_size * (m * reciprocal(denominator))


@triton.jit
def _scaled_root(v):
    # 2^12 times the root of v. The fast root flushes subnormals to 0, where m/(√v + 0) would be
    # infinite: so v is lifted out of their range, which costs one product; taking it back is free,
    # in the scalar that the root meets next. The price: v overflows from 2^104 on instead of 2^128,
    # with float32's outcome for an infinite v, no update.
    return sqrt(v * (ROOT_SCALE * ROOT_SCALE))
