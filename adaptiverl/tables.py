"""Which tensors lie where: the address table that a fused sweep walks, and the groups' numbers.

Addresses identify tensors, never `id()`: `.data` and `.to_local()` make new wrappers every step.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from adaptiverl.devices import numbers_device
from adaptiverl.fingerprint import Fingerprint, GroupKey, Watch
from adaptiverl.kernels.sums import ALIGNMENT
from adaptiverl.overlaps import Spans, overlapping_rows
from adaptiverl.workspace import NEEDS_A_STEP, DeviceTable, Workspace, is_capturing, upload

COLUMNS = (
    "param",
    "grad",
    "state0",
    "state1",
    "state2",
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
PARAM, GRAD, NUMEL = (COLUMNS.index(name) for name in ("param", "grad", "numel"))
MOMENTS = slice(COLUMNS.index("state0"), COLUMNS.index("state2") + 1)
SLOTS = 3
"""Columns for an algorithm's own state"""
COUNTERS = slice(COLUMNS.index("step"), COLUMNS.index("mu_product") + 1)

GROUP_COLUMNS = ("lr", "momentum", "hyper0", "hyper1", "weight_decay")
"""A row of the group table: `Algorithm.numbers_of`"""


@dataclass(slots=True, kw_only=True)
class ParameterEntry:
    """One parameter of this step, and all that belongs to it."""

    param: Tensor
    grad: Tensor
    slots: tuple[Tensor | None, ...]
    """The algorithm's state of the parameter's shape, in its order; None where there is none"""
    step: Tensor
    """float32, 0-d: steps that were taken"""
    mu_product: Tensor | None
    """float64, 0-d: the product of the momenta of those steps; None where it is not kept"""
    group: int
    """Row of the group table"""
    index: int
    """The parameter's place in the optimizer: the noise's key (decisions.md 17)"""
    offset: int
    """The first element's place in the whole logical tensor"""
    logical_numel: int
    """Elements of the whole logical tensor"""
    maximize: bool

    def shaped(self) -> list[Tensor]:
        """Everything that a sweep walks beside each other."""
        return [self.param, self.grad, *(s for s in self.slots if s is not None)]

    def row(self) -> tuple[int, ...]:
        """This entry's line of the address table, in the order of `COLUMNS`."""
        return (
            _address(self.param),
            _address(self.grad),
            *map(_address, self.slots),
            *(0,) * (SLOTS - len(self.slots)),
            self.step.data_ptr(),
            _address(self.mu_product),
            self.param.numel(),
            self.group,
            self.index,
            self.offset,
            self.logical_numel,
            self.maximize,
        )


_COUNTER_BYTES = torch.tensor([4, 8], device="cpu")
"""Of `step`, a float32, and of `mu_product`, a float64"""


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if address == 0 and tensor.numel() > 0:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that the step needs has no memory: its "
            "storage was resized to 0, which a wrapper that shards parameters does between "
            "passes; nothing was changed"
        )
    return address


