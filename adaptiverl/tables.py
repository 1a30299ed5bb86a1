"""Which tensors lie where: the address table that a fused sweep walks, and the groups' numbers.

Addresses identify tensors, never `id()`: `.data` and `.to_local()` make new wrappers every step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from adaptiverl.devices import numbers_device

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
GRAD, NUMEL = COLUMNS.index("grad"), COLUMNS.index("numel")

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

    def drop_gradient(self) -> None:
        """The step is over; reading `grad` is an error from now on."""
        del self.grad

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
    """One sweep's rows, an int64 tensor [tensors, 13], rebuilt only when a number in it changes.

    A CUDA graph goes on reading the table that it was captured with: that one is never freed, and
    what a capture has to write, every replay writes again.

    Attributes:
        rows: The table on the device.
        host: What is in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.host = torch.empty((0, len(COLUMNS)), dtype=torch.int64)
        self.rows = self.host.to(device)
        self._device = device
        self._staging: Tensor | None = None
        self._captured: list[Tensor] = []

    def refresh(self, wanted: Tensor) -> Tensor:
        """The table that says this; the same tensor as long as nothing moved.

        Args:
            wanted: int64 [tensors, 13] on the host; not to be changed afterwards.

        Raises:
            RuntimeError: The stream is capturing, and the table is not the last step's with other
                addresses.
        """
        capturing = is_capturing(self._device)
        if not torch.equal(wanted, self.host):
            if capturing:
                return self._record(wanted)
            self.rows, self.host = upload(wanted, self._device), wanted
        if capturing:
            if all(table is not self.rows for table in self._captured):
                self._captured.append(self.rows)
        elif self._device.type == "cuda" and _is_unlike(self._staging, wanted):
            # Pinned memory cannot be had during a capture.
            self._staging = torch.empty_like(wanted).pin_memory()
        return self.rows

    def _record(self, wanted: Tensor) -> Tensor:
        """A table of the graph's own: gradients that are made in a capture lie in its memory."""
        staging = self._staging
        if staging is None or _is_unlike(staging, wanted) or _sizes_differ(wanted, self.host):
            raise RuntimeError(
                "the tensors of a step that is captured in a CUDA graph must be those of the step "
                "before, but for their addresses, and these may change once per capture: take a "
                "step with the same parameters and gradients before you capture"
            )
        self._staging = None
        rows = torch.empty_like(wanted, device=self._device)
        rows.copy_(staging.copy_(wanted), non_blocking=True)
        self._captured += [staging, rows]
        return rows


def _is_unlike(held: Tensor | None, wanted: Tensor) -> bool:
    return held is None or held.shape != wanted.shape


def _sizes_differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a[:, NUMEL], b[:, NUMEL])


@dataclass(eq=False)
class Bucket:
    """The tensors that one backend takes in one launch.

    Attributes:
        backend: A `dispatch.Backend`.
        device: Of the tensors.
        variant: What else one launch of that backend must agree in.
        entries: One per tensor; those of tensors that an address table describes lose their
            gradient when the step is over.
        squares: float64 [tensors], a place for one sum per tensor. Never cleared: who reads a sum
            has had it written in the same step.
    """

    backend: Any
    device: torch.device
    variant: tuple[Any, ...] = ()
    entries: list[Any] = field(default_factory=list)
    squares: Tensor = field(init=False)
    _sums: Tensor | None = None
    _table: AddressTable | None = None
    _rows: Tensor | None = None
    _scratch: Any = None
    _scratch_of: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """float64 [tensors, 3]: the places for Σ g·u, Σ g², Σ u² of each tensor's step.

        Made when first asked for, and kept as long as there are as many tensors. Never cleared: a
        skipped step leaves them as they are.
        """
        if self._sums is None or len(self._sums) != len(self.squares):
            shape = (len(self.squares), 3)
            home = numbers_device(self.device)
            self._sums = torch.zeros(shape, dtype=torch.float64, device=home)
        return self._sums

    def rows(self) -> Tensor:
        """The address table of these entries."""
        if self._rows is None:
            if self._table is None:
                self._table = AddressTable(self.device)
            wanted = torch.tensor([entry.row() for entry in self.entries], dtype=torch.int64)
            self._rows = self._table.refresh(wanted)
        return self._rows

    def scratch(self, build: Callable[[list[int]], Any]) -> Any:
        """What a backend keeps beside the table; built from the tensors' sizes when one changes."""
        self.rows()
        assert self._table is not None
        table = self._table.host
        if self._scratch_of is not table:
            if self._scratch_of is None or _sizes_differ(self._scratch_of, table):
                self._scratch = build(table[:, NUMEL].tolist())
            self._scratch_of = table
        return self._scratch

    def upload(self, host: Tensor) -> Tensor:
        """To this bucket's device without waiting."""
        return upload(host, self.device)

    def start(self) -> None:
        """A step's entries are about to be put here."""
        self.entries = []
        self._rows = None

    def move_gradients(self, addresses: list[int]) -> None:
        """The same entries, their gradients at these addresses."""
        assert self._table is not None
        wanted = self._table.host
        moved = torch.tensor(addresses, dtype=torch.int64)
        if not torch.equal(wanted[:, GRAD], moved):
            wanted = wanted.clone()
            wanted[:, GRAD] = moved
        self._rows = self._table.refresh(wanted)

    def release_gradients(self) -> None:
        """Between steps they are the model's, which may free them."""
        if not self.backend.addressed:
            self.entries = []
        for entry in self.entries:
            entry.drop_gradient()


