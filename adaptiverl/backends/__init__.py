"""Who does a parameter's step: the only place that asks "CUDA? Triton? C++?".

A backend works on a bucket of tensors. The C++ and the Triton ones walk an address table; the
reference works in plain torch on whatever the fast ones don't take.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from adaptiverl.backends.base import Backend
from adaptiverl.backends.cpu import CODECS, CpuBackend
from adaptiverl.backends.operators import WHY_PURE
from adaptiverl.backends.placement import capability_of, compiled_for, dotted, why_not_on
from adaptiverl.backends.reference import ReferenceBackend
from adaptiverl.backends.triton import CAPABILITY, DTYPES, TritonBackend, triton_backend
from adaptiverl.kernels.block_tensor import any_rounded

if TYPE_CHECKING:
    from adaptiverl.step.entries import ParameterEntry

logger = logging.getLogger("adaptiverl")

CPU, REFERENCE = CpuBackend(), ReferenceBackend()


@dataclass(frozen=True)
class Resolution:
    """The backend for a device and dtypes, and why it isn't a faster one."""

    backend: Backend
    reason: str


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
    if device.type == "cpu" and WHY_PURE is not None:
        return Resolution(REFERENCE, f"adaptiverl has no compiled part: {WHY_PURE}")
    if device.type == "cpu" and {param_dtype, grad_dtype} <= CODECS.keys():
        return Resolution(CPU, f"compiled pass over {param_dtype}")
    if device.type == "cpu":
        return Resolution(
            REFERENCE,
            f"the compiled pass takes float32 and bfloat16, not {param_dtype} parameters with "
            f"{grad_dtype} gradients",
        )
    if device.type != "cuda":
        return Resolution(REFERENCE, f"no fused pass for device type {device.type!r}")
    if (param_dtype, grad_dtype) not in DTYPES:
        return Resolution(
            REFERENCE,
            f"the Triton pass does not take {param_dtype} parameters with {grad_dtype} gradients",
        )
    return _on_cuda(device)


@cache
def _on_cuda(device: torch.device) -> Resolution:
    """The backend for the dtypes that Triton takes; says once in the log that it isn't Triton."""
    reason = _no_triton_on(device)
    if reason is None:
        return Resolution(triton_backend(), "Triton pass")
    logger.warning("the step of tensors on %s is plain torch, which is slower: %s", device, reason)
    return Resolution(REFERENCE, reason)


def _no_triton_on(device: torch.device) -> str | None:
    """Why the Triton pass can't be used on a CUDA device; None where it can."""
    if torch.version.hip is not None:
        return "the Triton kernels hold PTX, NVIDIA's machine language, and this torch is for ROCm"
    capability = capability_of(device)
    if capability is not None and capability < CAPABILITY:
        return (
            f"the Triton pass needs compute capability {dotted(CAPABILITY)} or higher, "
            f"this card has {dotted(capability)}"
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
    # A random number belongs to an element's place in C order.
    noisy = noisy or entry.stochastic_rounding or any_rounded(entry.slots)
    backend = resolve(entry.param.device, entry.param.dtype, entry.grad.dtype).backend
    return backend if backend.accepts(entry, noisy) else REFERENCE


def puts_back(device: torch.device) -> CpuBackend | TritonBackend | None:
    """Who puts memory on this device back to what it was, by address; None where nobody does."""
    if device.type == "cpu":
        return CPU if WHY_PURE is None else None
    backend = _on_cuda(device).backend if device.type == "cuda" else None
    return backend if isinstance(backend, TritonBackend) else None


def describe() -> str:
    """One line on what this installation can do."""
    device = torch.device("cuda")
    no_controller, no_triton = why_not_on(device), _no_triton_on(device)
    cpu = "compiled" if WHY_PURE is None else f"plain torch ({WHY_PURE})"
    controller = f"compiled for compute capability {compiled_for()}"
    if no_controller is not None:
        controller = f"on the CPU ({no_controller})"
    cuda = "Triton" if no_triton is None else f"plain torch ({no_triton})"
    without = "" if torch.version.cuda or torch.version.hip else " (this torch has no CUDA)"
    return (
        f"adaptiverl on torch {torch.__version__}{without}: CPU pass {cpu}; CUDA controller "
        f"{controller}; CUDA pass {cuda}"
    )
