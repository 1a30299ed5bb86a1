"""The parameter step in plain torch, for any device and dtype: the fused sweeps' readable twin.

Every function works on `entries`, records like `adaptiverl.step.entries.ParameterEntry`, and
reads the knobs from 0-d tensors, so nothing here waits for a device. Statement order is that of
`csrc/adamw_step.h` and `adamw_step.py`.

All numbers that are float64 lie together: beside the tensors, or on the CPU where the tensors'
device has no float64 (`adaptiverl.devices`). There they are worked out, too, and only what is
rounded goes to the tensors; sums over a tensor come back from there in float32, and are waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

NESTEROV, DECOUPLED = 1, 2
"""SGD's options in its row of the group table"""


class ParameterEntry(Protocol):
    """One parameter and what belongs to it (`adaptiverl.step.entries.ParameterEntry`)."""

    param: Tensor
    grad: Tensor
    slots: tuple[Tensor | None, ...]
    step: Tensor
    mu_product: Tensor | None
    group: int
    index: int
    offset: int
    logical_numel: int
    maximize: bool


class Knobs(Protocol):
    """What the controller decided, as 0-d float64 tensors."""

    step: Tensor
    seed_low: Tensor
    seed_high: Tensor
    active: Tensor
    noise: Tensor


# Noise (decisions.md 17)


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox 4x32 with ten rounds (Salmon et al., 2011).

    Args:
        counter: Four int64 tensors that broadcast, each holding 32 unsigned bits.
        key: Two such tensors.

    Returns:
        Four int64 tensors of 32 unsigned bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps modulo 2^64; its upper half is right once the sign is masked off.
        product0, product1 = c0 * ROUND_MULTIPLIERS[0], c2 * ROUND_MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK, (product1 >> 32) & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK, high0 ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def box_muller(
    radius_bits: Tensor, angle_bits: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Two standard normals from two words of 32 bits: u in (0, 1], θ in [−π, π)."""
    u = ((radius_bits >> 8) + 1).to(dtype) * 2.0**-24
    signed = torch.where(angle_bits >= 2**31, angle_bits - 2**32, angle_bits)
    theta = (signed >> 8).to(dtype) * (math.pi * 2.0**-23)
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * torch.cos(theta), radius * torch.sin(theta)


def normals(
    key: Sequence[Tensor], index: int, step: Tensor, offset: int, numel: int, dtype: torch.dtype
) -> Tensor:
    """ξ for the elements offset … offset + numel − 1 of one parameter, shape [numel].

    Args:
        key: The seed's lower and upper 32 bits, 0-d int64 tensors.
        index: The parameter's place in the optimizer.
        step: The optimizer's step count, 0-d int64.
        offset: The first element's place in the whole logical tensor, in C order.
        numel: How many elements.
        dtype: float32 or float64, in which the normals are computed.
    """
    first, last = offset >> 2, (offset + numel + 3) >> 2
    quads = torch.arange(first, last, dtype=torch.int64, device=step.device)
    place = torch.full_like(step, index)
    words = philox4x32((quads & MASK, quads >> 32, place, step & MASK), key)
    pairs = box_muller(words[0], words[1], dtype) + box_muller(words[2], words[3], dtype)
    start = offset - 4 * first
    return torch.stack(pairs, dim=1).flatten()[start : start + numel]


# Statistics


def sum_squares(
    entries: Sequence[ParameterEntry], out: Tensor, of_parameters: bool = False
) -> None:
    """Σ g² of each raw gradient, or Σ p² of each parameter, summed in float64.

    Args:
        entries: The tensors.
        out: float64, shape [len(entries)]; overwritten.
        of_parameters: Σ p².
    """
    summed = [_real(entry.param if of_parameters else entry.grad) for entry in entries]
    sums = torch.stack([x.to(_sum_dtype(x, out)).square().sum() for x in summed])
    out.copy_(sums.to(out.device))


def gradient_scale(
    squares: Sequence[Tensor], max_grad_norm: float | None, grad_scale: Tensor | None
) -> Tensor | None:
    """The one factor on every gradient: what clipping leaves (decisions.md 18) / the loss scale.

    Args:
        squares: Σ g² per tensor, float64, a tensor of sums per device; at least one.
        max_grad_norm: The global norm to clip to, as torch.nn.utils.clip_grad_norm_; or None.
        grad_scale: What a gradient scaler multiplied the loss by; or None.

    Returns:
        0-d float64 on the device of the first of `squares`; None where there is nothing to do.
    """
    device = squares[0].device
    ahead = device.type != "cpu"  # the host would read what has not arrived yet
    inverse = None
    if grad_scale is not None:
        inverse = 1 / grad_scale.to(device, non_blocking=ahead).to(torch.float64).reshape(())
    if max_grad_norm is None:
        return inverse
    norm = torch.stack([s.sum().to(device, non_blocking=ahead) for s in squares]).sum().sqrt()
    if inverse is None:
        return (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    return inverse * (max_grad_norm / (norm * inverse + 1e-6)).clamp(max=1.0)


# How well the last update still points downhill (decisions.md 22)

RUN = 4096
"""Numbers that are added in one go"""


def sum_in_order(values: Tensor) -> Tensor:
    """Σ, 0-d, added in an order that depends on how many there are and nothing else.

    One sum over everything is cut up among the CPU's threads; a run of numbers never is.
    """
    values = values.flatten()
    while values.numel() > RUN:
        runs = torch.nn.functional.pad(values, (0, -values.numel() % RUN)).view(-1, RUN)
        values = runs.sum(dim=1)
    return values.sum()


def _sum_alignment(g: Tensor, u: Tensor, sums: Tensor, active: Tensor | None) -> None:
    """Σ g·u, Σ g² and Σ u² of one tensor into `sums`, float64 [3]."""
    dtype = _sum_dtype(g, sums)
    g, u = g.to(dtype), u.to(dtype)
    found = torch.stack([sum_in_order(x) for x in (g * u, g * g, u * u)])
    _write(sums, found.to(sums.device), active)


def _sum_dtype(tensor: Tensor, out: Tensor) -> torch.dtype:
    """What to sum a tensor in: a device whose numbers lie elsewhere has no float64."""
    return torch.float64 if tensor.device == out.device else torch.float32


# The sweep


def count_step(entry: ParameterEntry, active: Tensor | None) -> None:
    """One more step of this parameter."""
    if active is None:
        entry.step += 1
    else:
        entry.step += active


def count_momentum(entry: ParameterEntry, momentum: Tensor, active: Tensor | None) -> None:
    """One more factor of the product of its momenta (decisions.md 16); before `count_step`.

    It starts anew with the count, which who resets a parameter sets to 0.
    """
    assert entry.mu_product is not None
    product = torch.where(entry.step == 0, momentum, entry.mu_product * momentum)
    _write(entry.mu_product, product, active)


def adamw_step(
    entries: Sequence[ParameterEntry],
    knobs: Knobs,
    groups: Tensor,
    effective: Tensor,
    squares: Tensor | None,
    gradient_scale: Tensor | None,
    skippable: bool,
    noise_on_parameter: bool = False,
    sums: Tensor | None = None,
) -> None:
    """One AdamW step with noise for each tensor, in place (decisions.md 15 to 19).

    Args:
        entries: The tensors, all on one device.
        knobs: The controller's scalars.
        groups: float64 [groups, 5]: lr, β₁, β₂, eps, weight decay as the user set them.
        effective: float64 [groups, 2]: lr and momentum of this step.
        squares: Σ g² per tensor, or Σ p² where the noise goes to the parameter; ``None`` where no
            noise can be drawn.
        gradient_scale: 0-d factor on every gradient (clipping over loss scale); ``None`` is 1.
        skippable: A gradient scaler is at work, so that `knobs.active` may be 0: then every result
            is selected rather than written, and a skipped step changes nothing.
        noise_on_parameter: Add the noise to the parameter after its update (specification §2).
        sums: float64 [tensors, 3], overwritten with Σ g·u, Σ g², Σ u² (g without noise, u from
            before the update) unless the step is skipped; ``None`` where nobody wants them.
    """
    for i, entry in enumerate(entries):
        square = None if squares is None else squares[i]
        _adamw_tensor(
            entry,
            knobs,
            groups[entry.group],
            effective[entry.group],
            square,
            gradient_scale,
            skippable,
            noise_on_parameter,
            None if sums is None else sums[i],
        )


def _adamw_tensor(
    entry: ParameterEntry,
    knobs: Knobs,
    group: Tensor,
    effective: Tensor,
    square: Tensor | None,
    gradient_scale: Tensor | None,
    skippable: bool,
    noise_on_parameter: bool,
    sums: Tensor | None,
) -> None:
    lr, momentum = effective.unbind()
    _, _, beta2, eps, weight_decay = group.unbind()
    active = knobs.active if skippable else None
    count_momentum(entry, momentum, active)
    count_step(entry, active)

    param = _real(entry.param)
    exp_avg, exp_avg_sq, max_exp_avg_sq = (s if s is None else _real(s) for s in entry.slots)
    assert exp_avg is not None
    assert exp_avg_sq is not None
    assert entry.mu_product is not None
    dtype = torch.promote_types(param.dtype, torch.float32)
    step_size, bias2_sqrt, decay, one_minus_momentum, one_minus_beta2, beta2, eps = _beside(
        param,
        dtype,
        lr / (1 - entry.mu_product),
        (1 - beta2 ** entry.step.to(beta2.dtype)).sqrt(),
        1 - lr * weight_decay,
        1 - momentum,
        1 - beta2,
        beta2,
        eps,
    )

    g = _scaled(_real(entry.grad).to(dtype), gradient_scale)
    if entry.maximize:
        g = -g
    m, v = exp_avg.to(dtype), exp_avg_sq.to(dtype)
    if sums is not None:
        _sum_alignment(g, m / (v.sqrt() + eps), sums, active)
    if square is not None and not noise_on_parameter:
        g = g + _noise(entry, g, knobs, square, gradient_scale)
    m = m + one_minus_momentum * (g - m)
    v = v * beta2 + one_minus_beta2 * (g * g)
    v_hat = v
    if max_exp_avg_sq is not None:
        v_hat = torch.maximum(max_exp_avg_sq.to(dtype), v)
        _write(max_exp_avg_sq, v_hat, active)
    denominator = v_hat.sqrt() / bias2_sqrt + eps
    p = param.to(dtype) * decay - step_size * (m / denominator)
    if square is not None and noise_on_parameter:
        p = p + _noise(entry, p, knobs, square, lr)
    _write(exp_avg, m, active)
    _write(exp_avg_sq, v, active)
    _write(param, p, active)


def sgd_step(
    entries: Sequence[ParameterEntry],
    knobs: Knobs,
    groups: Tensor,
    effective: Tensor,
    squares: Tensor | None,
    gradient_scale: Tensor | None,
    skippable: bool,
    noise_on_parameter: bool = False,
    sums: Tensor | None = None,
) -> None:
    """One SGD step with noise for each tensor, in place; arguments as in `adamw_step`.

    A row of `groups` is lr, momentum and dampening as the user set them, options (the sum of
    `NESTEROV` and `DECOUPLED`), weight decay. The first gradient goes undampened into a buffer of
    zeros: it is the buffer then, as in torch.optim.SGD. In `sums`, u is the buffer from before the
    step, and g has the coupled weight decay in it.
    """
    for i, entry in enumerate(entries):
        square = None if squares is None else squares[i]
        _sgd_tensor(
            entry,
            knobs,
            groups[entry.group],
            effective[entry.group],
            square,
            gradient_scale,
            skippable,
            noise_on_parameter,
            None if sums is None else sums[i],
        )


def _sgd_tensor(
    entry: ParameterEntry,
    knobs: Knobs,
    group: Tensor,
    effective: Tensor,
    square: Tensor | None,
    gradient_scale: Tensor | None,
    skippable: bool,
    noise_on_parameter: bool,
    sums: Tensor | None,
) -> None:
    lr, momentum = effective.unbind()
    _, _, dampening, options, weight_decay = group.unbind()
    active = knobs.active if skippable else None
    count_step(entry, active)

    param = _real(entry.param)
    dtype = torch.promote_types(param.dtype, torch.float32)
    decoupled = options >= DECOUPLED
    nesterov = options - DECOUPLED * decoupled == NESTEROV
    coupled = torch.logical_and(~decoupled, weight_decay != 0)
    nesterov, coupled = _beside(param, torch.bool, nesterov, coupled)
    first = entry.step.to(dampening.dtype) <= 1
    step_size, momentum, one_minus_dampening, decay, weight_decay = _beside(
        param,
        dtype,
        lr,
        momentum,
        torch.where(first, 1, 1 - dampening),
        torch.where(decoupled, 1 - lr * weight_decay, 1),
        weight_decay,
    )

    p, g = param.to(dtype), _scaled(_real(entry.grad).to(dtype), gradient_scale)
    if entry.maximize:
        g = -g
    g = torch.where(coupled, g + weight_decay * p, g)
    (momentum_buffer,) = entry.slots
    buffer = None if momentum_buffer is None else _real(momentum_buffer)
    if sums is not None:
        u = torch.zeros_like(g) if buffer is None else buffer.to(dtype)
        _sum_alignment(g, u, sums, active)
    if square is not None and not noise_on_parameter:
        g = g + _noise(entry, g, knobs, square, gradient_scale)
    d = g
    if buffer is not None:
        b = buffer.to(dtype) * momentum + one_minus_dampening * g
        d = torch.where(nesterov, g + momentum * b, b)
        _write(buffer, b, active)
    p = p * decay - step_size * d
    if square is not None and noise_on_parameter:
        p = p + _noise(entry, p, knobs, square, lr)
    _write(param, p, active)


def _noise(
    entry: ParameterEntry, like: Tensor, knobs: Knobs, square: Tensor, scale: Tensor | None
) -> Tensor:
    """σ·RMS·scale·ξ, shaped as `like`; RMS from the logical tensor's sum of squares, `square`."""
    rms = (square / entry.logical_numel).sqrt()
    (noise_scale,) = _beside(
        like, like.dtype, knobs.noise * (rms if scale is None else rms * scale)
    )
    *key, step = _beside(like, torch.int64, knobs.seed_low, knobs.seed_high, knobs.step)
    flat = normals(key, entry.index, step, entry.offset, like.numel(), like.dtype)
    return noise_scale * flat.view(like.shape)


def _scaled(gradient: Tensor, scale: Tensor | None) -> Tensor:
    """A gradient times the factor that all have in common."""
    if scale is None:
        return gradient
    return gradient * _beside(gradient, gradient.dtype, scale)[0]


def _beside(tensor: Tensor, dtype: torch.dtype, *numbers: Tensor) -> Sequence[Tensor]:
    """0-d numbers as `dtype` on a tensor's device, rounded before they go there, in one copy."""
    rounded = [number.to(dtype) for number in numbers]
    if rounded[0].device == tensor.device:
        return rounded
    return torch.stack(rounded).to(tensor.device).unbind()


def _write(target: Tensor, value: Tensor, active: Tensor | None) -> None:
    """In place; a skipped step is a select, because 0·NaN is NaN."""
    if active is not None:
        value = torch.where((active != 0).to(target.device), value, target.to(value.dtype))
    target.copy_(value)


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as torch.optim.AdamW treats it."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
