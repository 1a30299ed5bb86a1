"""The sharded tensors of one optimizer: their places, and sums over their shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adaptiverl.devices import beside, numbers_device, upload
from adaptiverl.ranks.collectives import all_reduce
from adaptiverl.ranks.dtensors import is_dtensor
from adaptiverl.ranks.group import Ranks
from adaptiverl.ranks.places import Place, place_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from adaptiverl.step.workspace import Workspace


class Member(NamedTuple):
    """What sums over shards need of a sharded tensor; it does not keep the tensor alive."""

    mesh: DeviceMesh
    device: torch.device
    place: Place


class Shards:
    """The sharded tensors of one optimizer: their places, and sums over their shards."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._places: dict[tuple[Any, ...], Place] = {}
        self._checked: set[Any] = set()
        self._uploaded: dict[tuple[Any, ...], None] = {}
        self._members: dict[int, Member] = {}
        self._pieces: dict[int, int] = {}
        self._stepped: list[DTensor] = []
        self._unknown: list[tuple[int, ...]] = []

    def __bool__(self) -> bool:
        return bool(self._members)

    def take_unknown(self) -> list[tuple[int, ...]]:
        """Shapes of tensors whose shards are no runs of elements, since this was last asked."""
        unknown, self._unknown = self._unknown, []
        return unknown

    def start_step(self, only: int | None = None) -> None:
        """Forget which tensors there are; a wrapper may have exchanged them.

        Args:
            only: The place of the one tensor that the step is of; None: of all.
        """
        if only is None:
            self._members, self._pieces = {}, {}
        else:
            self._members.pop(only, None)
            self._pieces.pop(only, None)
        self._stepped = []

    def end_step(self, glanced: Iterable[Tensor]) -> None:
        """Tell autograd what was written: a shard's version counter is not its DTensor's.

        Args:
            glanced: Parameters of a step that took no note of its DTensors (`step`).
        """
        stepped = [*self._stepped, *filter(is_dtensor, glanced)]
        self._stepped = []
        if stepped:
            torch.autograd.graph.increment_version(stepped)

    def step(self, index: int, param: Tensor, ranks: Ranks) -> Place:
        """`add` a DTensor that is going to change."""
        self._stepped.append(param)  # type: ignore[arg-type]
        return self.add(index, param, ranks)

    def add(self, index: int, param: Tensor, ranks: Ranks) -> Place:
        """Take note of a DTensor, whether it has a gradient in this step or not.

        Args:
            index: Its place in the optimizer.
            param: The DTensor.
            ranks: Those that decide together.

        Raises:
            ValueError: Its shards lie on ranks that decide apart.
        """
        mesh = param.device_mesh  # type: ignore[attr-defined]
        if mesh not in self._checked:
            ranks.check_mesh(mesh)
            self._checked.add(mesh)
        key = (tuple(param.shape), mesh, tuple(param.placements))  # type: ignore[attr-defined]
        if key not in self._places:
            self._places[key] = place_of(param)  # type: ignore[arg-type]
            if not self._places[key].known:
                self._unknown.append(tuple(param.shape))
        place = self._places[key]
        if place.sharded:
            self._members[index] = Member(mesh, param.device, place)
            self._pieces[index] = place.pieces
        return place

    def add_up(
        self,
        numbers: Sequence[tuple[Tensor, Sequence[int]]],
        ranks: Ranks,
        only: int | None = None,
    ) -> None:
        """Replace each sharded tensor's number by the sum over its shards, in place.

        One collective for all tensors of a mesh together. Its length is the count of sharded
        tensors, with a gradient or without, so that ranks never disagree about it.

        Args:
            numbers: Pairs of a float64 tensor [n] and its n tensors' places in the optimizer.
            ranks: Those that decide together.
            only: The place of the one tensor that the step is of; None: of all.
        """
        meshes: dict[Any, list[int]] = {}
        for index, member in self._members.items():
            if only in (None, index):
                meshes.setdefault(member.mesh, []).append(index)
        for mesh, members in meshes.items():
            self._add_up_mesh(mesh, members, numbers, ranks)

    def as_whole(self, sums: Tensor, indices: Sequence[int]) -> Tensor:
        """What the whole tensors' sums would be if every shard were as this rank's.

        A tensor in k pieces counts k times: then the mean over ranks has every element of a sharded
        tensor, of its replicas and of a tensor that all ranks hold just once, as long as each piece
        is held by equally many of the ranks.

        Args:
            sums: float64 [n, 3], of what lies here.
            indices: The n tensors' places in the optimizer.

        Returns:
            `sums` themselves where nothing is cut.
        """
        pieces = [self._pieces.get(index, 1) for index in indices]
        if max(pieces, default=1) == 1:
            return sums
        return sums * self._whole_numbers(pieces, sums.device)[:, None]

    def elements_as_whole(self, elements: Sequence[int], indices: Sequence[int]) -> int:
        """How many elements there were then (`as_whole`), of so many that lie here of each."""
        pairs = zip(elements, indices, strict=True)
        return sum(count * self._pieces.get(index, 1) for count, index in pairs)

    def _add_up_mesh(
        self,
        mesh: DeviceMesh,
        members: list[int],
        numbers: Sequence[tuple[Tensor, Sequence[int]]],
        ranks: Ranks,
    ) -> None:
        places = [self._members[index].place for index in members]
        dims = sorted({dim for place in places for dim in place.sharded})
        groups = _groups(mesh, dims, ranks)
        slots = {
            index: slot
            for slot, (index, place) in enumerate(zip(members, places, strict=True))
            if place.counts(dims)
        }
        everything = {index: slot for slot, index in enumerate(members)}
        device = self._members[members[0]].device
        # Collectives are the device's own: where it has no float64, float32 has to do.
        dtype = torch.float64 if numbers_device(device) == device else torch.float32
        vector = torch.zeros(len(members), dtype=dtype, device=device)
        for values, indices in numbers:
            here = [i for i, index in enumerate(indices) if index in slots]
            if here:
                there = self._whole_numbers([slots[indices[i]] for i in here], device)
                taken = values.index_select(0, self._whole_numbers(here, values.device))
                vector.index_copy_(0, there, taken.to(dtype).to(device, non_blocking=True))
        for group in groups:
            all_reduce(vector, group)
        for values, indices in numbers:
            here = [i for i, index in enumerate(indices) if index in everything]
            if here:
                there = self._whole_numbers([everything[indices[i]] for i in here], device)
                total = vector.index_select(0, there)
                total = beside(total, values.device)
                values.index_copy_(0, self._whole_numbers(here, values.device), total.to(values))

    def _whole_numbers(self, numbers: list[int], device: torch.device) -> Tensor:
        """Whole numbers on a device; uploaded once, because they are the same in every step."""
        place = ("whole numbers", device, *numbers)

        def make() -> tuple[Tensor, ...]:
            if len(self._uploaded) >= 64:
                for old in self._uploaded:
                    self._workspace.drop(old)
                self._uploaded.clear()
            self._uploaded[place] = None
            return (upload(torch.tensor(numbers, dtype=torch.int64, device="cpu"), device),)

        (uploaded,) = self._workspace.hold(place, None, device, make)
        return uploaded


def _groups(mesh: DeviceMesh, dims: list[int], ranks: Ranks) -> list[Any]:
    """Process groups that together span some of a mesh's dimensions: one where there is one."""
    if len(dims) == 1:
        return [mesh.get_group(dims[0])]
    spanned = prod(mesh.size(dim) for dim in dims)
    if ranks.group is not False and spanned == mesh.size() == dist.get_world_size(ranks.group):
        return [ranks.group]  # the mesh's ranks are among the group's: `check_mesh`
    return [mesh.get_group(dim) for dim in dims]
