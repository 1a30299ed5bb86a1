"""Plain torch: any device, dtype and layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptiverl.backends.base import sums_of
from adaptiverl.backends.layouts import is_fake
from adaptiverl.kernels import reference

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry


class ReferenceBackend:
    """See `Backend`; its functions are those of kernels/reference.py."""

    name = "reference"
    addressed = False

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """Everything."""
        return True

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """Each tensor has launches of its own."""
        return ()

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """Its steps count by themselves."""

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        if always or noise_on(decision):
            reference.sum_squares(bucket.entries, out, of_parameters)

    def step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        reference.step(
            bucket.algorithm,
            bucket.entries,
            decision,
            decision.groups,
            decision.effective,
            squares if noise_on(decision) else None,
            gradient_scale,
            decision.skippable,
            decision.noise_on_parameter,
            sums_of(bucket, decision),
        )


def noise_on(decision: Decision) -> bool:
    """Whether noise is drawn in this step; on a device: whether it may be.

    σ is a host's own memory on the CPU; elsewhere reading it would wait for the device.
    """
    block = decision.block
    if not decision.noise_possible or block.device.type != "cpu" or is_fake(block):
        return decision.noise_possible
    return decision.noise.item() != 0
