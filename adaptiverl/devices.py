"""Where the numbers that steer a step live, how they get there, and what a device is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


@cache
def numbers_device(device: torch.device) -> torch.device:
    """Where the float64 numbers of tensors on `device` live: there, or else on the CPU.

    MPS has no float64, and some of Intel's GPUs have none: whatever is not known is tried.
    """
    if device.type in ("cpu", "cuda", "meta"):
        return device
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def outside_inference(function: Callable[P, R]) -> Callable[P, R]:
    """Run it outside inference mode: a tensor that is made inside can never be changed outside."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return run


def outside_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """Run it `outside_inference`, and nothing of it recorded for a backward pass."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return function(*args, **kwargs)
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        torch.set_grad_enabled(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_grad_enabled(True)

    return run


def is_capturing(device: torch.device) -> bool:
    """Whether what is asked of the device now goes into a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # torch asks the current device's stream
        return torch.cuda.is_current_stream_capturing()


def has_streams(device: torch.device) -> bool:
    """Whether the device does things later than they are asked for."""
    return device.type == "cuda"


def outlive_stream(tensor: Tensor) -> None:
    """Keep the memory from being used again before the current stream has got this far."""
    if has_streams(tensor.device):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def upload(host: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting."""
    return pinned(host, device).to(device, non_blocking=True)


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """In pinned memory where the device is CUDA: a copy from elsewhere waits for it."""
    return host.pin_memory() if device.type == "cuda" else host


def beside(tensor: Tensor, device: torch.device) -> Tensor:
    """On another device, without waiting unless that is the host, which reads at once."""
    if tensor.device == device:
        return tensor
    return tensor.to(device, non_blocking=device.type != "cpu")


def zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """float64 zeros for numbers about tensors on a device (`numbers_device`)."""
    return torch.zeros(shape, dtype=torch.float64, device=numbers_device(device))
