"""Who does a parameter's step: the only place that asks "CUDA? Triton? C++?".

A backend has three functions over a bucket of tensors: `sum_squares`, and a step for each
optimizer, `adamw_step` and `sgd_step`. The C++ and the Triton ones walk an address table; the
reference works in plain torch on whatever the fast ones don't take.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from adaptiverl.kernels import reference

if TYPE_CHECKING:
    from adaptiverl.decision import Decision
    from adaptiverl.step.bucket import Bucket
    from adaptiverl.step.entries import ParameterEntry

logger = logging.getLogger("adaptiverl")


class Backend(Protocol):
    """One way to do the step."""

    name: str
    addressed: bool
    """Walks an address table; the controller then counts the tensors' steps."""

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """Whether this tensor's layout is one the backend can walk; `noisy`: σ may be above 0."""
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


class CpuBackend:
    """The compiled sweep: float32 in one piece of memory, all threads, vector instructions."""

    name = "cpu"
    addressed = True

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """float32 throughout, moments too, in one order (`lie_alike`)."""
        tensors = entry.shaped()
        return all(t.dtype == torch.float32 for t in tensors) and lie_alike(tensors, noisy)

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """One launch takes them all."""
        return ()

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.count_steps_(bucket.rows(), decision.block, decision.effective)

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.sum_squares_(bucket.rows(), decision.block, out, always, of_parameters)

    def step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        CPU_STEPS[bucket.algorithm](
            bucket.rows(),
            decision.block,
            decision.groups,
            decision.effective,
            squares,
            gradient_scale,
            sums_of(bucket, decision),
            decision.noise_on_parameter,
        )
        _tell_autograd(bucket)


class Scratch(NamedTuple):
    """What the Triton kernels keep of a bucket between launches.

    Attributes:
        chunks: `kernels.chunks.chunk_table` on the device.
        partials: From `kernels.chunks.partial_sums`.
        finished: Likewise.
    """

    chunks: Tensor
    partials: Tensor
    finished: Tensor


