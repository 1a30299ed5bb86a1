"""The controller's memory in the optimizer's groups, and the controller beside the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl.backends.placement import controller_device
from adaptiverl.controller import Controller
from adaptiverl.log import Log

Groups = Sequence[dict[str, Any]]

STATE_KEY = "adaptive_state"
"""Where every group keeps the controller's memory: the one home that every checkpoint keeps."""


def loaded_memory(groups: Groups, controller: Controller) -> Tensor | None:
    """A memory that is not the controller's own: a load put it there."""
    memory = groups[0].get(STATE_KEY) if groups else None
    return None if memory is controller.memory else memory


def device_beside(groups: Groups) -> torch.device | None:
    """Where the controller of these parameters belongs; None without parameters."""
    for group in groups:
        for param in group["params"]:
            return controller_device(param.device)
    return None


def settle(groups: Groups, controller: Controller, log: Log) -> None:
    """The controller takes over a loaded memory, and goes where the parameters have gone.

    A group that holds another memory was loaded: it is copied into the controller's own, which all
    groups hold afterwards; addresses survive.

    Raises:
        ValueError: The loaded memory is damaged, or of an unknown layout.
    """
    memory = loaded_memory(groups, controller)
    if memory is not None:
        controller.adopt(memory)
        log.announcements.resume(controller.memory)
    device = device_beside(groups)
    if device is not None and device != controller.device:
        controller.to(device)
    for group in groups:
        group[STATE_KEY] = controller.memory
