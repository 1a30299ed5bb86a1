"""What a backend is: a way to do the step of a bucket of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry


HoldChunks = Callable[[Callable[[Sequence[int]], Tensor]], Tensor]
"""Holds on a device what is built of regions' sizes, until these change"""


class Backend(Protocol):
    """One way to do the step."""

    name: str
    addressed: bool
    """Walks an address table; the controller then counts the tensors' steps."""

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """Whether this tensor's layout is one the backend can walk; `noisy`: it draws numbers."""
        ...

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """What the tensors of one launch must agree in, beside the device."""
        ...

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """One more step of every tensor, where the controller's launch is on another device."""
        ...

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """Σ g² (or Σ p²) per tensor into `out`, float64 [tensors]; unless `always`, if σ is on."""
        ...

    def step(
        self,
        bucket: Bucket,
        decision: Decision,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        """The step of `bucket.algorithm`, in place; `squares` are those of what the noise goes to.

        Where the law reads them (`decision.aligned`), `bucket.sums` are written on the way.
        """
        ...


def sums_of(bucket: Bucket, decision: Decision) -> Tensor | None:
    """Where the step leaves the sums of each tensor; None where the law doesn't read them."""
    return bucket.sums if decision.aligned else None


def tell_autograd(bucket: Bucket) -> None:
    """Neither a C++ operator nor a Triton launch bumps version counters."""
    torch.autograd.graph.increment_version(bucket.params)
