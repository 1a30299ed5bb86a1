"""The controller in the optimizer's groups, and the controller beside the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl.backends.layouts import is_fake
from adaptiverl.backends.placement import controller_device
from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.log import Log
from adaptiverl.migrations import current_layout

Groups = Sequence[dict[str, Any]]

STATE_KEY = "adaptive_state"
"""Where every group keeps the controller: the one home that every checkpoint keeps"""


class Handle(str):
    """The controller as a group has it: text to look at and to compare, its memory to save.

    A group stays a dictionary of hyperparameters that JSON takes and that equals another. Who
    pickles or deep-copies a group, as checkpoint libraries do, has the memory itself.

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


def loaded_memory(group: dict[str, Any], controller: Controller) -> Any:
    """A memory that is not its controller's own: a load put it there; None if there is none."""
    entry = group.get(STATE_KEY)
    return None if _is_own(entry, controller) else memory_in(entry)


def controller_of(controllers: Sequence[Controller], place: int) -> Controller:
    """Who decides for the group at this place: its own controller, or the one of all."""
    return controllers[place if len(controllers) > 1 else 0]


def check_controllers(groups: Groups, controllers: Sequence[Controller], control: Control) -> None:
    """Every group has its controller.

    Raises:
        RuntimeError: Groups were added, or taken away, behind the optimizer's back.
    """
    if control.groups == "own" and len(groups) != len(controllers):
        raise RuntimeError(
            f"Control(groups='own') has {len(controllers)} controllers for {len(groups)} parameter "
            "groups, because param_groups was changed by hand: use add_param_group, or "
            "Control(groups='one'); nothing was changed"
        )


def device_beside(groups: Groups) -> torch.device | None:
    """Where the controller of these parameters belongs; None without parameters."""
    for group in groups:
        for param in group["params"]:
            return controller_device(param.device)
    return None


def settle(groups: Groups, controllers: Sequence[Controller], log: Log) -> None:
    """The controllers take over loaded memories, and go where the parameters have gone.

    A group that holds another memory was loaded: it is copied into its controller's own, whose
    handle the group holds afterwards; addresses survive.

    Raises:
        ValueError: A loaded memory is damaged, or of an unknown layout.
    """
    _adopt_loaded(groups, controllers, log)
    device = device_beside(groups)
    if device is not None:
        for controller in controllers:
            if device != controller.device:
                controller.to(device)
    hold(groups, controllers)


def _adopt_loaded(groups: Groups, controllers: Sequence[Controller], log: Log) -> None:
    """Each controller the memory of its group, or the one of all that of the first."""
    if all(
        _is_own(group.get(STATE_KEY), controller_of(controllers, place))
        for place, group in enumerate(groups)
    ):
        return  # as in nearly every step
    loaded = [
        loaded_memory(group, controller_of(controllers, place))
        for place, group in enumerate(groups)
    ]
    loaded = [None if is_fake(memory) else memory for memory in loaded]  # which says nothing
    found = [memory for memory in loaded if memory is not None]
    if all(memory is None for memory in loaded[: len(controllers)]):
        return
    for memory in found:  # before any of them is taken
        current_layout(memory)
    several = any(_text(memory) != _text(found[0]) for memory in found)
    # One may be another of these controllers' own.
    memories = [None if memory is None else memory.clone() for memory in loaded]
    log.tell_of_controllers(several, found, len(controllers), len(groups))
    for place, (controller, memory) in enumerate(zip(controllers, memories, strict=False)):
        if memory is not None:
            controller.adopt(memory, as_one=place > 0 and not several)
            bounds = controller.limits.lr_min, controller.limits.lr_max
            log.resume(controller.memory, bounds, place)


def _text(memory: Tensor) -> str:
    """What it says, NaN being equal to NaN."""
    return repr(memory.tolist())


def hold(groups: Groups, controllers: Sequence[Controller]) -> None:
    """Every group has its controller's handle."""
    handle: Handle | None = None
    for place, group in enumerate(groups):
        controller, entry = controller_of(controllers, place), group.get(STATE_KEY)
        if isinstance(entry, Handle) and entry.controller is controller:
            handle = entry
        elif handle is not None and handle.controller is controller:
            group[STATE_KEY] = handle
        else:
            handle = group[STATE_KEY] = Handle(controller)


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