@dataclass(frozen=True)
class Standing:
    """A group as far as it decides who takes its tensors.

    Attributes:
        params: The group's list.
        kept: Names of the state entries that a sweep walks or counts.
        maximize: The group's option.
    """

    params: list[Tensor]
    kept: tuple[str, ...]
    maximize: bool


@dataclass(frozen=True)
class Sighting:
    """A step's tensors as they are seen at a glance: numbers, so that nothing is kept alive.

    Attributes:
        options: Of every group.
        present: Of every parameter whether it has a gradient. What follows is of those that have.
        addresses: Of parameters and their state. No two parameters share a `step`.
        sizes: The parameters'.
        dtypes: The gradients'.
        gradients: The gradients' addresses.
        plain: Everything here is contiguous, dense, and in no need of negation.
    """

    options: list[tuple[tuple[str, ...], bool]]
    present: list[bool]
    addresses: list[int]
    sizes: list[int]
    dtypes: list[torch.dtype]
    gradients: list[int]
    plain: bool

    @classmethod
    def of(cls, groups: Sequence[Standing], state: Mapping[Tensor, Any]) -> Sighting | None:
        """None where something is missing, or has no address."""
        present: list[bool] = []
        addresses: list[int] = []
        params: list[Tensor] = []
        grads: list[Any] = []
        try:
            for group in groups:
                here = [p.grad for p in group.params]
                has = [grad is not None for grad in here]
                taken = list(compress(group.params, has))
                present += has
                params += taken
                grads += compress(here, has)
                addresses += map(Tensor.data_ptr, taken)
                states = [state[p] for p in taken]
                for name in group.kept:
                    addresses += map(Tensor.data_ptr, [s[name] for s in states])
            return cls(
                options=[(group.kept, group.maximize) for group in groups],
                present=present,
                addresses=addresses,
                sizes=list(map(Tensor.numel, params)),
                dtypes=[g.dtype for g in grads],
                gradients=list(map(Tensor.data_ptr, grads)),
                plain=all(map(Tensor.is_contiguous, params))
                and all(map(Tensor.is_contiguous, grads))
                and not any(map(Tensor.is_neg, grads)),
            )
        except (KeyError, TypeError, RuntimeError):
            # No such state yet, a number for a tensor, a layout without an address.
            return None

    def is_followed_by(self, other: Sighting) -> bool:
        """Whether nothing but gradients' addresses differs."""
        return (
            other.plain
            and self.present == other.present
            and self.addresses == other.addresses
            and self.sizes == other.sizes
            and self.dtypes == other.dtypes
            and self.options == other.options
        )