class AddressTable:
    """One sweep's rows, an int64 tensor [tensors, 13], made anew only when a number in it changes.

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
        self._table = DeviceTable(workspace, place, device)

    def refresh(self, wanted: Tensor) -> Tensor:
        """The table that says this; the same tensor as long as nothing moved.

        Args:
            wanted: int64 [tensors, 13] on the host; not to be changed afterwards.

        Raises:
            RuntimeError: The stream is capturing, and the table is not the last step's with other
                addresses.
        """
        if torch.equal(wanted, self.host):
            self._table.prepare()
            return self.rows
        if is_capturing(self._device):
            if _sizes_differ(wanted, self.host):
                raise RuntimeError(NEEDS_A_STEP)
            return self._table.record(wanted)
        self.rows, self.host = self._table.write(wanted), wanted
        return self.rows


def _sizes_differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a[:, NUMEL], b[:, NUMEL])


@dataclass(eq=False)
class Bucket:
    """The tensors that one backend takes in one launch.

    Attributes:
        backend: A `backends.Backend`.
        device: Of the tensors.
        variant: What else one launch of that backend must agree in.
        algorithm: The name of the update rule.
        workspace: Owns what the launch reads besides the tensors.
        entries: One per tensor, in a step that made them, and only as long as it takes: between
            steps nothing here keeps a tensor alive.
        params: The parameters, or this rank's shards of them, likewise.
        indices: Their places in the optimizer.
        squares: float64 [tensors], a place for one sum per tensor. Never cleared: who reads a sum
            has had it written in the same step.
    """

    backend: Any
    device: torch.device
    variant: tuple[Any, ...] = ()
    algorithm: str = "adamw"
    workspace: Workspace = field(default_factory=Workspace)
    entries: list[Any] = field(default_factory=list)
    params: list[Tensor] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    squares: Tensor = field(init=False)
    _sums: Tensor | None = None
    _table: AddressTable | None = None
    _rows: Tensor | None = None
    _host_rows: Tensor | None = None
    _scratch: tuple[Tensor, ...] = ()
    _scratch_of: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """float64 [tensors, 3]: the places for Σ g·u, Σ g², Σ u² of each tensor's step.

        Made when first asked for, and kept as long as there are as many tensors. Never cleared: a
        skipped step leaves them as they are.
        """
        if self._sums is None or len(self._sums) != len(self.squares):
            shape = (len(self.squares), ALIGNMENT.width)
            (self._sums,) = self.workspace.hold(
                self._place("sums"), shape, self.device, lambda: (_zeros(shape, self.device),)
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
        """What the address table of these entries says, int64 [tensors, 13] on the host."""
        if self._host_rows is None:
            rows = [entry.row() for entry in self.entries]
            self._host_rows = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return self._host_rows

    def spans(self) -> Spans:
        """The memory that a sweep over these entries reads and writes."""
        rows, first = self.host_rows(), self.entries[0]
        itemsizes = [first.param.element_size(), first.grad.element_size()]
        itemsizes += [max((m.element_size() for m in first.slots if m is not None), default=0)]
        numel = rows[:, NUMEL, None]
        addresses = [rows[:, PARAM, None], rows[:, GRAD, None], rows[:, MOMENTS]]
        lengths = [numel * i for i in itemsizes]
        lengths[-1] = lengths[-1].expand_as(addresses[-1])
        addresses.append(rows[:, COUNTERS])
        lengths.append(_COUNTER_BYTES.expand_as(addresses[-1]))
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
        return what, self.backend.name, self.device, self.variant

    def upload(self, host: Tensor) -> Tensor:
        """To this bucket's device without waiting."""
        return upload(host, self.device)

    def start(self) -> None:
        """A step's entries are about to be put here."""
        self.entries, self.params, self.indices = [], [], []
        self._rows = self._host_rows = None

    def take(self, entry: ParameterEntry) -> None:
        """One of this step's tensors is this bucket's."""
        self.entries.append(entry)
        self.params.append(entry.param)
        self.indices.append(entry.index)

    def move_gradients(self, addresses: list[int]) -> None:
        """The same tensors, their gradients at these addresses."""
        assert self._table is not None
        wanted = self._table.host
        # Four times as fast as torch.tensor of the list.
        moved = torch.frombuffer(array("q", addresses), dtype=torch.int64)
        if not torch.equal(wanted[:, GRAD], moved):
            wanted = wanted.clone()
            wanted[:, GRAD] = moved
        self._rows = self._table.refresh(wanted)

    def described(self, *columns: int) -> list[list[int]]:
        """These columns of the address table, row by row."""
        self.rows()
        assert self._table is not None
        return self._table.host[:, list(columns)].tolist()

    def release(self) -> None:
        """The step is over: whoever owns the tensors may free them."""
        self.entries, self.params, self._host_rows = [], [], None


