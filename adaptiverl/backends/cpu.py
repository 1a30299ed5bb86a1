"""The compiled pass: float32 and bfloat16 in one piece of memory, all threads, vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptiverl.algorithms import ALGORITHMS
from adaptiverl.backends.base import HoldChunks, sums_of, tell_autograd
from adaptiverl.backends.layouts import lie_alike
from adaptiverl.backends.operators import WHY_PURE
from adaptiverl.codecs import dtype_of, walks

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry

STEPS = {
    name: getattr(torch.ops.adaptiverl, f"{name}_step_").default
    for name in (ALGORITHMS if WHY_PURE is None else ())
}


CODECS = {torch.float32: 0, torch.bfloat16: 1}
"""Their numbers in csrc/codecs.h"""
SLOT_CODECS = CODECS | {torch.int8: 2, torch.uint8: 2}
"""Likewise; of blocks, the first slot's are signed, and the others' are not"""


class CpuBackend:
    """See `Backend`; its functions are those of csrc/pass.h."""

    name = "cpu"
    addressed = True

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """What there is a codec for, in one order (`lie_alike`)."""
        known = {entry.param.dtype, entry.grad.dtype} <= CODECS.keys()
        return known and walks(self.name, entry.slots) and lie_alike(entry.shaped(), noisy)

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """One launch takes all that are stored alike; () is float32 throughout."""
        slots = [dtype_of(slot) for slot in entry.slots if slot is not None]
        dtypes = (entry.param.dtype, entry.grad.dtype, *(slots[:1] or [torch.float32]))
        if set(dtypes) == {torch.float32}:
            return ()
        return (*(SLOT_CODECS[dtype] for dtype in dtypes), entry.stochastic_rounding)

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.count_steps_(
            bucket.rows(), decision.state, decision.groups, decision.effective
        )

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
        codecs, _ = storage_of(bucket)
        codec = codecs[0 if of_parameters else 1] if codecs else 0
        torch.ops.adaptiverl.sum_squares_(
            bucket.rows(), decision.state, out, always, of_parameters, codec
        )

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
            *storage_of(bucket),
        )
        tell_autograd(bucket)


def storage_of(bucket: Bucket) -> tuple[list[int], bool]:
    """The codecs' numbers, parameters', gradients' and slots'; whether parameters go by chance."""
    *codecs, stochastic_rounding = bucket.variant or (False,)
    return codecs, stochastic_rounding