class Buckets:
    """Sorts a step's entries by who takes them; the buckets and their tables outlive the step."""

    def __init__(self, choose: Callable[[Any], Any]) -> None:
        self._choose = choose
        self._buckets: dict[Hashable, Bucket] = {}
        self._sorted: list[Bucket] = []
        self._places: list[list[int]] = []
        self._last: Sighting | None = None
        self._holds_gradients = False
        self._squares: dict[torch.device, Tensor] = {}

    def of_step(
        self,
        groups: Sequence[Standing] | None,
        state: Mapping[Tensor, Any],
        entries: Callable[[], Iterable[ParameterEntry]],
    ) -> list[Bucket]:
        """The buckets that have something to do, always in the same order.

        Where only gradients have moved since the last step, which is how training goes, no entry is
        made: their addresses are read, and that is all.

        Args:
            groups: The optimizer's groups; None where addresses do not tell whether anything has
                changed.
            state: The optimizer's state.
            entries: Makes the step's entries.
        """
        if self._last is not None and groups is not None:
            seen = Sighting.of(groups, state)
            if seen is not None and self._last.is_followed_by(seen):
                for bucket, places in zip(self._sorted, self._places, strict=True):
                    bucket.move_gradients([seen.gradients[i] for i in places])
                return self._sorted
        self.sort(entries())
        self._last = None if groups is None else self._first_sighting(groups, state)
        return self._sorted

    def release_gradients(self) -> None:
        """The step is over. Only one that made entries holds gradients."""
        if self._holds_gradients:
            self._holds_gradients = False
            for bucket in self._sorted:
                bucket.release_gradients()

    def squares_by_device(self) -> dict[torch.device, Tensor]:
        """The places of all this step's buckets for sums, one piece of memory per device."""
        return {b.device: self._squares[b.device] for b in self._sorted}

    def sort(self, entries: Iterable[ParameterEntry]) -> list[Bucket]:
        """Every entry to who takes it, whatever the last step was like."""
        self._last, self._holds_gradients = None, True
        for bucket in self._buckets.values():
            bucket.start()
        places: dict[Hashable, list[int]] = {}
        for place, entry in enumerate(entries):
            backend = self._choose(entry)
            key = (backend.name, entry.param.device, backend.variant(entry))
            if key not in self._buckets:
                self._buckets[key] = Bucket(backend, *key[1:])
                self._buckets[key].start()
            self._buckets[key].entries.append(entry)
            places.setdefault(key, []).append(place)
        taken = {key: bucket for key, bucket in self._buckets.items() if bucket.entries}
        self._sorted = list(taken.values())
        self._places = [places[key] for key in taken]
        self._share_squares()
        return self._sorted

    def _share_squares(self) -> None:
        """One piece of memory per device, so that a norm over all tensors is one launch."""
        for device in {bucket.device: None for bucket in self._sorted}:
            buckets = [b for b in self._sorted if b.device == device]
            sizes = [len(b.entries) for b in buckets]
            whole = self._squares.get(device)
            if whole is None or len(whole) != sum(sizes):
                home = numbers_device(device)
                whole = torch.zeros(sum(sizes), dtype=torch.float64, device=home)
                self._squares[device] = whole
            for bucket, part in zip(buckets, whole.split(sizes), strict=True):
                bucket.squares = part

    def _first_sighting(
        self, groups: Sequence[Standing], state: Mapping[Tensor, Any]
    ) -> Sighting | None:
        """What the next step is compared with; None where a glance would not tell enough."""
        entries = [entry for bucket in self._sorted for entry in bucket.entries]
        own = {param for group in groups for param in group.params}
        if not all(bucket.backend.addressed for bucket in self._sorted):
            return None
        if not all(e.param in own and all(map(_is_plain, e.shaped())) for e in entries):
            return None
        for bucket in self._sorted:
            bucket.rows()
        return Sighting.of(groups, state)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_neg()


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
                self._write_row(g, known)
            self._written[g] = known

    def _write_row(self, g: int, known: tuple[float | None, ...]) -> None:
        if is_capturing(self.device):
            # Constants of the graph: memory that a copy was captured from would have to outlive it.
            for column, value in enumerate(known):
                assert value is not None
                self.numbers[g, column].fill_(value)
        else:
            row = torch.tensor(known, dtype=torch.float64)
            self.numbers[g].copy_(_staged(row, self.device), non_blocking=True)

    @property
    def any_lr(self) -> bool:
        """Some group's learning rate is above 0, or on a device, where the host does not look."""
        return any(row[0] is None or row[0] != 0 for row in self._written)

    def _copy_row(self, g: int, values: Sequence[Any]) -> None:
        for column, value in enumerate(values):
            if _on_accelerator(value):
                # It becomes float64 only here: its own device may have none.
                self.numbers[g, column].copy_(value.detach().reshape(()).to(self.device))
            elif float(value) != self._written[g][column]:
                self.numbers[g, column].fill_(float(value))


def _on_accelerator(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def is_capturing(device: torch.device) -> bool:
    """Whether what is asked of the device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(host: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting."""
    return _staged(host, device).to(device, non_blocking=True)


def _staged(host: Tensor, device: torch.device) -> Tensor:
    """In pinned memory where the device is CUDA: a copy from elsewhere waits for it."""
    return host.pin_memory() if device.type == "cuda" else host
