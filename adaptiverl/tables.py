"""Which tensors lie where: the address table that a fused sweep walks, and the groups' numbers.

Addresses identify tensors, never `id()`: `.data` and `.to_local()` make new wrappers every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

COLUMNS = (
    "param",
    "grad",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "step",
    "mu_product",
    "numel",
    "group",
    "index",
    "offset",
    "logical_numel",
    "maximize",
)
"""A row of the address table, in the order of `TensorRow` in csrc/tables.h."""

GROUP_COLUMNS = ("lr", "beta1", "beta2", "eps", "weight_decay")
"""AdamW's names for a row of the group table; SGD keeps its own five numbers there."""


@dataclass(slots=True, kw_only=True)
class ParameterEntry:
    """One parameter of this step, and what every optimizer has of it."""

    param: Tensor
    grad: Tensor
    step: Tensor
    group: int
    """Row of the group table"""
    index: int
    """The parameter's place in the optimizer: the noise's key (decisions.md 17)"""
    offset: int
    """The first element's place in the whole logical tensor"""
    logical_numel: int
    """Elements of the whole logical tensor"""
    maximize: bool

    def moments(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """State of the parameter's shape, for the columns `exp_avg` to `max_exp_avg_sq`."""
        raise NotImplementedError

    def momentum_product(self) -> Tensor | None:
        """For the column `mu_product`."""
        return None

    def shaped(self) -> list[Tensor]:
        """Everything that a sweep walks beside each other."""
        return [self.param, self.grad, *(m for m in self.moments() if m is not None)]

    def row(self) -> tuple[int, ...]:
        """This entry's line of the address table, in the order of `COLUMNS`."""
        return (
            self.param.data_ptr(),
            self.grad.data_ptr(),
            *map(_address, self.moments()),
            self.step.data_ptr(),
            _address(self.momentum_product()),
            self.param.numel(),
            self.group,
            self.index,
            self.offset,
            self.logical_numel,
            self.maximize,
        )


@dataclass(slots=True, kw_only=True)
class Entry(ParameterEntry):
    """One parameter of an AdamW step."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    mu_product: Tensor

    def moments(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See `ParameterEntry`."""
        return self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq

    def momentum_product(self) -> Tensor | None:
        """See `ParameterEntry`."""
        return self.mu_product


@dataclass(slots=True, kw_only=True)
class SGDEntry(ParameterEntry):
    """One parameter of an SGD step; the buffer goes into the column `exp_avg`."""

    momentum_buffer: Tensor | None

    def moments(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See `ParameterEntry`."""
        return self.momentum_buffer, None, None


ENTRIES: dict[str, type[ParameterEntry]] = {"adamw_step": Entry, "sgd_step": SGDEntry}
"""What each algorithm of a backend has of a parameter"""


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class AddressTable:
    """One sweep's rows, an int64 tensor [tensors, 13], rebuilt only when a number in it changes."""

    def __init__(self, device: torch.device) -> None:
        self.rows = torch.empty((0, len(COLUMNS)), dtype=torch.int64, device=device)
        self._written: list[tuple[int, ...]] = []

    def refresh(self, entries: Sequence[ParameterEntry]) -> Tensor:
        """The table for these entries; the same tensor as long as nothing moved."""
        wanted = [entry.row() for entry in entries]
        if wanted != self._written:
            self.rows = _upload(torch.tensor(wanted, dtype=torch.int64), self.rows.device)
            self._written = wanted
        return self.rows


@dataclass
class Bucket:
    """The tensors that one backend takes in one launch."""

    backend: Any
    """A `dispatch.Backend`"""
    device: torch.device
    entries: list[Any] = field(default_factory=list)
    table: AddressTable | None = None

    def rows(self) -> Tensor:
        """The address table of these entries."""
        if self.table is None:
            self.table = AddressTable(self.device)
        return self.table.refresh(self.entries)


class Buckets:
    """Sorts a step's entries by who takes them; the buckets and their tables outlive the step."""

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        self._choose = choose
        self._buckets: dict[tuple[str, torch.device], Bucket] = {}

    def sort(self, entries: Iterable[ParameterEntry]) -> list[Bucket]:
        """The buckets that have something to do, always in the same order."""
        for bucket in self._buckets.values():
            bucket.entries = []
        for entry in entries:
            backend = self._choose(entry)
            key = (backend.name, entry.param.device)
            if key not in self._buckets:
                self._buckets[key] = Bucket(backend, entry.param.device)
            self._buckets[key].entries.append(entry)
        return [bucket for bucket in self._buckets.values() if bucket.entries]


class GroupTable:
    """Every group's numbers on the device, `GROUP_COLUMNS`; written only where changed.

    Attributes:
        numbers: float64 [groups, 5], as the user or a scheduler set them.
        effective: float64 [groups, 2], lr and momentum of this step; the controller writes it.
    """

    def __init__(
        self, device: torch.device, numbers_of: Callable[[dict[str, Any]], Sequence[Any]]
    ) -> None:
        self.device = device
        self._numbers_of = numbers_of
        self._written: list[tuple[float | None, ...]] = []
        self.numbers = torch.empty((0, len(GROUP_COLUMNS)), dtype=torch.float64, device=device)
        self.effective = torch.empty((0, 2), dtype=torch.float64, device=device)

    def refresh(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take over the groups' entries. A number that lives on a device never visits the host."""
        if len(groups) != len(self._written):
            shape = (len(groups), len(GROUP_COLUMNS))
            self.numbers = torch.zeros(shape, dtype=torch.float64, device=self.device)
            self.effective = torch.zeros((len(groups), 2), dtype=torch.float64, device=self.device)
            self._written = [(None,) * len(GROUP_COLUMNS)] * len(groups)
        for g, group in enumerate(groups):
            values = self._numbers_of(group)
            known = tuple(None if _on_accelerator(x) else float(x) for x in values)
            if None in known:
                self._copy_row(g, values)
            elif known != self._written[g]:
                row = torch.tensor(known, dtype=torch.float64)
                self.numbers[g].copy_(_upload(row, self.device))
            self._written[g] = known

    @property
    def any_lr(self) -> bool:
        """Some group's learning rate is above 0, or on a device, where the host does not look."""
        return any(row[0] is None or row[0] != 0 for row in self._written)

    def _copy_row(self, g: int, values: Sequence[Any]) -> None:
        for column, value in enumerate(values):
            if _on_accelerator(value):
                self.numbers[g, column].copy_(value.detach().reshape(()))
            elif float(value) != self._written[g][column]:
                self.numbers[g, column].fill_(float(value))


def _on_accelerator(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _upload(host: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting: staged in pinned memory where the device is CUDA."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
