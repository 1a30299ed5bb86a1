"""The memory of an optimizer that kernels read by address: who owns it, and how long it stays.

One rule: what a CUDA graph has captured stays where it is, and says what it said, for as long as
the graph may replay. Everything else goes when something takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptiverl import devices

NEEDS_A_STEP = (
    "the tensors and groups of a step that is captured in a CUDA graph must be those of the step "
    "before, but for addresses and numbers, and these may change once per capture: take a step "
    "with the same parameters and gradients before you capture"
)


class Piece(NamedTuple):
    """Tensors that are made and replaced together."""

    kind: Hashable
    tensors: tuple[Tensor, ...]


class Captured(NamedTuple):
    """What one graph reads."""

    has_ended: Callable[[], bool]
    """Whether the graph is gone, and its last replay done"""
    tensors: list[Tensor]


class Workspace:
    """Owns the tables, sums and scratch of one optimizer.

    A capture makes none of them: it finds what the step before it made, so that nothing is booked
    as done which the graph only does when it replays. What a graph has captured is kept until the
    graph is gone; CUDA tells when, where the controller is compiled for it, and otherwise it is
    kept as long as the optimizer.

    Steps may run on several streams, one after another. What is replaced may still be read by the
    last step, so its memory is not used again before the current stream, which comes after that
    step, has got this far.
    """

    def __init__(self) -> None:
        self._pieces: dict[Hashable, Piece] = {}
        self._devices: dict[torch.device, None] = {}
        self._captured: list[Captured] = []
        self._captured_since = False
        """There was a capture since graphs were last looked after"""

    def hold(
        self,
        place: Hashable,
        kind: Hashable,
        device: torch.device,
        make: Callable[[], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """The memory at this place, made when first asked for and where its kind has changed.

        Args:
            place: What it is for.
            kind: What it must agree in to be used again, its size say.
            device: Where it lies.
            make: Makes it.

        Raises:
            RuntimeError: It would have to be made, and the stream is capturing.
        """
        piece = self._pieces.get(place)
        if piece is not None and piece.kind == kind:
            return piece.tensors
        if devices.is_capturing(device):
            raise RuntimeError(f"there is no memory yet for {place}: {NEEDS_A_STEP}")
        self._forget_graphs()
        return self.put(place, kind, device, make())

    def put(
        self, place: Hashable, kind: Hashable, device: torch.device, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Hold these from now on, instead of what was held there; never in a capture."""
        self.drop(place)
        self._pieces[place] = Piece(kind, tensors)
        self._devices[device] = None
        return tensors

    def drop(self, place: Hashable) -> None:
        """Let go of what is held there, if anything is."""
        piece = self._pieces.pop(place, None)
        if piece is not None:
            for tensor in piece.tensors:
                devices.outlive_stream(tensor)

    def held(self) -> list[Tensor]:
        """All tensors that are held now, but for those that only graphs read."""
        return [tensor for piece in self._pieces.values() for tensor in piece.tensors]

    def begin_step(self) -> None:
        """If this step is being captured, keep for its graph all that it may read."""
        capturing = [device for device in self._devices if devices.is_capturing(device)]
        for device in capturing:
            self.keep(device, [t for piece in self._pieces.values() for t in piece.tensors])
        if self._captured_since and not capturing:
            self._forget_graphs()

    def keep(self, device: torch.device, tensors: list[Tensor]) -> None:
        """Keep these for the graph that is being captured on a device."""
        self._captured.append(Captured(watch_capture(device), tensors))
        self._captured_since = True

    def _forget_graphs(self) -> None:
        # Never in a capture: freeing pinned memory records an event on the streams that used it,
        # and one that was recorded in a capture cannot be asked for.
        self._captured_since = False
        self._captured = [graph for graph in self._captured if not graph.has_ended()]


class DeviceTable:
    """A table that the host writes and kernels read.

    What the host has written is never changed by it: other numbers are another table, in other
    memory, so that a graph goes on with those that it was captured with. A table that is written
    in a capture is the graph's own: every replay writes it again, and nobody else reads it.

    Attributes:
        rows: The table on the device.
        host: What the host wrote there; None before the first table.
    """

    def __init__(self, workspace: Workspace, place: Hashable, device: torch.device) -> None:
        self.rows: Tensor | None = None
        self.host: Tensor | None = None
        self._workspace, self._place, self._device = workspace, place, device
        self._staging: Tensor | None = None

    def write(self, wanted: Tensor) -> Tensor:
        """A table that says this, from now on the one in `rows`; never in a capture.

        Args:
            wanted: On the host; not to be changed afterwards.
        """
        self.rows, self.host = devices.upload(wanted, self._device), wanted
        self._workspace.put(self._place, None, self._device, (self.rows,))
        self.prepare()
        return self.rows

    def prepare(self) -> None:
        """Have at hand what a capture needs: pinned memory cannot be had while one is going on."""
        if self.host is None or not devices.has_streams(self._device):
            return
        if self._staging is None or self._staging.shape != self.host.shape:
            if not devices.is_capturing(self._device):
                self._staging = devices.pinned(torch.empty_like(self.host), self._device)

    def record(self, wanted: Tensor) -> Tensor:
        """A table that says this whenever the graph replays that is now being captured.

        Raises:
            RuntimeError: No step before had a table of this shape, or the capture has recorded one.
        """
        staging = self._staging
        if staging is None or staging.shape != wanted.shape:
            raise RuntimeError(NEEDS_A_STEP)
        self._staging = None
        self._workspace.keep(self._device, [staging])
        # In the graph's own memory, which needs no keeping: it goes with the graph.
        rows = torch.empty_like(wanted, device=self._device)
        return rows.copy_(staging.copy_(wanted), non_blocking=True)


def watch_capture(device: torch.device) -> Callable[[], bool]:
    """How to ask whether the graph that is now being captured can no longer replay."""
    operators = torch.ops.adaptiverl
    watch = 0
    if hasattr(operators, "watch_capture"):
        watch = operators.watch_capture(torch.cuda.current_stream(device).cuda_stream)
    if watch == 0:
        return lambda: False  # nobody will tell
    return lambda: bool(operators.capture_has_ended(watch))