class Buckets:
    """Sorts a step's entries by who takes them; the buckets and their tables outlive the step."""

    def __init__(
        self, choose: Callable[..., Any], workspace: Workspace, algorithm: str = "adamw"
    ) -> None:
        self._choose = choose
        self._algorithm = algorithm
        self._workspace = workspace
        self._buckets: dict[Hashable, Bucket] = {}
        self._sorted: list[Bucket] = []
        self._places: list[list[int]] = []
        self._last: Fingerprint | None = None
        self._watch: Watch | None = None
        self.dtensors: list[Tensor] = []
        """Of this step's parameters, if it made no entries; until it is over"""
        self._squares: dict[torch.device, Tensor] = {}

    def of_step(
        self,
        groups: Sequence[GroupKey],
        state: Mapping[Tensor, Any],
        entries: Callable[[], Iterable[ParameterEntry]],
    ) -> list[Bucket]:
        """The buckets that have something to do, always in the same order.

        Where only gradients have moved since the last step, which is how training goes, no entry is
        made: their addresses are read, and that is all.

        Args:
            groups: The optimizer's groups.
            state: The optimizer's state.
            entries: Makes the step's entries.
        """
        if self._last is not None and self._watch is not None and self._watch.is_whole:
            seen = Fingerprint.of(groups, state)
            if seen is not None and self._last.is_followed_by(seen):
                self._follow(seen)
                return self._sorted
        self.sort(entries())
        for bucket in self._sorted:
            if bucket.backend.addressed:
                bucket.rows()  # or an error, while nothing has moved
        seen = self._fingerprint(groups, state)
        if seen is not None:
            self._last, self._watch = seen.without_tensors(), Watch(groups, state)
        return self._sorted

    def _follow(self, seen: Fingerprint) -> None:
        """The last step's buckets, with this step's tensors and their gradients' addresses."""
        self.dtensors = seen.dtensors
        if len(self._sorted) == 1:  # which has them all, in this order
            self._sorted[0].params = seen.tensors
            self._sorted[0].move_gradients(seen.gradients)
            return
        for bucket, places in zip(self._sorted, self._places, strict=True):
            bucket.params = [seen.tensors[i] for i in places]
            bucket.move_gradients([seen.gradients[i] for i in places])

    def release(self) -> None:
        """The step is over: between steps nothing here keeps a tensor alive."""
        self.dtensors = []
        for bucket in self._sorted:
            bucket.release()

    def squares_by_device(self) -> dict[torch.device, Tensor]:
        """The places of all this step's buckets for sums, one piece of memory per device."""
        return {b.device: self._squares[b.device] for b in self._sorted}

    def sort(self, entries: Iterable[ParameterEntry]) -> list[Bucket]:
        """Every entry to who takes it, whatever the last step was like.

        Tensors that lie in each other's memory are taken one after another, in the optimizer's
        order: threads that walk them at once would race.
        """
        self._last = self._watch = None
        entries = list(entries)
        self._fill(entries, shared=set())
        shared = self._places_in_shared_memory()
        if shared:
            self._fill(entries, shared)
        self._share_squares()
        return self._sorted

    def _fill(self, entries: Sequence[ParameterEntry], shared: set[int]) -> None:
        """Make the step's buckets; those in `shared` share memory with others."""
        for bucket in self._buckets.values():
            bucket.start()
        places: dict[Hashable, list[int]] = {}
        for place, entry in enumerate(entries):
            backend = self._choose(entry, shares_memory=place in shared)
            key = (backend.name, entry.param.device, backend.variant(entry))
            if key not in self._buckets:
                self._buckets[key] = Bucket(backend, *key[1:], self._algorithm, self._workspace)
                self._buckets[key].start()
            self._buckets[key].take(entry)
            places.setdefault(key, []).append(place)
        taken = {key: bucket for key, bucket in self._buckets.items() if bucket.entries}
        self._sorted = list(taken.values())
        self._places = [places[key] for key in taken]

    def _places_in_shared_memory(self) -> set[int]:
        """Which of the entries would race in a sweep over addresses."""
        found: set[int] = set()
        walked = [
            pair
            for pair in zip(self._sorted, self._places, strict=True)
            if pair[0].backend.addressed
        ]
        for device in {bucket.device: None for bucket, _ in walked}:
            here = [pair for pair in walked if pair[0].device == device]
            rows = overlapping_rows([bucket.spans() for bucket, _ in here])
            for (_, places), numbers in zip(here, rows, strict=True):
                found |= {places[number] for number in numbers}
        return found

    def _share_squares(self) -> None:
        """One piece of memory per device, so that a norm over all tensors is one launch."""
        for device in {bucket.device: None for bucket in self._sorted}:
            buckets = [b for b in self._sorted if b.device == device]
            sizes = [len(b.entries) for b in buckets]
            whole = self._squares[device] = self._places_for_sums(device, sum(sizes))
            for bucket, part in zip(buckets, whole.split(sizes), strict=True):
                bucket.squares = part

    def _places_for_sums(self, device: torch.device, count: int) -> Tensor:
        (whole,) = self._workspace.hold(
            ("squares", device), count, device, lambda: (_zeros((count,), device),)
        )
        return whole

    def _fingerprint(
        self, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]
    ) -> Fingerprint | None:
        """What the next step is compared with; None where a glance would not tell enough."""
        entries = [entry for bucket in self._sorted for entry in bucket.entries]
        if not all(bucket.backend.addressed for bucket in self._sorted):
            return None
        if not all(map(_is_plain, chain.from_iterable(entry.shaped() for entry in entries))):
            return None
        seen = Fingerprint.of(groups, state)
        if seen is None:
            return None
        for bucket, places in zip(self._sorted, self._places, strict=True):
            # A view or a copy may have been made for the step: the next glance would not see it.
            glanced = [[seen.params[i], seen.gradients[i]] for i in places]
            if bucket.described(PARAM, GRAD) != glanced:
                return None
        return seen


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_neg()


