"""The controller in the optimizer's groups, and the controller beside the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl.backends.layouts import is_fake
from adaptiverl.backends.placement import controller_device
from adaptiverl.controller import Controller
from adaptiverl.log import Log

Groups = Sequence[dict[str, Any]]

STATE_KEY = "adaptive_state"
"""Where every group keeps the controller: the one home that every checkpoint keeps"""


class Handle(str):
    """The controller as a group has it: text to look at and to compare, its memory to save.

    A group stays a dictionary of hyperparameters that JSON takes and that equals another. Who
    pickles or deep-copies a group, as checkpoint libraries do, has the memory: float64 [53].

    Args:
        controller: The optimizer's.
    """

    __slots__ = ("controller",)

    controller: Controller

    def __new__(cls, controller: Controller) -> Handle:
        """The text is the same whatever the controller has seen."""
        handle = super().__new__(cls, f"controller of {len(controller.memory)} numbers")
        handle.controller = controller
        return handle

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.controller.memory.__reduce_ex__(protocol)

    def __deepcopy__(self, _: Any) -> Tensor:
        return self.controller.memory.clone()

    def __copy__(self) -> Handle:
        return self


def memory_in(entry: Any) -> Any:
    """What a group's entry says: a handle's memory, and whatever else a load put there as it is."""
    return entry.controller.memory if isinstance(entry, Handle) else entry


def loaded_memory(groups: Groups, controller: Controller) -> Any:
    """A memory that is not the controller's own: a load put it there; None if there is none."""
    entry = groups[0].get(STATE_KEY) if groups else None
    return None if _is_own(entry, controller) else memory_in(entry)


def device_beside(groups: Groups) -> torch.device | None:
    """Where the controller of these parameters belongs; None without parameters."""
    for group in groups:
        for param in group["params"]:
            return controller_device(param.device)
    return None


def settle(groups: Groups, controller: Controller, log: Log) -> None:
    """The controller takes over a loaded memory, and goes where the parameters have gone.

    A group that holds another memory was loaded: it is copied into the controller's own, whose
    handle all groups hold afterwards; addresses survive.

    Raises:
        ValueError: The loaded memory is damaged, or of an unknown layout.
    """
    memory = loaded_memory(groups, controller)
    if memory is not None and not is_fake(memory):  # which says nothing
        controller.adopt(memory)
        log.resume(controller.memory, (controller.limits.lr_min, controller.limits.lr_max))
    device = device_beside(groups)
    if device is not None and device != controller.device:
        controller.to(device)
    hold(groups, controller)


def hold(groups: Groups, controller: Controller) -> None:
    """Every group has the controller's handle."""
    handle: Handle | None = None
    for group in groups:
        entry = group.get(STATE_KEY)
        if isinstance(entry, Handle) and entry.controller is controller:
            handle = entry
        else:
            handle = group[STATE_KEY] = handle or Handle(controller)


def export(groups: Groups) -> None:
    """Groups of a checkpoint get the memory itself in the handle's place."""
    for group in groups:
        if STATE_KEY in group:
            group[STATE_KEY] = memory_in(group[STATE_KEY])


def _is_own(entry: Any, controller: Controller) -> bool:
    """Its handle; or the text alone, which is what JSON makes of it."""
    if isinstance(entry, Handle):
        return entry.controller is controller
    return isinstance(entry, str) and entry == Handle(controller)
