"""The tensors that one backend takes in one launch, and the address table that it walks."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptiverl import devices
from adaptiverl.codecs import dtype_of
from adaptiverl.kernels.sums import ALIGNMENT
from adaptiverl.layout import Product, names
from adaptiverl.step.entries import (
    COLUMNS,
    COUNTERS,
    ERROR_TERMS,
    GRAD,
    MOMENTS,
    NUMEL,
    PARAM,
    ParameterEntry,
)
from adaptiverl.step.overlaps import Spans
from adaptiverl.step.workspace import NEEDS_A_STEP, DeviceTable, Workspace

Home = tuple[int, torch.device]
_COUNTER_BYTES = torch.tensor([4, 8 * len(names(Product))], device="cpu")
"""Of `step`, a float32, and of `mu_product`, a `layout.Product`"""


class AddressTable:
    """One sweep's rows, an int64 tensor [tensors, 14], made anew only when a number in it changes.

    Args:
        device: Where the rows lie.
        workspace: Owns them.
        place: What they are called there.

    Attributes:
        rows: The table on the device.
        host: What is in it.
    """

    def __init__(self, device: torch.device, workspace: Workspace, place: Hashable) -> None:
        self.host = torch.empty((0, len(COLUMNS)), dtype=torch.int64, device="cpu")
        self.rows = self.host.to(device)
        self._device = device
        self._numbers: memoryview | None = None
        """What a table on the host is made of"""
        self._table = DeviceTable(workspace, place, device)

    def refresh(self, wanted: Tensor) -> Tensor:
        """The table that says this; the same tensor as long as nothing moved.

        Args:
            wanted: int64 [tensors, 14] on the host; not to be changed afterwards.

        Raises:
            RuntimeError: The stream is capturing, and the table is not the last step's with other
                addresses.
        """
        if torch.equal(wanted, self.host):
            self._table.prepare()
            return self.rows
        if devices.is_capturing(self._device):
            if _sizes_differ(wanted, self.host):
                raise RuntimeError(NEEDS_A_STEP)
            return self._table.record(wanted)
        self.rows, self.host = self._table.write(wanted), wanted
        self._numbers = None if devices.has_streams(self._device) else numbers_in(self.rows)
        return self.rows

    def with_gradients(self, addresses: array[int]) -> Tensor:
        """The same table but for the gradients' addresses.

        On the host, which does everything at once, it is the same memory.
        """
        if self._numbers is not None:
            self._numbers[GRAD :: len(COLUMNS)] = memoryview(addresses)
            return self.rows
        moved = torch.frombuffer(addresses, dtype=torch.int64)
        if torch.equal(self.host[:, GRAD], moved):
            return self.refresh(self.host)
        wanted = self.host.clone()
        wanted[:, GRAD] = moved
        return self.refresh(wanted)


def _sizes_differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a[:, NUMEL], b[:, NUMEL])


def numbers_in(table: Tensor) -> memoryview:
    """The numbers of an int64 table on the host, in one row; the tensor is to outlive them."""
    view = (ctypes.c_int64 * table.numel()).from_address(table.data_ptr())
    return memoryview(view).cast("B").cast("q")


@dataclass(eq=False)
class Bucket:
    """The tensors that one backend takes in one launch.

    Attributes:
        backend: A `backends.Backend`.
        device: Of the tensors.
        variant: What else one launch of that backend must agree in.
        algorithm: The name of the update rule.
        workspace: Owns what the launch reads besides the tensors.
        owner: Whose plan it is of, where several share the workspace.
        place: Of the controller that decides for them: their group's, or 0 where one does for all.
        entries: One per tensor, in a step that made them, and only as long as it takes: between
            steps nothing here keeps a tensor alive.
        params: The parameters, or this rank's shards of them, likewise.
        indices: Their places in the optimizer.
        elements: Of each, those that lie here.
        elements_in_all: Their sum.
        squares: float64 [tensors], a place for one sum per tensor. Never cleared: who reads a sum
            has had it written in the same step.
    """

    backend: Any
    device: torch.device
    variant: tuple[Any, ...] = ()
    algorithm: str = "adamw"
    workspace: Workspace = field(default_factory=Workspace)
    owner: tuple[Hashable, ...] = ()
    place: int = 0
    entries: list[Any] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)
    elements_in_all: int = 0
    squares: Tensor = field(init=False)
    _sums: Tensor | None = None
    _table: AddressTable | None = None
    _rows: Tensor | None = None
    _host_rows: Tensor | None = None
    _scratch: tuple[Tensor, ...] = ()
    _scratch_of: Tensor | None = None

    @property
    def home(self) -> Home:
        """Which decision its launch reads: of which controller, on which device."""
        return self.place, self.device

    @property
    def sums(self) -> Tensor:
        """float64 [tensors, 3]: the places for Σ g·u, Σ g², Σ u² of each tensor's step.

        Made when first asked for, and kept as long as there are as many tensors. Never cleared: a
        skipped step leaves them as they are.
        """
        if self._sums is None or len(self._sums) != len(self.squares):
            shape = (len(self.squares), ALIGNMENT.width)
            (self._sums,) = self.workspace.hold(
                self._place("sums"),
                shape,
                self.device,
                lambda: (devices.zeros(shape, self.device),),
            )
        return self._sums

    def rows(self) -> Tensor:
        """The address table of these entries."""
        if self._rows is None:
            if self._table is None:
                self._table = AddressTable(self.device, self.workspace, self._place("rows"))
            self._rows = self._table.refresh(self.host_rows())
        return self._rows

    def host_rows(self) -> Tensor:
        """What the address table of these entries says, int64 [tensors, 14] on the host."""
        if self._host_rows is None:
            rows = [entry.row() for entry in self.entries]
            self._host_rows = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return self._host_rows

    def spans(self) -> Spans:
        """The memory that a sweep over these entries reads and writes."""
        rows, first = self.host_rows(), self.entries[0]
        slots = (slot for entry in self.entries for slot in entry.slots if slot is not None)
        itemsizes = [first.param.element_size(), first.grad.element_size()]
        # Of blocks, whose scales lie behind in the same piece of memory, the codes.
        itemsizes += [max((dtype_of(slot).itemsize for slot in slots), default=0)]
        numel = rows[:, NUMEL, None]
        addresses = [rows[:, PARAM, None], rows[:, GRAD, None], rows[:, MOMENTS]]
        lengths = [numel * i for i in itemsizes]
        lengths[-1] = lengths[-1].expand_as(addresses[-1])
        addresses += [rows[:, COUNTERS], rows[:, ERROR_TERMS, None]]
        lengths += [_COUNTER_BYTES.expand_as(addresses[3]), numel]
        begins = torch.cat(addresses, dim=1)
        ends = (begins + torch.cat(lengths, dim=1)) * (begins != 0)  # 0 where there is nothing
        written = torch.tensor([i != 1 for i in range(begins.shape[1])], device="cpu")
        return Spans(begins, ends, written)

    def scratch(self, build: Callable[[list[int]], tuple[Tensor, ...]]) -> Any:
        """What a backend keeps beside the table; built from the tensors' sizes when one changes."""
        self.rows()
        assert self._table is not None
        table = self._table.host
        if self._scratch_of is not table:
            if self._scratch_of is None or _sizes_differ(self._scratch_of, table):
                sizes = table[:, NUMEL].tolist()
                self._scratch = self.workspace.hold(
                    self._place("scratch"), tuple(sizes), self.device, lambda: build(sizes)
                )
            self._scratch_of = table
        return self._scratch

    def _place(self, what: str) -> Hashable:
        return what, self.backend.name, self.device, self.variant, *self.owner

    def upload(self, host: Tensor) -> Tensor:
        """To this bucket's device without waiting."""
        return devices.upload(host, self.device)

    def start(self) -> None:
        """A step's entries are about to be put here."""
        self.entries, self.params, self.indices = [], [], []
        self.elements, self.elements_in_all = [], 0
        self._rows = self._host_rows = None

    def take(self, entry: ParameterEntry) -> None:
        """One of this step's tensors is this bucket's."""
        self.entries.append(entry)
        self.params.append(entry.param)
        self.indices.append(entry.index)
        self.elements.append(entry.param.numel() * (2 if entry.param.is_complex() else 1))
        self.elements_in_all += self.elements[-1]

    def move_gradients(self, addresses: array[int]) -> None:
        """The same tensors, their gradients at these addresses."""
        assert self._table is not None
        self._rows = self._table.with_gradients(addresses)

    def described(self, *columns: int) -> list[list[int]]:
        """These columns of the address table, row by row."""
        self.rows()
        assert self._table is not None
        return self._table.host[:, list(columns)].tolist()

    def release(self) -> None:
        """The step is over: whoever owns the tensors may free them."""
        self.entries, self.params, self._host_rows = [], [], None
