"""Who does a parameter's step: the only place that asks "CUDA? C++?". Resolved once per device and dtype.

A backend has two functions over a bucket of tensors: `sum_squares` and `adamw_step`. The C++ one walks an
address table; the reference works in plain torch on whatever the fast ones don't take.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from adaptiverl.controller import SLOT
from adaptiverl.kernels import reference
from adaptiverl.tables import AddressTable, Entry


@dataclass(frozen=True)
class Scalars:
    """What a sweep reads besides its tensors, all on its device.

    Attributes:
        block: The controller's block.
        groups: float64 [groups, 5], see `tables.GroupTable`.
        effective: float64 [groups, 2].
        noise_possible: σ may be above 0 in this run.
        skippable: A gradient scaler may ask for this step to be skipped.
    """

    block: Tensor
    groups: Tensor
    effective: Tensor
    noise_possible: bool
    skippable: bool

    def to(self, device: torch.device) -> Scalars:
        """The same scalars on another device, without waiting."""
        if device == self.block.device:
            return self
        moved = (x.to(device, non_blocking=True) for x in (self.block, self.groups, self.effective))
        return Scalars(*moved, noise_possible=self.noise_possible, skippable=self.skippable)

    def __getattr__(self, name: str) -> Tensor:
        if name in SLOT:
            return self.block[SLOT[name]]
        raise AttributeError(f"Scalars has no field {name!r}")


class Backend(Protocol):
    """One way to do the step."""

    name: str
    addressed: bool
    """Walks an address table; the controller then counts the tensors' steps."""

    def accepts(self, entry: Entry) -> bool:
        """Whether this tensor's layout is one the backend can walk."""
        ...

    def sum_squares(self, bucket: Bucket, scalars: Scalars, out: Tensor, always: bool) -> None:
        """Σ g² per tensor into `out`, float64 [tensors]; may be left out where no noise is on."""
        ...

    def adamw_step(
        self,
        bucket: Bucket,
        scalars: Scalars,
        squares: Tensor,
        gradient_scale: Tensor | None,
    ) -> None:
        """The step, in place; `squares` as `sum_squares` left them."""
        ...


@dataclass
class Bucket:
    """The tensors that one backend takes in one launch."""

    backend: Backend
    device: torch.device
    entries: list[Entry] = field(default_factory=list)
    table: AddressTable | None = None

    def counted_by_controller(self, device: torch.device) -> bool:
        """Whether the controller's launch on `device` advances these tensors' `step` and `mu_product`."""
        return self.backend.addressed and self.device == device

    def rows(self) -> Tensor:
        """The address table of these entries."""
        if self.table is None:
            self.table = AddressTable(self.device)
        return self.table.refresh(self.entries)


class CpuBackend:
    """The compiled sweep: float32 in one piece of memory, all threads, vector instructions."""

    name = "cpu"
    addressed = True

    def accepts(self, entry: Entry) -> bool:
        """Contiguous tensors with float32 moments, the parameter's own layout on all of them."""
        tensors = [entry.param, entry.grad, entry.exp_avg, entry.exp_avg_sq]
        if entry.max_exp_avg_sq is not None:
            tensors.append(entry.max_exp_avg_sq)
        return all(
            t.dtype == torch.float32 and t.is_contiguous() and t.device.type == "cpu" for t in tensors
        )

    def sum_squares(self, bucket: Bucket, scalars: Scalars, out: Tensor, always: bool) -> None:
        """See `Backend`."""
        torch.ops.adaptiverl.sum_squares_(bucket.rows(), scalars.block, out, always)

    def adamw_step(
        self, bucket: Bucket, scalars: Scalars, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`. A C++ operator does not bump version counters, so autograd is told."""
        torch.ops.adaptiverl.adamw_step_(
            bucket.rows(), scalars.block, scalars.groups, scalars.effective, squares, gradient_scale, None
        )
        torch.autograd.graph.increment_version([entry.param for entry in bucket.entries])


class ReferenceBackend:
    """Plain torch: any device, dtype and layout."""

    name = "reference"
    addressed = False

    def accepts(self, entry: Entry) -> bool:
        """Everything."""
        return True

    def sum_squares(self, bucket: Bucket, scalars: Scalars, out: Tensor, always: bool) -> None:
        """See `Backend`."""
        if always or self._noise_on(scalars):
            reference.sum_squares(bucket.entries, out)

    def adamw_step(
        self, bucket: Bucket, scalars: Scalars, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        """See `Backend`."""
        reference.adamw_step(
            bucket.entries,
            scalars,
            scalars.groups,
            scalars.effective,
            squares if self._noise_on(scalars) else None,
            gradient_scale,
            scalars.skippable,
        )

    @staticmethod
    def _noise_on(scalars: Scalars) -> bool:
        # σ is a host's own memory on the CPU; elsewhere reading it would wait for the device.
        if not scalars.noise_possible or scalars.block.device.type != "cpu":
            return scalars.noise_possible
        return scalars.block[SLOT["noise"]].item() != 0


@dataclass(frozen=True)
class Resolution:
    """The backend for a device and dtypes, and why it isn't a faster one."""

    backend: Backend
    reason: str


CPU, REFERENCE = CpuBackend(), ReferenceBackend()


@lru_cache(maxsize=None)
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


def bucket_entries(entries: Sequence[Entry], buckets: dict[object, Bucket]) -> list[Bucket]:
    """Sort entries into buckets, reusing those (and their address tables) of earlier steps."""
    for bucket in buckets.values():
        bucket.entries = []
    for entry in entries:
        device = entry.param.device
        backend = resolve(device.type, entry.param.dtype, entry.grad.dtype).backend
        if not backend.accepts(entry):
            backend = REFERENCE
        key = (backend.name, device)
        if key not in buckets:
            buckets[key] = Bucket(backend, device)
        buckets[key].entries.append(entry)
    return [bucket for bucket in buckets.values() if bucket.entries]


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
    """Where the controller of parameters on `device` lives: beside them where it can, else on the CPU."""
    if device.type == "cuda" and has_cuda_controller():
        return device
    return torch.device("cpu")


def describe() -> str:
    """One line on what this installation can do."""
    controller = "compiled" if has_cuda_controller() else "not compiled (no nvcc when it was built)"
    return f"adaptiverl on torch {torch.__version__}: CPU sweep compiled; CUDA controller {controller}"


load_operators()
