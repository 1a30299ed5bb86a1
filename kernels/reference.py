"""The pass in plain torch, for any device and dtype: the compiled passes' readable twin.

Every function works on `entries`, records like `adaptiverl.step.entries.ParameterEntry`, and
reads the knobs from 0-d tensors, so nothing here waits for a device. The statement order is that of
csrc/pass_loops.inc and kernels/step.py; what an algorithm does with an element is in `elements`.

All numbers that are float64 lie together: beside the tensors, or on the CPU where the tensors'
device has no float64 (`adaptiverl.devices`). There they are worked out, too, and only what is
rounded goes to the tensors; sums over a tensor come back from there in float32, and are waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from adaptiverl.kernels import error_term, normals, rounding
from adaptiverl.kernels.block_tensor import Blocks, any_rounded, shown
from adaptiverl.kernels.elements import ELEMENTS, Elements, Row, Slot, decay_share
from torch import Tensor


class ParameterEntry(Protocol):
    """One parameter and what belongs to it (`adaptiverl.step.entries.ParameterEntry`)."""

    param: Tensor
    grad: Tensor
    slots: tuple[Tensor | None, ...]
    step: Tensor
    mu_product: Tensor | None
    """A `layout.Product`"""
    group: int
    index: int
    offset: int
    logical_numel: int
    maximize: bool
    stochastic_rounding: bool
    error: Tensor | None


class Knobs(Protocol):
    """What the controller decided, as 0-d float64 tensors."""

    step: Tensor
    seed_low: Tensor
    seed_high: Tensor
    active: Tensor
    noise: Tensor
    anneal: Tensor


# The pass


def product_of(kept: Tensor, steps: Tensor, momentum: float | Tensor) -> Tensor:
    """The product of the momenta of so many steps (method.md#bias-correction).

    Who edits a count in place may not know of it: then it is a power of the group's momentum.

    Args:
        kept: float64 [..., 3], a `layout.Product` each.
        steps: float32 [...].
        momentum: The group's.

    Returns:
        float64 [...].
    """
    product, left_product, left_step = kept.unbind(-1)
    steps = steps.to(kept.dtype)
    edited = (steps != left_step) & (product == left_product)
    return torch.where(steps == 0, 1.0, torch.where(edited, momentum**steps, product))


def count_step(
    entry: ParameterEntry, group: Tensor, momentum: Tensor, active: Tensor | None
) -> None:
    """One more step of this parameter, and one more factor of the product of its momenta."""
    step = entry.step + 1
    if entry.mu_product is not None:
        _, given, _, _, _ = group.unbind()
        product = product_of(entry.mu_product, entry.step, given) * momentum
        kept = torch.stack([product, product, step.to(product.dtype)])
        _write(entry.mu_product, kept, active)
    _write(entry.step, step, active)


def step(
    algorithm: str,
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
    """One step of each tensor, in place.

    Args:
        algorithm: A key of `ELEMENTS`.
        entries: The tensors, all on one device.
        knobs: The controller's scalars.
        groups: float64 [groups, 5]: lr, momentum, the algorithm's two numbers, weight decay as the
            user set them.
        effective: float64 [groups, 2]: lr and momentum of this step.
        squares: Σ g² per tensor, or Σ p² where the noise goes to the parameter; ``None`` where no
            noise can be drawn.
        gradient_scale: 0-d factor on every gradient (clipping over loss scale); ``None`` is 1.
        skippable: A gradient scaler is at work, so that `knobs.active` may be 0: then every result
            is selected rather than written, and a skipped step changes nothing.
        noise_on_parameter: Add the noise to the parameter after its update (method.md#noise).
        sums: float64 [tensors, 3], overwritten with `sums.ALIGNMENT` unless the step is skipped;
            ``None`` where nobody wants them.
    """
    for i, entry in enumerate(entries):
        _step_tensor(
            ELEMENTS[algorithm],
            entry,
            knobs,
            groups[entry.group],
            effective[entry.group],
            None if squares is None else squares[i],
            gradient_scale,
            skippable,
            noise_on_parameter,
            None if sums is None else sums[i],
        )


def _step_tensor(
    element: Elements,
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
    active = knobs.active if skippable else None
    lr, momentum = effective.unbind()
    count_step(entry, group, momentum, active)

    param = real(entry.param)
    dtype = torch.promote_types(param.dtype, torch.float32)
    scalars = element.scalars(_numbers(entry, group, lr, momentum, knobs.anneal))
    s = type(scalars)(*_beside(param, dtype, *scalars))
    stored = [None if slot is None else real(slot) for slot in entry.slots]
    slots = [None if slot is None else shown(slot).to(dtype) for slot in stored]

    p, g = _shown(param, entry.error, dtype), _scaled(real(entry.grad).to(dtype), gradient_scale)
    if entry.maximize:
        g = -g
    g = element.gradient(s, g, p)
    if sums is not None:
        _sum_alignment(g, element.direction(s, g, *slots), sums, active)
    if square is not None and not noise_on_parameter:
        g = g + _noise(entry, g, knobs, square, gradient_scale)
    p, slots = element.update(s, g, p, *slots)
    if square is not None and noise_on_parameter:
        p = p + _noise(entry, p, knobs, square, lr)
    bits = _rounding_bits(entry, param, stored, knobs)
    for place, slot, factor in zip(stored, slots, rounding.OF_SLOTS, strict=False):
        if place is not None:
            _keep(place, slot, bits, factor, active)
    if entry.error is not None:
        p, error = error_term.encode(p, bits if entry.stochastic_rounding else None)
        _write(entry.error, error, active)
    elif entry.stochastic_rounding:
        p = _rounded(p, param.dtype, bits, rounding.OF_PARAM)
    _write(param, p, active)


def _numbers(
    entry: ParameterEntry, group: Tensor, lr: Tensor, momentum: Tensor, anneal: Tensor
) -> Row:
    _, _, hyper0, hyper1, weight_decay = group.unbind()
    step = entry.step.to(group.dtype)
    product = None if entry.mu_product is None else entry.mu_product[0]
    share = decay_share(group, lr, anneal)
    return Row(lr, momentum, hyper0, hyper1, weight_decay, share, step, product)


def _noise(
    entry: ParameterEntry, like: Tensor, knobs: Knobs, square: Tensor, scale: Tensor | None
) -> Tensor:
    """σ·RMS·scale·ξ, shaped as `like`; RMS from the logical tensor's sum of squares, `square`."""
    rms = (square / entry.logical_numel).sqrt()
    (noise_scale,) = _beside(
        like, like.dtype, knobs.noise * (rms if scale is None else rms * scale)
    )
    *key, step = _beside(like, torch.int64, knobs.seed_low, knobs.seed_high, knobs.step)
    flat = normals.normals(key, entry.index, step, entry.offset, like.numel(), like.dtype)
    return noise_scale * flat.view(like.shape)


def _rounding_bits(
    entry: ParameterEntry, param: Tensor, slots: Sequence[Slot], knobs: Knobs
) -> Tensor | None:
    """16 per element, where something is rounded by chance."""
    if not entry.stochastic_rounding and not any_rounded(slots):
        return None
    *key, step = _beside(param, torch.int64, knobs.seed_low, knobs.seed_high, knobs.step)
    flat = rounding.random_bits(key, entry.index, step, entry.offset, param.numel())
    return flat.view(param.shape)


def _shown(param: Tensor, error: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A parameter's numbers, with its error terms where it has some."""
    return param.to(dtype) if error is None else error_term.decode(param, error)


def _keep(
    place: Tensor, slot: Tensor, bits: Tensor | None, factor: int, active: Tensor | None
) -> None:
    """A slot as it is kept."""
    if isinstance(place, Blocks):
        # What was there is encoded to what it was.
        place.encode(_selected(place.decode(), slot, active), bits, factor)
    else:
        _write(place, _rounded(slot, place.dtype, bits, factor), active)


def _rounded(value: Tensor, dtype: torch.dtype, bits: Tensor | None, factor: int) -> Tensor:
    """A result as what it is kept in holds it; left to the store where that rounds to nearest."""
    if bits is None or dtype not in rounding.HALVES:
        return value
    return rounding.round_stochastically(value, dtype, bits, factor)


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
    """In place, unless the step is skipped."""
    target.copy_(_selected(target, value, active))


def _selected(target: Tensor, value: Tensor, active: Tensor | None) -> Tensor:
    """The value, or in a skipped step what was there; a select, because 0·NaN is NaN."""
    if active is None:
        return value
    return torch.where((active != 0).to(target.device), value, target.to(value.dtype))


def rewind(target: Tensor, source: Tensor | None, rewinds: Tensor) -> None:
    """Put a tensor back to what it was, where a flag is not 0; the twin of csrc/rewind.cpp.

    Args:
        target: Of any dtype and layout.
        source: What it was, on the same device; None: zeros.
        rewinds: `state.rewind`, 0-d.
    """
    before = torch.zeros_like(target) if source is None else source
    target.copy_(torch.where((rewinds != 0).to(target.device), before, target))


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as torch.optim.AdamW treats it."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


# Sums


def sum_squares(
    entries: Sequence[ParameterEntry], out: Tensor, of_parameters: bool = False
) -> None:
    """Σ g² of each raw gradient, or Σ p² of each parameter, summed in float64.

    Args:
        entries: The tensors.
        out: float64, shape [len(entries)]; overwritten.
        of_parameters: Σ p².
    """
    summed = [real(entry.param if of_parameters else entry.grad) for entry in entries]
    sums = torch.stack([x.to(_sum_dtype(x, out)).square().sum() for x in summed])
    out.copy_(sums.to(out.device))


def gradient_scale(
    squares: Sequence[Tensor], max_grad_norm: float | None, grad_scale: Tensor | None
) -> Tensor | None:
    """The one factor on every gradient: what clipping leaves (method.md#clipping) / the loss scale.

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


# What the alignment law reads (method.md#alignment)

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
