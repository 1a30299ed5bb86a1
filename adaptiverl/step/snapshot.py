"""The weights of where a search began, kept until it is over (method.md#going-back)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptiverl import devices
from adaptiverl.algorithms import Algorithm
from adaptiverl.backends import puts_back
from adaptiverl.backends.layouts import is_dense
from adaptiverl.codecs import ERROR
from adaptiverl.controller import Controller
from adaptiverl.decision import Decision
from adaptiverl.kernels import reference
from adaptiverl.kernels.block_tensor import stored
from adaptiverl.ranks.dtensors import as_placed, to_local
from adaptiverl.step.state import STEP
from adaptiverl.step.workspace import DeviceTable, Workspace

KEY = "search_start"
"""What a parameter's weights of the search's start are called in a checkpoint's state"""
ALIGNMENT = 16
"""Bytes that each parameter's place in the copy is a multiple of"""

Launch = Callable[[Decision], None]
"""Puts regions back, where the decision says so"""
Groups = Sequence[dict[str, Any]]
States = Mapping[Tensor, dict[str, Any]]


class Snapshot:
    """Copies every parameter before its first step of a search, and lets the device put it back.

    Whether a step goes back is decided where the controller lives, and the host is not told: in
    every step of the search something is launched that puts all back in that one step, and ends at
    once in the others. When the search is known to be over the copy is let go.

    Args:
        algorithm: Whose slots start anew; so do error terms.
        workspace: Owns the copy, and the tables of what is put back.
        on_device: The copy lies beside the parameters, not in the host's memory.
    """

    def __init__(self, algorithm: Algorithm, workspace: Workspace, on_device: bool) -> None:
        self._algorithm, self._workspace, self._on_device = algorithm, workspace, on_device
        self._copies: dict[int, Tensor] = {}
        """By the parameter's place in the optimizer"""
        self._pieces: list[Any] = []
        """What they are called in the workspace"""
        self._tables: dict[torch.device, DeviceTable] = {}
        self._launches: dict[torch.device, Launch] | None = None
        """What puts all back, as long as nothing moves"""
        self._adopted = 0

    def begin_step(
        self, groups: Groups, state: States, controller: Controller, searches: bool
    ) -> None:
        """Before a step is decided: what a checkpoint brought is taken over.

        A search whose start it did not bring starts anew, from the weights that are there.

        Raises:
            RuntimeError: The search is not over, and the step is being captured.
        """
        if controller.adoptions != self._adopted:
            self._adopted = controller.adoptions
            self.forget()
            if not self._adopt(groups, state):
                controller.search_anew()
        if not searches:
            if self._copies:
                self.forget()
        elif devices.is_capturing(controller.device):
            raise RuntimeError(
                "a step cannot be captured in a CUDA graph while Control.find_lr searches: what "
                "its weights go back to is kept until the search is over, and a graph would go on "
                "putting them back. Take steps until knobs()['held'] is 1 and a few more, then "
                "capture; Control.climb can be captured at any time"
            )

    def keep(self, index: int, param: Tensor) -> None:
        """Copy one parameter, as `keep_and_put_back` does, but for its going back."""
        if not self._has(index, param):
            self._copy([(index, param, to_local(param))])

    def keep_and_put_back(
        self,
        groups: Groups,
        state: States,
        decide: Callable[[torch.device], Decision],
        nothing_moved: bool,
    ) -> None:
        """Between a step's decision and its pass: copy what is new, and go back where it says so.

        Args:
            groups: The optimizer's.
            state: The optimizer's; complete for every parameter with a gradient.
            decide: The step's decision on a device.
            nothing_moved: All with a gradient had one in the step before, and all is where it was.
        """
        if self._launches is None or not nothing_moved:
            self._launches = self._prepare(groups, state, decide)
        for device, launch in (self._launches or {}).items():
            launch(decide(device))

    def _prepare(
        self, groups: Groups, state: States, decide: Callable[[torch.device], Decision]
    ) -> dict[torch.device, Launch] | None:
        """Copy what is new, put back what is not walked by address, and say how the rest is.

        Returns:
            What puts back the rest, by device; None where the next step cannot do just that.
        """
        taking_part = [
            (index, param)
            for index, param in _numbered(groups)
            if param.grad is not None or index in self._copies
        ]
        self._copy([(i, p, to_local(p)) for i, p in taking_part if not self._has(i, p)])
        all_walked = all(param.grad is not None for _, param in taking_part)
        regions: dict[torch.device, list[tuple[int, int, int]]] = {}
        for index, param in taking_part:
            for target, source in self._pairs(index, param, state.get(param, {})):
                device = target.device
                if puts_back(device) and is_dense(target):
                    there = 0 if source is None else source.data_ptr()
                    row = (target.data_ptr(), there, target.nbytes)
                    regions.setdefault(device, []).append(row)
                else:
                    all_walked = False
                    reference.rewind(target, source, decide(device).rewind)
        launches = {device: self._launch(device, rows) for device, rows in regions.items()}
        if all_walked:
            return launches
        for device, launch in launches.items():
            launch(decide(device))
        return None

    def forget(self) -> None:
        """Let go of everything: the search is over, or another one's weights come."""
        for piece in self._pieces:
            self._workspace.drop(piece)
        for device in self._tables:
            self._workspace.drop(("rewind", device))
            self._workspace.drop(("rewind chunks", device))
        self._pieces, self._copies, self._tables, self._launches = [], {}, {}, None

    def added_to(self, groups: Groups, keys: Sequence[Any], states: dict[Any, Any]) -> None:
        """Add every copy to its parameter's state, in what is going to be a checkpoint.

        Args:
            groups: The optimizer's.
            keys: What the checkpoint calls its parameters, in order.
            states: A parameter's state by that name; its own entries may be the optimizer's, and
                are replaced rather than changed.
        """
        for (index, param), key in zip(_numbered(groups), keys, strict=True):
            copy = self._copies.get(index)
            if copy is not None:
                # Beside the parameter, in its stream: the host must not read what is on its way.
                here = as_placed(copy.to(to_local(param).device), param)
                states[key] = {**states.get(key, {}), KEY: here}

    def _adopt(self, groups: Groups, state: States) -> bool:
        """Take the copies out of the state that was loaded; whether there were any."""
        found = []
        for index, param in _numbered(groups):
            loaded = state.get(param, {}).pop(KEY, None)
            if loaded is not None:
                found.append((index, param, to_local(loaded)))
        self._copy(found)
        return bool(found)

    def _has(self, index: int, param: Tensor) -> bool:
        copy, local = self._copies.get(index), to_local(param)
        return copy is not None and (copy.shape, copy.dtype) == (local.shape, local.dtype)

    def _copy(self, new: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        """Copy values of parameters: one piece of memory for all that lies alike."""
        alike: dict[tuple[torch.device, torch.device], list[tuple[int, Tensor, Tensor]]] = {}
        for index, param, value in new:
            local = to_local(param).detach()
            alike.setdefault((local.device, self._home(local)), []).append((index, local, value))
        for (device, home), placed in alike.items():
            sizes = [-(-local.nbytes // ALIGNMENT) * ALIGNMENT for _, local, _ in placed]
            bytes_of = {"dtype": torch.uint8, "device": home, "pin_memory": home != device}
            whole = torch.empty(sum(sizes), **bytes_of)  # type: ignore[call-overload]
            self._pieces.append(("search start", home, device, placed[0][0]))
            self._workspace.put(self._pieces[-1], None, device, (whole,))
            for (index, local, value), part in zip(placed, whole.split(sizes), strict=True):
                copy = _laid_out_as(local, part)
                self._copies[index] = copy.copy_(value, non_blocking=home != device)

    def _home(self, local: Tensor) -> torch.device:
        """Where a parameter's copy lies: in the host's memory, where a GPU can read it there."""
        device = local.device
        read_from_afar = devices.has_streams(device) and puts_back(device) and is_dense(local)
        return torch.device("cpu") if read_from_afar and not self._on_device else device

    def _pairs(
        self, index: int, param: Tensor, state: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What goes back, and to what; None: to zero."""
        copy = self._copies.get(index)
        if copy is None:
            return
        yield to_local(param).detach(), copy
        for name in (*self._algorithm.slots, ERROR, STEP):
            value = state.get(name)
            if isinstance(value, Tensor):
                yield stored(to_local(value)), None

    def _launch(self, device: torch.device, rows: list[tuple[int, int, int]]) -> Launch:
        """How these regions of a device are put back."""
        table = self._tables.get(device)
        if table is None:
            table = self._tables[device] = DeviceTable(self._workspace, ("rewind", device), device)
        wanted = torch.tensor(rows, dtype=torch.int64, device="cpu")
        if table.host is None or not torch.equal(table.host, wanted):
            table.write(wanted)
        backend, regions, sizes = puts_back(device), table.rows, tuple(row[2] for row in rows)
        assert backend is not None
        assert regions is not None

        def hold(build: Callable[[Sequence[int]], Tensor]) -> Tensor:
            name = "rewind chunks", device
            make = lambda: (devices.upload(build(sizes), device),)  # noqa: E731
            return self._workspace.hold(name, sizes, device, make)[0]

        return partial(backend.rewind, regions, hold)


def _laid_out_as(local: Tensor, memory: Tensor) -> Tensor:
    """A tensor in these bytes whose elements lie as another's, or in C order if that has gaps."""
    copy = memory[: local.nbytes].view(local.dtype)
    if not is_dense(local):
        return copy.view(local.shape)
    return copy.as_strided(local.shape, local.stride())


def _numbered(groups: Groups) -> Iterator[tuple[int, Tensor]]:
    yield from enumerate(param for group in groups for param in group["params"])
