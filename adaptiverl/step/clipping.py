"""Clipping: one factor on every gradient."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from adaptiverl.kernels import reference
from adaptiverl.step.bucket import Bucket
from adaptiverl.step.workspace import Workspace


@runtime_checkable
class ScalesByItself(Protocol):
    """A backend with a kernel for the factor."""

    def gradient_scale(
        self, squares: Tensor, limit: Tensor | None, grad_scale: Tensor | None, factor: Tensor
    ) -> None:
        """The factor of `GradientScale` into `factor`, 0-d float64 as all but `squares` [n]."""
        ...


class GradientScale:
    """The one factor on every gradient: what clipping leaves (method.md#clipping) / the loss scale.

    Args:
        max_grad_norm: The global norm to clip to, or None.
        workspace: Owns the factor and the limit.

    Raises:
        TypeError: The norm is no number.
        ValueError: It is not finite and above 0.
    """

    def __init__(self, max_grad_norm: float | None, workspace: Workspace) -> None:
        if max_grad_norm is not None:
            if isinstance(max_grad_norm, bool) or not isinstance(max_grad_norm, numbers.Real):
                raise TypeError(
                    f"max_grad_norm must be a number or None, got {max_grad_norm!r} of type "
                    f"{type(max_grad_norm).__name__}"
                )
            if not 0 < max_grad_norm < math.inf:
                raise ValueError(
                    f"max_grad_norm must be finite and > 0, or None, got {max_grad_norm!r}"
                )
            max_grad_norm = float(max_grad_norm)
        self._max_grad_norm = max_grad_norm
        self._workspace = workspace

    def __call__(
        self,
        buckets: Sequence[Bucket],
        squares: Mapping[torch.device, Tensor],
        grad_scale: Tensor | None,
    ) -> Tensor | None:
        """This step's factor; one launch where one device has all tensors and a kernel for it.

        Args:
            buckets: The step's; at least one.
            squares: Σ g² of all tensors by device, float64; read where there is a norm to clip to.
            grad_scale: What a gradient scaler multiplied the loss by; or None.

        Returns:
            0-d float64; None where there is nothing to do.
        """
        if self._max_grad_norm is None and grad_scale is None:
            return None
        launcher = next((b.backend for b in buckets if isinstance(b.backend, ScalesByItself)), None)
        if launcher is None or len(squares) > 1:
            return reference.gradient_scale(list(squares.values()), self._max_grad_norm, grad_scale)
        ((device, whole),) = squares.items()
        if grad_scale is not None:
            grad_scale = grad_scale.to(device, non_blocking=True)
        limit, factor = self._memory(device)
        launcher.gradient_scale(whole, limit, grad_scale, factor)
        return factor

    def _memory(self, device: torch.device) -> tuple[Tensor | None, Tensor]:
        def make() -> tuple[Tensor, ...]:
            numbers = (1.0,) if self._max_grad_norm is None else (1.0, self._max_grad_norm)
            return tuple(torch.full((), n, dtype=torch.float64, device=device) for n in numbers)

        factor, *limit = self._workspace.hold(("factor", device), None, device, make)
        return (limit[0] if limit else None), factor
