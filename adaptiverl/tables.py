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


@dataclass(slots=True)
class Entry:
    """One parameter of this step, and what belongs to it."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None
    step: Tensor
    mu_product: Tensor
    group: int
    """Row of the group table"""
    index: int
    """The parameter's place in the optimizer: the noise's key (decisions.md 17)"""
    offset: int
    """The first element's place in the whole logical tensor"""
    logical_numel: int
    """Elements of the whole logical tensor"""
    maximize: bool

    def row(self) -> tuple[int, ...]:
        """This entry's line of the address table, in the order of `COLUMNS`."""
        top = self.max_exp_avg_sq
        return (
            self.param.data_ptr(),
            self.grad.data_ptr(),
            self.exp_avg.data_ptr(),
            self.exp_avg_sq.data_ptr(),
            0 if top is None else top.data_ptr(),
            self.step.data_ptr(),
            self.mu_product.data_ptr(),
            self.param.numel(),
            self.group,
            self.index,
            self.offset,
            self.logical_numel,
            self.maximize,
        )


class AddressTable:
    """One sweep's rows, an int64 tensor [tensors, 13], rebuilt only when a number in it changes."""

    def __init__(self, device: torch.device) -> None:
        self.rows = torch.empty((0, len(COLUMNS)), dtype=torch.int64, device=device)
        self._written: list[tuple[int, ...]] = []

    def refresh(self, entries: Sequence[Entry]) -> Tensor:
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
    entries: list[Entry] = field(default_factory=list)
    table: AddressTable | None = None

    def rows(self) -> Tensor:
        """The address table of these entries."""
        if self.table is None:
            self.table = AddressTable(self.device)
        return self.table.refresh(self.entries)


class Buckets:
    """Sorts a step's entries by who takes them; the buckets and their tables outlive the step."""

    def __init__(self, choose: Callable[[Entry], Any]) -> None:
        self._choose = choose
        self._buckets: dict[tuple[str, torch.device], Bucket] = {}

    def sort(self, entries: Iterable[Entry]) -> list[Bucket]:
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
    """Every group's lr, β₁, β₂, eps and weight decay on the device; written only where changed.

    Attributes:
        numbers: float64 [groups, 5], as the user or a scheduler set them.
        effective: float64 [groups, 2], lr and momentum of this step; the controller writes it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
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
            beta1, beta2 = group["betas"]
            values = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
            known = tuple(None if _on_accelerator(x) else float(x) for x in values)
            if None in known:
                self._copy_row(g, values)
            elif known != self._written[g]:
                row = torch.tensor(known, dtype=torch.float64)
                self.numbers[g].copy_(_upload(row, self.device))
            self._written[g] = known

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
