"""What the product of a parameter's momenta is where nobody has it (method.md#bias-correction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.step.state import as_counter


class Known(NamedTuple):
    """A number of steps, float32, and the product of their momenta, float64; both 0-d."""

    steps: Tensor
    product: Tensor | None


class Unknown(NamedTuple):
    """A number of steps without a product, and what was known of its parameter last."""

    steps: Tensor
    last: Known | None


def complete_products(
    unknown: Sequence[Unknown], known: Sequence[Known], momentum: float | Tensor
) -> list[Tensor]:
    """Products of momenta of parameters of one group.

    In this order: the parameter's own last product, where it has taken no step since; that of a
    parameter of the group that has taken as many steps; momentum^steps, as if it never moved.
    No device is waited for.

    Args:
        unknown: At least one.
        known: Of other parameters of the group.
        momentum: The group's.

    Returns:
        float64, 0-d, one for each unknown.
    """
    found: list[Tensor] = []
    tables: dict[torch.device, tuple[Tensor, Tensor] | None] = {}
    for steps, last in unknown:
        product = power(momentum, steps)
        device = steps.device
        if device not in tables:
            tables[device] = _table([k for k in known if k.steps.device == device])
        table = tables[device]
        if table is not None:
            product = _look_up(steps, *table, otherwise=product)
        if last is not None and last.product is not None:
            same = last.steps.to(device) == steps
            product = torch.where(same, last.product.to(device), product)
        found.append(product)
    return found


def power(momentum: float | Tensor, steps: Tensor) -> Tensor:
    """momentum^steps, float64, beside the steps."""
    if isinstance(momentum, Tensor):
        momentum = momentum.to(steps.device, torch.float64).reshape(())
    return momentum ** steps.to(torch.float64)


def as_precise(product: Any, momentum: float | Tensor, steps: Tensor) -> Tensor:
    """A product that somebody brings, in float64 and in memory that nobody writes to.

    A loader may have rounded it. If the momentum never moved, nothing is lost by that.

    Args:
        product: What the loader made of it, one number.
        momentum: The group's.
        steps: How many.
    """
    brought = as_counter(product, torch.float64, steps.device).clone()
    exact = not isinstance(product, Tensor) or not product.is_floating_point()
    if exact or product.dtype == torch.float64:
        return brought
    info, constant = torch.finfo(product.dtype), power(momentum, steps)
    # Whole steps of rounding: the product was multiplied up, and this is a power.
    near = (brought - constant).abs() <= info.eps * constant + info.tiny
    return torch.where(near, constant, brought)


def _table(known: Sequence[Known]) -> tuple[Tensor, Tensor] | None:
    """Counts in ascending order, and their products; None without any."""
    pairs = [(steps, product) for steps, product in known if product is not None]
    if not pairs:
        return None
    counts, order = torch.stack([steps for steps, _ in pairs]).sort(stable=True)
    return counts, torch.stack([product for _, product in pairs])[order]


def _look_up(steps: Tensor, known: Tensor, products: Tensor, otherwise: Tensor) -> Tensor:
    place = torch.searchsorted(known, steps).clamp(max=len(known) - 1)
    return torch.where(known[place] == steps, products[place], otherwise)
