"""Where the controller lives: beside the parameters if it was compiled for their device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import torch

from adaptiverl.backends.operators import COMPILED, WHY_PURE, say_what_is_slower

logger = logging.getLogger("adaptiverl")


def has_cuda_controller() -> bool:
    """Whether the controller was compiled for CUDA."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("adaptiverl::advance_", "CUDA")


@cache
def cuda_architectures() -> tuple[tuple[int, int], ...]:
    """The compute capabilities that the CUDA controller was compiled for, the lowest first."""
    listed = () if COMPILED is None else COMPILED.cuda_architectures.split()
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
    say_what_is_slower()
    if device.type == "cpu":
        return device
    reason = why_not_on(device)
    if reason is None:
        return device
    logger.log(
        logging.WARNING if device.type == "cuda" else logging.INFO,
        "the controller of parameters on %s is on the CPU, so every loss is waited for: %s",
        device,
        reason,
    )
    return torch.device("cpu")


def why_not_on(device: torch.device) -> str | None:
    """Why the controller can't live on this device; None where it can."""
    if device.type != "cuda":
        return f"there is none for device type {device.type!r}"
    if torch.version.hip is not None:
        return "it is written for CUDA, and this torch is for ROCm"
    if WHY_PURE is not None:
        return f"adaptiverl has no compiled part: {WHY_PURE}"
    if not has_cuda_controller():
        return "it was built without nvcc; with the CUDA toolkit installed, build it again"
    capability = capability_of(device)
    if capability is not None and not runs_on(capability, cuda_architectures()):
        return (
            f"it was compiled for compute capability {compiled_for()}, this card has "
            f"{dotted(capability)}"
        )
    return None


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """A card's compute capability; None where there is no card to ask."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def dotted(capability: tuple[int, int]) -> str:
    """A compute capability as NVIDIA writes it."""
    return "{}.{}".format(*capability)


def compiled_for() -> str:
    """The compute capabilities that the CUDA controller runs on, in words."""
    return f"{', '.join(map(dotted, cuda_architectures()))} and later"