class TritonBackend:
    """The Triton sweep: float32, bfloat16 and float16, one launch for all tensors of its variant.

    Raises:
        ImportError: Triton is missing, or does not load.
    """

    name = "triton"
    addressed = True

    def __init__(self) -> None:
        # Only where it is used: triton takes half a second to load, and is not everywhere.
        from adaptiverl.kernels import adamw_step, chunks, clip, count, sgd_step, statistics

        self._adamw, self._sgd, self._statistics = adamw_step, sgd_step, statistics
        self._chunks, self._clip, self._count = chunks, clip, count

    def accepts(self, entry: ParameterEntry, noisy: bool) -> bool:
        """float32 moments, and everything in one order (`lie_alike`)."""
        moments = [m for m in entry.slots if m is not None]
        return all(m.dtype == torch.float32 for m in moments) and lie_alike(entry.shaped(), noisy)

    def variant(self, entry: ParameterEntry) -> tuple[Any, ...]:
        """A kernel is compiled for dtypes and for the moments that there are."""
        kept = tuple(m is not None for m in entry.slots)
        return entry.param.dtype, entry.grad.dtype, kept

    def count_steps(self, bucket: Bucket, decision: Decision) -> None:
        """See `Backend`."""
        self._count.count_steps(bucket.rows(), decision.block, decision.effective)

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        param_dtype, grad_dtype, _ = bucket.variant
        scratch = self._scratch(bucket, decision)
        self._statistics.sum_squares(
            bucket.rows(),
            scratch.chunks,
            decision.block,
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
        param_dtype, grad_dtype, kept = bucket.variant
        step = {
            "adamw": partial(self._adamw.adamw_step, amsgrad=kept[-1]),
            "sgd": partial(self._sgd.sgd_step, momentum=kept[0]),
        }[bucket.algorithm]
        scratch = self._scratch(bucket, decision)
        step(
            bucket.rows(),
            scratch.chunks,
            decision.block,
            decision.groups,
            decision.effective,
            squares if decision.noise_possible else None,
            gradient_scale,
            sums_of(bucket, decision),
            scratch.partials,
            scratch.finished,
            param_dtype=param_dtype,
            grad_dtype=grad_dtype,
            noise_on_parameter=decision.noise_on_parameter,
        )
        _tell_autograd(bucket)

    def gradient_scale(
        self, squares: Tensor, limit: Tensor | None, grad_scale: Tensor | None, factor: Tensor
    ) -> None:
        """`kernels.clip.gradient_scale`."""
        self._clip.gradient_scale(squares, limit, grad_scale, factor)

    def _scratch(self, bucket: Bucket, decision: Decision) -> Scratch:
        # An optimizer's law, and so what its decisions ask for, never changes.
        width = 3 if decision.aligned else 1

        def build(sizes: list[int]) -> Scratch:
            chunks = self._chunks.chunk_table(sizes)
            partials = self._chunks.partial_sums(len(chunks), len(sizes), bucket.device, width)
            return Scratch(bucket.upload(chunks), *partials)

        return bucket.scratch(build)


class ReferenceBackend:
    """Plain torch: any device, dtype and layout."""

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
        step = {"adamw": reference.adamw_step, "sgd": reference.sgd_step}[bucket.algorithm]
        step(
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
    """Whether σ may be above 0 in this step, by what the host knows without waiting."""
    # σ is a host's own memory on the CPU; elsewhere reading it would wait for the device.
    block = decision.block
    if not decision.noise_possible or block.device.type != "cpu" or is_fake(block):
        return decision.noise_possible
    return decision.noise.item() != 0


@dataclass(frozen=True)
class Resolution:
    """The backend for a device and dtypes, and why it isn't a faster one."""

    backend: Backend
    reason: str


CPU, REFERENCE = CpuBackend(), ReferenceBackend()


TRITON_DTYPES = frozenset(
    {
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    }
)
"""Parameters' and gradients' dtypes that the Triton sweep takes"""


@cache
def triton_backend() -> TritonBackend:
    """The one Triton backend.

    Raises:
        ImportError: As `TritonBackend`.
    """
    return TritonBackend()


TRITON_CAPABILITY = (7, 5)
"""The lowest compute capability that the kernels' machine code is compiled and read for"""


def resolve(
    device: torch.device | str, param_dtype: torch.dtype, grad_dtype: torch.dtype
) -> Resolution:
    """The backend for contiguous tensors of these types.

    Args:
        device: Theirs; ``"cuda"`` is the current one.
        param_dtype: The parameter's dtype.
        grad_dtype: Its gradient's.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cpu" and param_dtype == grad_dtype == torch.float32:
        return Resolution(CPU, "compiled sweep over float32")
    if device.type == "cpu":
        return Resolution(REFERENCE, f"the compiled sweep takes float32 only, not {param_dtype}")
    if device.type != "cuda":
        return Resolution(REFERENCE, f"no fused sweep for device type {device.type!r}")
    if (param_dtype, grad_dtype) not in TRITON_DTYPES:
        return Resolution(
            REFERENCE,
            f"the Triton sweep does not take {param_dtype} parameters with {grad_dtype} gradients",
        )
    return _cuda_sweep(device)


@cache
def _cuda_sweep(device: torch.device) -> Resolution:
    """The backend for the dtypes that Triton takes; says once in the log that it isn't Triton."""
    reason = _no_triton_on(device)
    if reason is None:
        return Resolution(triton_backend(), "Triton sweep")
    logger.warning("the step of tensors on %s is plain torch, which is slower: %s", device, reason)
    return Resolution(REFERENCE, reason)


def _no_triton_on(device: torch.device) -> str | None:
    """Why the Triton sweep can't be used on a CUDA device; None where it can."""
    if torch.version.hip is not None:
        return "the Triton kernels hold PTX, NVIDIA's machine language, and this torch is for ROCm"
    capability = _capability(device)
    if capability is not None and capability < TRITON_CAPABILITY:
        return (
            f"the Triton sweep needs compute capability {_dotted(TRITON_CAPABILITY)} or higher, "
            f"this card has {_dotted(capability)}"
        )
    try:
        triton_backend()
    except ImportError as error:
        return f"Triton is missing or does not load ({error}): `pip install triton`"
    return None


def backend_for(entry: ParameterEntry, noisy: bool, shares_memory: bool = False) -> Backend:
    """Who does this tensor's step: its types' backend, or the reference where layouts differ.

    Args:
        entry: The tensor.
        noisy: σ may be above 0.
        shares_memory: With another tensor of the step: the reference takes one after another.
    """
    if shares_memory:
        return REFERENCE
    backend = resolve(entry.param.device, entry.param.dtype, entry.grad.dtype).backend
    return backend if backend.accepts(entry, noisy) else REFERENCE


def lie_alike(tensors: Sequence[Tensor], noisy: bool) -> bool:
    """Whether a sweep can walk these side by side, element i of one being element i of all.

    Noise belongs to an element's place in C order (decisions.md 17). Without it any order without
    gaps will do that is the same for all, as that of channels-last or of transposed tensors.
    """
    first = tensors[0]
    if any(
        t.device != first.device
        or t.shape != first.shape
        or t.is_neg()
        or is_fake(t)
        or is_traceable_wrapper_subclass(t)
        for t in tensors
    ):
        return False
    if all(t.is_contiguous() for t in tensors):
        return True
    return not noisy and _is_dense(first) and all(_order(t) == _order(first) for t in tensors)


def is_fake(tensor: Tensor) -> bool:
    """Whether it has neither memory nor values, as while a program is traced or its memory planned.

    Where nobody imported fake tensors, there is none.
    """
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Strides of the dimensions that are walked."""
    return [(d, s) for d, s in enumerate(tensor.stride()) if tensor.shape[d] > 1]


def _is_dense(tensor: Tensor) -> bool:
    """Whether some order of its dimensions makes it contiguous."""
    outermost_first = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(outermost_first).is_contiguous()


def sums_of(bucket: Bucket, decision: Decision) -> Tensor | None:
    """Where the step leaves Σ g·u, Σ g², Σ u² per tensor; None where the law doesn't read them."""
    return bucket.sums if decision.aligned else None


def _tell_autograd(bucket: Bucket) -> None:
    """Neither a C++ operator nor a Triton launch bumps version counters."""
    torch.autograd.graph.increment_version(bucket.params)


OPERATORS = (
    "observe_",
    "observe_numbers_",
    "advance_",
    "count_steps_",
    "reduce_alignment_",
    "update_",
    "read_groups_",
    "start_",
    "sum_squares_",
    "adamw_step_",
    "sgd_step_",
    "normals_",
    "philox_words_",
)
"""All that work on tensors"""


def load_operators() -> None:
    """Load the compiled operators.

    Raises:
        ImportError: They are not built, or from an older source; the message says what to do.
    """
    try:
        importlib.import_module("adaptiverl._C")
    except ImportError as error:
        raise ImportError(
            "adaptiverl's compiled operators (adaptiverl._C) are missing or do not load: "
            f"{error}. Build them with `pip install --no-build-isolation -e .` in the source tree, "
            "or install a wheel; torch 2.10 or newer and a C++ compiler are needed"
        ) from error
    missing = [name for name in OPERATORS if not hasattr(torch.ops.adaptiverl, name)]
    if missing:
        raise ImportError(
            f"adaptiverl's compiled operators lack {', '.join(missing)}: they were built from "
            "another source than this. Build them again with "
            "`pip install --no-build-isolation -e .` in the source tree"
        )


def _changes_nothing_fake(*_: Any, **__: Any) -> None:
    """What every operator does to fake tensors: it returns nothing, and they have no values."""


def has_cuda_controller() -> bool:
    """Whether the controller was compiled for CUDA."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("adaptiverl::advance_", "CUDA")


@cache
def cuda_architectures() -> tuple[tuple[int, int], ...]:
    """The compute capabilities that the CUDA controller was compiled for, the lowest first."""
    listed = importlib.import_module("adaptiverl._C").cuda_architectures.split()
    return tuple((int(name[:-1]), int(name[-1])) for name in listed)


def runs_on(capability: tuple[int, int], compiled: Sequence[tuple[int, int]]) -> bool:
    """Whether a card finds code for itself among what was compiled.

    Code is for its own and later minor versions of a major one. Of the newest there is PTX, too,
    from which the driver makes code for whatever came later.

    Args:
        capability: The card's compute capability.
        compiled: Those that there is code for, the lowest first.
    """
    same = any(major == capability[0] and minor <= capability[1] for major, minor in compiled)
    return same or (len(compiled) > 0 and capability >= compiled[-1])


@cache
def controller_device(device: torch.device) -> torch.device:
    """Where the controller of parameters on `device` lives: beside them, or else on the CPU.

    There it has to wait for every loss, and the log says so once: a warning where something is
    amiss, for CUDA is what it is made for.
    """
    if device.type == "cpu":
        return device
    reason = _no_controller_on(device)
    if reason is None:
        return device
    logger.log(
        logging.WARNING if device.type == "cuda" else logging.INFO,
        "the controller of parameters on %s is on the CPU, so every loss is waited for: %s",
        device,
        reason,
    )
    return torch.device("cpu")


def _no_controller_on(device: torch.device) -> str | None:
    """Why the controller can't live on this device; None where it can."""
    if device.type != "cuda":
        return f"there is none for device type {device.type!r}"
    if torch.version.hip is not None:
        return "it is written for CUDA, and this torch is for ROCm"
    if not has_cuda_controller():
        return "it was built without nvcc; with the CUDA toolkit installed, build it again"
    capability = _capability(device)
    if capability is not None and not runs_on(capability, cuda_architectures()):
        return (
            f"it was compiled for compute capability {_compiled()}, this card has "
            f"{_dotted(capability)}"
        )
    return None


def _capability(device: torch.device) -> tuple[int, int] | None:
    """A card's compute capability; None where there is no card to ask."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def _compiled() -> str:
    return f"{', '.join(map(_dotted, cuda_architectures()))} and later"


def describe() -> str:
    """One line on what this installation can do."""
    device = torch.device("cuda")
    no_controller, no_triton = _no_controller_on(device), _no_triton_on(device)
    controller = f"compiled for compute capability {_compiled()}"
    if no_controller is not None:
        controller = f"on the CPU ({no_controller})"
    sweep = "Triton" if no_triton is None else f"plain torch ({no_triton})"
    without = "" if torch.version.cuda or torch.version.hip else " (this torch has no CUDA)"
    return (
        f"adaptiverl on torch {torch.__version__}{without}: CPU sweep compiled; CUDA controller "
        f"{controller}; CUDA sweep {sweep}"
    )


load_operators()
CPU_STEPS = {
    "adamw": torch.ops.adaptiverl.adamw_step_.default,
    "sgd": torch.ops.adaptiverl.sgd_step_.default,
}
for _operator in OPERATORS:
    torch.library.register_fake(f"adaptiverl::{_operator}", _changes_nothing_fake)
