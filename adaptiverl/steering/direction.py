"""The direction of an optimizer's last step, on a sample of its elements (method.md#any-optimizer).

A torch optimizer does not say where it went, so the parameters are looked at before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.devices import numbers_device
from adaptiverl.kernels.normals import philox4x32
from adaptiverl.kernels.reference import real, sum_in_order
from adaptiverl.ranks.dtensors import to_local

SAMPLE = 2**16
"""Elements of a parameter that are looked at, where it has more than twice as many"""


class Place(NamedTuple):
    """A parameter's part of the sample."""

    param: Tensor
    group: int
    """Its group in the optimizer"""
    chosen: Tensor | None
    """int64 [SAMPLE], its elements in C order; None: all"""
    weight: float
    """Elements that one stands for"""


class Direction:
    """What one optimizer's last step did to the sample.

    Args:
        seed: The choice is made of it by counting, as the noise is: the same in every run.
        first: The place of this optimizer's first parameter among all, which the choice knows too.
    """

    def __init__(self, seed: int, first: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._first = first
        self._params: list[Tensor] = []
        self._places: list[Place] = []
        self._before: Tensor | None = None
        self.last: Tensor | None = None
        """float32 or float64 [sample]: u; None where there is no step before"""

    def begin_step(self, groups: Sequence[dict[str, Any]]) -> Tensor | None:
        """Before a step: its gradient against the step before, and the sample as it is now.

        Args:
            groups: The optimizer's.

        Returns:
            float64 [3] of Σ g·u, Σ g², Σ u² (`layout.AlignmentSums`); None without a step before.
        """
        self._choose(groups)
        sums = None if self.last is None else self._sums(self.last, groups)
        self._before = self._gathered([place.param for place in self._places])
        return sums

    @property
    def elements(self) -> float:
        """That the sample stands for, of parameters with a gradient."""
        pairs = zip(self._places, self._sizes(), strict=True)
        return sum(place.weight * n for place, n in pairs if place.param.grad is not None)

    def end_step(self, rates: Sequence[Any], active: Tensor | None) -> None:
        """After it: where it went, per unit of each group's rate.

        Args:
            rates: Each group's in effect, numbers or 0-d tensors.
            active: 0: a gradient scaler skipped the step, and the one before stays the last.
        """
        if self._before is None:
            return
        before, self._before = self._before, None
        moved = before - self._gathered([place.param for place in self._places])
        parts = moved.split(self._sizes())
        given = [torch.as_tensor(rate).to(moved.device, moved.dtype) for rate in rates]
        scaled = []
        for place, part in zip(self._places, parts, strict=True):
            rate = given[place.group]
            scaled.append(torch.where(rate > 0, part / rate, torch.zeros_like(part)))
        direction = torch.cat(scaled)
        if active is not None:
            old = torch.zeros_like(direction) if self.last is None else self.last
            direction = torch.where((active != 0).to(direction.device), direction, old)
        self.last = direction

    def load(self, last: Tensor | None) -> None:
        """Go on from a direction that was saved; one of other parameters counts as none."""
        self._params, self._before = [], None  # so that its size is looked at in the next step
        self.last = None if last is None else last.clone()

    def forget(self) -> None:
        """There is no step before the next one."""
        self.last = self._before = None

    def _choose(self, groups: Sequence[dict[str, Any]]) -> None:
        params = [p for group in groups for p in group["params"]]
        if len(params) == len(self._params) and all(map(_is, params, self._params)):
            return
        self._params, self._places = params, []
        for number, group in enumerate(groups):
            for param in group["params"]:
                index = self._first + len(self._places)
                self._places.append(self._place(param, number, index))
        if self.last is not None and self.last.numel() != sum(self._sizes()):
            self.last = None  # other parameters than those of the last step

    def _place(self, param: Tensor, group: int, index: int) -> Place:
        local = real(to_local(param).detach())
        if local.numel() <= 2 * SAMPLE:
            return Place(param, group, None, 1.0)
        # One of each run of elements: which, by chance that does not depend on when.
        run = local.numel() // SAMPLE
        count = torch.arange(SAMPLE, dtype=torch.int64, device=local.device)
        words = [torch.full_like(count, x) for x in (0, index, 0)]
        key = [torch.full_like(count, x) for x in self._key]
        word = philox4x32((count, *words), key)[0]
        return Place(param, group, count * run + word % run, local.numel() / SAMPLE)

    def _sizes(self) -> list[int]:
        whole = (
            real(to_local(p.param)).numel() if p.chosen is None else SAMPLE for p in self._places
        )
        return list(whole)

    def _gathered(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Of each parameter's tensor the sample, in one piece; zeros where there is none."""
        kinds = [torch.promote_types(p.param.dtype, torch.float32) for p in self._places]
        dtype = torch.float64 if any(k.to_real() == torch.float64 for k in kinds) else torch.float32
        device = to_local(self._places[0].param).device
        parts = []
        for place, tensor, size in zip(self._places, tensors, self._sizes(), strict=True):
            if tensor is None:
                parts.append(torch.zeros(size, dtype=dtype, device=device))
                continue
            local = to_local(tensor).detach()
            flat = real(local.to_dense() if local.is_sparse else local).reshape(-1)
            if place.chosen is not None:
                flat = flat[place.chosen]
            parts.append(flat.to(device, dtype))
        return torch.cat(parts)

    def _sums(self, direction: Tensor, groups: Sequence[dict[str, Any]]) -> Tensor:
        signs = [-1.0 if group.get("maximize") else 1.0 for group in groups]
        gradient = self._gathered([place.param.grad for place in self._places])
        if direction.device != gradient.device:
            direction = direction.to(gradient.device)
        exact = numbers_device(gradient.device) == gradient.device
        dtype = torch.float64 if exact else torch.float32
        totals = torch.zeros(3, dtype=dtype, device=gradient.device)
        sizes = self._sizes()
        pairs = zip(self._places, gradient.split(sizes), direction.split(sizes), strict=True)
        for place, g, u in pairs:
            g, u = g.to(dtype), u.to(dtype)
            found = [
                signs[place.group] * sum_in_order(g * u),
                sum_in_order(g * g),
                sum_in_order(u * u),
            ]
            totals += place.weight * torch.stack(found)
        return totals.to(numbers_device(gradient.device), torch.float64)


def _is(left: Any, right: Any) -> bool:
    return left is right
