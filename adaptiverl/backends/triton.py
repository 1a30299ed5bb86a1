"""The Triton pass: float32, bfloat16 and float16, one launch for all tensors of its variant."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.backends.base import HoldChunks, sums_of, tell_autograd
from adaptiverl.backends.layouts import lie_alike
from adaptiverl.codecs import dtype_of, walks
from adaptiverl.kernels.sums import ALIGNMENT

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry

DTYPES = frozenset(
    {
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    }
)
"""Parameters' and gradients' dtypes that the pass takes"""

CAPABILITY = (7, 5)
"""The lowest compute capability that the kernels' machine code is compiled and read for"""


class Scratch(NamedTuple):
    """What the kernels keep of a bucket between launches.

    Attributes:
        chunks: `kernels.chunks.chunk_table` on the device.
        partials: From `kernels.chunks.partial_sums`.
        finished: Likewise.
    """

    chunks: Tensor
    partials: Tensor
    finished: Tensor


class TritonBackend:
    """See `Backend`.

    Raises:
        ImportError: Triton is missing, or does not load.
    """

    name = "triton"
    addressed = True

    def __init__(self) -> None:
        # Only where it is used: triton takes half a second to load, and is not everywhere.
        from adaptiverl.kernels import chunks, clip, count, rewind, statistics, step

        self._chunks, self._clip, self._count = chunks, clip, count
        self._rewind, self._statistics, self._step = rewind, statistics, step

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """Slots that there is a codec for, and everything in one order (`lie_alike`)."""
        return walks(self.name, entry.slots) and lie_alike(entry.shaped(), noisy)

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """A kernel is compiled for dtypes and for the slots that there are."""
        slots = tuple(dtype_of(slot) for slot in entry.slots if slot is not None)
        rounded = entry.stochastic_rounding, entry.error is not None
        return entry.param.dtype, entry.grad.dtype, slots, *rounded

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """See `Backend`."""
        self._count.count_steps(bucket.rows(), decision.state, decision.groups, decision.effective)

    def rewind(self, regions: Tensor, chunks: HoldChunks, decision: Decision) -> None:
        """Memory back to what it was, where the decision says so (`layout.Region`)."""
        self._rewind.rewind(regions, chunks(self._rewind.chunks_of), decision.state)

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        param_dtype, grad_dtype, *_ = bucket.variant
        scratch = self._scratch(bucket, decision)
        self._statistics.sum_squares(
            bucket.rows(),
            scratch.chunks,
            decision.state,
            out,
            scratch.partials,
            scratch.finished,
            always=always,
            grad_dtype=param_dtype if of_parameters else grad_dtype,
            of_parameters=of_parameters,
        )

    def step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        param_dtype, grad_dtype, slot_dtypes, stochastic_rounding, error_terms = bucket.variant
        scratch = self._scratch(bucket, decision)
        self._step.step(
            bucket.rows(),
            scratch.chunks,
            decision.state,
            decision.groups,
            decision.effective,
            squares if decision.noise_possible else None,
            gradient_scale,
            sums_of(bucket, decision),
            scratch.partials,
            scratch.finished,
            algorithm=bucket.algorithm,
            param_dtype=param_dtype,
            grad_dtype=grad_dtype,
            slot_dtypes=slot_dtypes,
            noise_on_parameter=decision.noise_on_parameter,
            stochastic_rounding=stochastic_rounding,
            error_terms=error_terms,
        )
        tell_autograd(bucket)

    def gradient_scale(
        self, squares: Tensor, limit: Tensor | None, grad_scale: Tensor | None, factor: Tensor
    ) -> None:
        """`kernels.clip.gradient_scale`."""
        self._clip.gradient_scale(squares, limit, grad_scale, factor)

    def _scratch(self, bucket: Bucket, decision: Decision) -> Scratch:
        # An optimizer's law, and so what its decisions ask for, never changes.
        width = ALIGNMENT.width if decision.aligned else 1

        def build(sizes: list[int]) -> Scratch:
            chunks = self._chunks.chunk_table(sizes)
            partials = self._chunks.partial_sums(len(chunks), len(sizes), bucket.device, width)
            return Scratch(bucket.upload(chunks), *partials)

        return bucket.scratch(build)


@cache
def triton_backend() -> TritonBackend:
    """The one Triton backend.

    Raises:
        ImportError: As `TritonBackend`.
    """
    return TritonBackend()
