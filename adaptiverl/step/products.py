"""What the product of a parameter's momenta is where nobody has it (method.md#bias-correction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.kernels.reference import product_of
from adaptiverl.step.state import as_counter


class Known(NamedTuple):
    """What is known of a parameter.

    Attributes:
        steps: float32, 0-d.
        kept: float64 [3], a `layout.Product`; None where none is kept.
    """

    steps: Tensor
    kept: Tensor | None


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
        if last is not None and last.kept is not None:
            counted, own = _pairs(last.steps.to(device), last.kept.to(device))
            product = torch.where(counted == steps, own, product)
        found.append(product)
    return found


def as_kept(product: Tensor, steps: Tensor) -> Tensor:
    """A `layout.Product`, float64 [3], of so many steps, float32; nobody has edited it."""
    return torch.stack([product, product, steps.to(product.dtype)])


def follow_edits(known: Sequence[Known], momentum: float | Tensor) -> None:
    """Make every product that of the present number of steps, as the next step would.

    Args:
        known: At least one; all on one device.
        momentum: Their group's.
    """
    steps, kept = _stacked(known)
    products = product_of(kept, steps, _beside(momentum, steps))
    followed = torch.stack([products, products, steps.to(products.dtype)], dim=1)
    torch._foreach_copy_([one.kept for one in known], list(followed.unbind()))  # type: ignore[misc]


def power(momentum: float | Tensor, steps: Tensor) -> Tensor:
    """momentum^steps, float64, beside the steps."""
    return _beside(momentum, steps) ** steps.to(torch.float64)


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


def _beside(momentum: float | Tensor, steps: Tensor) -> float | Tensor:
    if isinstance(momentum, Tensor):
        return momentum.to(steps.device, torch.float64).reshape(())
    return momentum


def _table(known: Sequence[Known]) -> tuple[Tensor, Tensor] | None:
    """Counts in ascending order, and their products; None without any."""
    known = [one for one in known if one.kept is not None]
    if not known:
        return None
    counts, products = _pairs(*_stacked(known))
    counts, order = counts.sort(stable=True)
    return counts, products[order]


def _stacked(known: Sequence[Known]) -> tuple[Tensor, Tensor]:
    return torch.stack([one.steps for one in known]), torch.stack([one.kept for one in known])  # type: ignore[misc]


def _pairs(steps: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of steps and the products that belong to them, whatever was edited since."""
    product, left_product, left_step = kept.unbind(-1)
    return torch.where(product == left_product, left_step.to(steps.dtype), steps), product


def _look_up(steps: Tensor, known: Tensor, products: Tensor, otherwise: Tensor) -> Tensor:
    place = torch.searchsorted(known, steps).clamp(max=len(known) - 1)
    return torch.where(known[place] == steps, products[place], otherwise)