class GroupTable:
    """Every group's numbers on the device, `GROUP_COLUMNS`; written only where changed.

    In a capture the numbers that the host knows become constants of the graph: the last step's
    table where it says the same, and otherwise one that only the graph writes and reads.

    Attributes:
        numbers: float64 [groups, 5], as the user or a scheduler set them.
        effective: float64 [groups, 2], lr and momentum of this step; the controller writes it.
    """

    def __init__(
        self,
        device: torch.device,
        numbers_of: Callable[[dict[str, Any]], Sequence[Any]],
        workspace: Workspace,
    ) -> None:
        self.device = device
        self._numbers_of = numbers_of
        self._workspace = workspace
        self._table = DeviceTable(workspace, ("numbers", device), device)
        self._known: list[tuple[float | None, ...]] = []
        self._written: list[tuple[float | None, ...]] | None = None
        self.numbers = _zeros((0, len(GROUP_COLUMNS)), device)
        self.effective = _zeros((0, 2), device)

    def refresh(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take over the groups' entries. A number that lives on a device never visits the host.

        Raises:
            RuntimeError: The stream is capturing, and the last step had another number of groups.
        """
        values = [self._numbers_of(group) for group in groups]
        self._known = [
            tuple(None if _on_accelerator(x) else float(x) for x in row) for row in values
        ]
        self.numbers = self._constants()
        shape = (len(groups), 2)
        (self.effective,) = self._workspace.hold(
            ("effective", self.device), shape, self.device, lambda: (_zeros(shape, self.device),)
        )
        if any(None in known for known in self._known):
            self._copy_from_devices(values)

    def _constants(self) -> Tensor:
        """A table with the numbers that the host knows."""
        if self._known == self._written:
            self._table.prepare()
            assert self._table.rows is not None
            return self._table.rows
        rows = [[UNKNOWN if x is None else x for x in known] for known in self._known]
        wanted = torch.tensor(rows, dtype=torch.float64, device="cpu")
        wanted = wanted.reshape(len(rows), len(GROUP_COLUMNS))
        if is_capturing(self.device):
            return self._table.record(wanted)
        numbers = self._table.write(wanted)
        self._written = self._known
        return numbers

    def _copy_from_devices(self, values: Sequence[Sequence[Any]]) -> None:
        there = [
            (g, column, value.detach())
            for g, row in enumerate(values)
            for column, value in enumerate(row)
            if _on_accelerator(value)
        ]
        if is_capturing(self.device):
            self._workspace.keep(self.device, [value for _, _, value in there])
        for g, column, value in there:
            # It becomes float64 only here: its own device may have none.
            self.numbers[g, column].copy_(value.reshape(()).to(self.device))


UNKNOWN = float("nan")
"""Written for a number that lives on a device, until it is copied from there"""


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=numbers_device(device))


def any_rate(groups: Iterable[dict[str, Any]]) -> bool:
    """Some group's learning rate is not 0, or on an accelerator, where the host does not look."""
    return any(_on_accelerator(group["lr"]) or float(group["lr"]) != 0 for group in groups)


def _on_accelerator(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"
