"""The compiled pass: float32 in one piece of memory, all threads, vector instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptiverl.algorithms import ALGORITHMS
from adaptiverl.backends.base import HoldChunks, sums_of, tell_autograd
from adaptiverl.backends.layouts import lie_alike
from adaptiverl.backends.operators import WHY_PURE
from adaptiverl.codecs import walks

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry

STEPS = {
    name: getattr(torch.ops.adaptiverl, f"{name}_step_").default
    for name in (ALGORITHMS if WHY_PURE is None else ())
}


class CpuBackend:
    """See `Backend`; its functions are those of csrc/pass.h."""

    name = "cpu"
    addressed = True

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """float32 throughout, slots too, in one order (`lie_alike`)."""
        alike = entry.param.dtype == entry.grad.dtype == torch.float32
        return alike and walks(self.name, entry.slots) and lie_alike(entry.shaped(), noisy)

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """One launch takes them all."""
        return ()

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.count_steps_(bucket.rows(), decision.state, decision.effective)

    def rewind(self, regions: Tensor, chunks: HoldChunks, decision: Decision) -> None:
        """Memory back to what it was, where the decision says so (`layout.Region`)."""
        torch.ops.adaptiverl.rewind_(regions, decision.state)

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.sum_squares_(bucket.rows(), decision.state, out, always, of_parameters)

    def step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        STEPS[bucket.algorithm](
            bucket.rows(),
            decision.state,
            decision.groups,
            decision.effective,
            squares,
            gradient_scale,
            sums_of(bucket, decision),
            decision.noise_on_parameter,
        )
        tell_autograd(bucket)
