"""Where the numbers that steer a step live: beside the tensors, or where there is float64."""

from __future__ import annotations

from functools import cache

import torch


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
