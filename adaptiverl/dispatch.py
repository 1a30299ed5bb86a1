"""Who does a parameter's step: the only place that asks "CUDA? C++?".

A backend has three functions over a bucket of tensors: `sum_squares`, and a step for each
optimizer, `adamw_step` and `sgd_step`. The C++ one walks an address table; the reference works in
plain torch on whatever the fast ones don't take.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from adaptiverl.kernels import reference

if TYPE_CHECKING:
    from adaptiverl.controller import Decision
    from adaptiverl.tables import Bucket, ParameterEntry

gradient_scale = reference.gradient_scale


class Backend(Protocol):
    """One way to do the step."""

    name: str
    addressed: bool
    """Walks an address table; the controller then counts the tensors' steps."""

    def accepts(self, entry: ParameterEntry) -> bool:
        """Whether this tensor's layout is one the backend can walk."""
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

    def adamw_step(
        self,
        bucket: Bucket,
        decision: Decision,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        """The step, in place; `squares` are those of what the noise goes to."""
        ...

    def sgd_step(
        self,
        bucket: Bucket,
        decision: Decision,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        """The same, of SGD."""
        ...


class CpuBackend:
    """The compiled sweep: float32 in one piece of memory, all threads, vector instructions."""

    name = "cpu"
    addressed = True

    def accepts(self, entry: ParameterEntry) -> bool:
        """Contiguous tensors with float32 moments, the parameter's own layout on all of them."""
        return all(
            t.dtype == torch.float32
            and t.device.type == "cpu"
            and t.is_contiguous()
            and not t.is_neg()
            for t in entry.shaped()
        )

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

    def adamw_step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        self._step(torch.ops.adaptiverl.adamw_step_, bucket, decision, squares, gradient_scale)

    def sgd_step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        self._step(torch.ops.adaptiverl.sgd_step_, bucket, decision, squares, gradient_scale)

    @staticmethod
    def _step(
        operator: Callable[..., None],
        bucket: Bucket,
        decision: Decision,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        """A C++ operator does not bump version counters, so autograd is told."""
        operator(
            bucket.rows(),
            decision.block,
            decision.groups,
            decision.effective,
            squares,
            gradient_scale,
            None,
            decision.noise_on_parameter,
        )
        torch.autograd.graph.increment_version([entry.param for entry in bucket.entries])


class ReferenceBackend:
    """Plain torch: any device, dtype and layout."""

    name = "reference"
    addressed = False

    def accepts(self, entry: ParameterEntry) -> bool:
        """Everything."""
        return True

    def sum_squares(
        self,
        bucket: Bucket,
        decision: Decision,
        out: Tensor,
        always: bool,
        of_parameters: bool = False,
    ) -> None:
        """See `Backend`."""
        if always or self._noise_on(decision):
            reference.sum_squares(bucket.entries, out, of_parameters)

    def adamw_step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        self._step(reference.adamw_step, bucket, decision, squares, gradient_scale)

    def sgd_step(
        self, bucket: Bucket, decision: Decision, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        self._step(reference.sgd_step, bucket, decision, squares, gradient_scale)

    def _step(
        self,
        step: Callable[..., None],
        bucket: Bucket,
        decision: Decision,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        step(
            bucket.entries,
            decision,
            decision.groups,
            decision.effective,
            squares if self._noise_on(decision) else None,
            gradient_scale,
            decision.skippable,
            decision.noise_on_parameter,
        )

    @staticmethod
    def _noise_on(decision: Decision) -> bool:
        # σ is a host's own memory on the CPU; elsewhere reading it would wait for the device.
        if not decision.noise_possible or decision.block.device.type != "cpu":
            return decision.noise_possible
        return decision.noise.item() != 0


@dataclass(frozen=True)
class Resolution:
    """The backend for a device and dtypes, and why it isn't a faster one."""

    backend: Backend
    reason: str


CPU, REFERENCE = CpuBackend(), ReferenceBackend()
noise_on = ReferenceBackend._noise_on


@cache
def resolve(device_type: str, param_dtype: torch.dtype, grad_dtype: torch.dtype) -> Resolution:
    """The backend for contiguous tensors of these types.

    Args:
        device_type: As in `torch.device.type`.
        param_dtype: The parameter's dtype.
        grad_dtype: Its gradient's.
    """
    if device_type == "cpu" and param_dtype == grad_dtype == torch.float32:
        return Resolution(CPU, "compiled sweep over float32")
    if device_type == "cpu":
        return Resolution(REFERENCE, f"the compiled sweep takes float32 only, not {param_dtype}")
    return Resolution(REFERENCE, f"no fused sweep for device type {device_type!r} in this version")


def backend_for(entry: ParameterEntry) -> Backend:
    """Who does this tensor's step: its types' backend, or the reference where layouts differ."""
    backend = resolve(entry.param.device.type, entry.param.dtype, entry.grad.dtype).backend
    return backend if backend.accepts(entry) else REFERENCE


def load_operators() -> None:
    """Load the compiled operators.

    Raises:
        ImportError: They are not built; the message says how to build them.
    """
    try:
        importlib.import_module("adaptiverl._C")
    except ImportError as error:
        raise ImportError(
            "adaptiverl's compiled operators (adaptiverl._C) are missing or do not load: "
            f"{error}. Build them with `pip install --no-build-isolation -e .` in the source tree, "
            "or install a wheel; torch 2.10 or newer and a C++ compiler are needed"
        ) from error


def has_cuda_controller() -> bool:
    """Whether the controller was compiled for CUDA."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("adaptiverl::advance_", "CUDA")


def controller_device(device: torch.device) -> torch.device:
    """Where the controller of parameters on `device` lives: beside them, or else on the CPU."""
    if device.type == "cuda" and has_cuda_controller():
        return device
    return torch.device("cpu")


def describe() -> str:
    """One line on what this installation can do."""
    controller = "compiled" if has_cuda_controller() else "not compiled (no nvcc when it was built)"
    return (
        f"adaptiverl on torch {torch.__version__}: CPU sweep compiled; CUDA controller {controller}"
    )


load_operators()
