"""Many ranks: one mean of what they observed, and where a shard lies in its logical tensor.

Nothing of torch.distributed is replaced: one all-reduce of four numbers before the controller
decides, one of three after the sweep where its law reads the sweep's sums, and one of a sum per
tensor where shards need their logical tensor's sum of squares.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adaptiverl.devices import numbers_device
from adaptiverl.workspace import Workspace, upload

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    Group = dist.ProcessGroup | Literal[False] | None

NOISE_PLACE = "_adaptiverl_place"
"""Attribute of a parameter that `number_parameters` has been over"""


def number_parameters(params: Iterable[Tensor]) -> list[Tensor]:
    """Tell every parameter its place in the whole model: the noise's key (decisions.md 17).

    An optimizer numbers its own parameters, and that is enough wherever every rank's optimizer has
    them all. `ZeroRedundancyOptimizer` gives each rank's optimizer a part, which that optimizer
    cannot tell from a whole; numbered before, they draw what one rank would draw. Without, replicas
    stay equal, but parameters of different ranks share their noise:

        >>> own = partial(AdaptiveAdamW, control=Control(), seed=1)
        >>> ZeroRedundancyOptimizer(number_parameters(model.parameters()), own, lr=3e-4)

    The partial keeps what is no group's entry out of ZeRO's groups, and so out of checkpoints,
    which load with ``weights_only=True`` then. `max_grad_norm` would clip by the norm of this
    rank's part: use torch.nn.utils.clip_grad_norm_ there, all gradients being on every rank.

    Args:
        params: All of the model's parameters, in the order in which one optimizer would get them.

    Returns:
        The same parameters; each keeps its number as long as it lives, a copy of it does not.
    """
    numbered = list(params)
    for place, param in enumerate(numbered):
        setattr(param, NOISE_PLACE, place)
    return numbered


# Deciding together


class Ranks:
    """The ranks that decide together: they average what they observed, so that all decide alike.

    The rule that keeps them from waiting for each other for ever: who meets is decided by what
    every rank knows alike, never by whether this rank observed something. All ranks of the group
    meet once in every step whose control can move a knob (step-wise, some gain above 0), with an
    observation or without; `update` meets when it is called, which every rank must do. A rank
    without an observation brings none and gets the others' mean; where no rank observed, nothing
    is observed (decisions.md 14). Where the law reads the sweep's sums (decisions.md 22) all meet
    once more in every step, with gradients or without. No rank meets where nothing can come of it:
    one rank, frozen control, and every step in which all groups' rates are 0, which the host knows
    and which is so on all ranks or on none. Such a step moves no parameter, decides nothing and
    does not count: not what was observed for it, nor its gradients' alignment. It is how a
    checkpoint library makes an optimizer's state (torch.distributed.checkpoint: one step at a rate
    of 0 wherever there is no state yet), and that may happen on some ranks alone, at any time: on
    the one that saves replicas before training, on one that has nothing to train. A rate that lies
    on an accelerator counts as above 0.

    Shards' sums of squares are met for in every step that clips or draws noise, at a rate of 0 as
    well, for moments take in what was clipped: there all ranks of a mesh make their state together,
    as they take every step together.

    Each rank's own mean counts the same, however many micro-batches it saw. One rank's NaN or
    infinity makes the mean non-finite, which every rank then sees (decisions.md 12).

    Args:
        group: A process group; ``None``: the world, once torch.distributed is initialised;
            ``False``: this rank decides alone.

    Raises:
        TypeError: Something else.
        ValueError: A process group that this rank isn't in.
    """

    def __init__(self, group: Group = None) -> None:
        if group is not None and group is not False:
            _check_group(group)
        self.group = group

    def is_first(self) -> bool:
        """Whether this is the rank that speaks for all that decide together."""
        return self.size == 1 or dist.get_rank(self.group or None) == 0

    @property
    def agree(self) -> bool:
        """Whether all ranks have the same knobs; ``False`` leaves that to the user."""
        return self.group is not False

    @property
    def size(self) -> int:
        """How many decide together; 1 before torch.distributed is initialised."""
        # A torch built without distributed has neither function.
        if self.group is False or not getattr(dist, "is_initialized", bool)():
            return 1
        return dist.get_world_size(self.group)

    def average(self, inbox: Tensor, observations: int) -> None:
        """This rank's inbox becomes all ranks' together, in one collective; nothing waits.

        Args:
            inbox: float64 [4]: sum and count of losses, sum and count of rewards.
            observations: How many this rank made, as the host counted them.
        """
        if self.group is False:
            return
        if observations > 1:
            counts = inbox[1::2]
            inbox[0::2].div_(counts.clamp(min=1))
            counts.clamp_(max=1)
        all_reduce(inbox, self.group)

    def average_alignment(self, alignment: Tensor, active: Tensor | None) -> None:
        """This rank's sums become the mean of all ranks', in one collective; nothing waits.

        Args:
            alignment: float64 [3]: Σ g·u, Σ g², Σ u² of this step.
            active: Where it is 0, the step is skipped, and `alignment`, an earlier step's, stays as
                it is to the bit; ``None``: no step can be.
        """
        if self.size == 1:
            return
        mean = alignment.clone()
        all_reduce(mean, self.group)
        mean /= self.size
        alignment.copy_(mean if active is None else torch.where(active != 0, mean, alignment))

    def check_mesh(self, mesh: DeviceMesh) -> None:
        """Refuse shards whose ranks decide apart.

        Raises:
            ValueError: A rank that holds shards on this mesh isn't in the process group.
        """
        if self.group is False or self.group is None:
            return
        members, holders = set(dist.get_process_group_ranks(self.group)), _ranks_of(mesh)
        if not holders <= members:
            raise ValueError(
                f"process_group must hold every rank that a parameter is sharded over, got ranks "
                f"{sorted(members)} for a parameter on ranks {sorted(holders)}: those would step "
                "shards of one tensor with different knobs. Leave process_group out, or give the "
                "group of all of them"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def __reduce__(self) -> tuple[type[Ranks], tuple[Group]]:
        if self.group is not None and self.group is not False:
            raise TypeError(
                "an optimizer with a process_group of its own cannot be pickled, because a process "
                "group cannot: save optimizer.state_dict()"
            )
        return Ranks, (self.group,)


def _check_group(group: Any) -> None:
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group must be a group that this rank is in, got one that it isn't in: "
            "new_group() gives such a value to the ranks it leaves out; pass each rank its own "
            "group, or False to let it decide alone"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed process group, None (the world) or False "
            f"(this rank alone), got {group!r} of type {type(group).__name__}"
        )


def all_reduce(tensor: Tensor, group: Any) -> None:
    """Sum over a group's ranks, in place; NCCL alone has no way for a CPU tensor but the GPU."""
    if tensor.device.type == "cpu" and dist.get_backend(group) == "nccl":
        staged = tensor.cuda()
        dist.all_reduce(staged, group=group)
        tensor.copy_(staged)
    else:
        dist.all_reduce(tensor, group=group)


# A shard's place


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; where nobody imported DTensor, there is none."""
    return isinstance(tensor, _dtensor_class())


def to_local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, whose memory it shares; any other tensor itself."""
    if not is_dtensor(tensor):
        return tensor
    local = tensor.to_local()  # type: ignore[attr-defined]
    return local.wait() if hasattr(local, "wait") else local


def any_dtensor(tensors: Iterable[Any]) -> bool:
    """Whether one of many is a DTensor; asks each type once."""
    return any(issubclass(kind, _dtensor_class()) for kind in set(map(type, tensors)))


def local_tensors(tensors: list[Any]) -> list[Any]:
    """`to_local` of many, to look at: it makes no view, and so takes a hundredth of the time."""
    return _of_each(tensors, "_local_tensor") if any_dtensor(tensors) else tensors


def placed_alike(params: Sequence[Tensor], grads: Sequence[Any]) -> bool:
    """Whether every gradient is laid out over the ranks as its parameter is."""
    ours, theirs = _of_each(params, "_spec"), _of_each(grads, "_spec")
    # FSDP2 gives both one object.
    same = all(map(operator.is_, ours, theirs))
    return same or _placements(ours) == _placements(theirs)


def _of_each(tensors: Sequence[Any], attribute: str) -> list[Any]:
    """An attribute of those tensors that are DTensors; the others themselves."""
    try:
        return list(map(operator.attrgetter(attribute), tensors))
    except AttributeError:
        return [getattr(t, attribute, t) for t in tensors]


def _placements(specs: Sequence[Any]) -> list[Any]:
    return [getattr(spec, "placements", None) for spec in specs]


def _dtensor_class() -> Any:
    """DTensor; where nobody imported it, there is none, and nothing is an instance of ()."""
    module = sys.modules.get("torch.distributed.tensor")
    return () if module is None else module.DTensor


def to_whole(value: Any) -> Any:
    """A DTensor's logical tensor, which its ranks make together; anything else itself."""
    if isinstance(value, Tensor) and is_dtensor(value):
        return value.detach().full_tensor()  # type: ignore[attr-defined]
    return value


def gradient_of(param: Tensor) -> Tensor:
    """This rank's shard of a parameter's gradient, laid out as the parameter is."""
    grad = param.grad
    assert grad is not None
    if is_dtensor(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return to_local(grad)


@dataclass(frozen=True)
class Place:
    """Where this rank's shard lies.

    Attributes:
        offset: The shard's first element's place in the logical tensor, in C order; where the
            shard is no run of elements (`known` is False), a stretch of numbers of its own.
        numel: Elements of the logical tensor.
        known: Every rank's shard is one run of the logical tensor's elements, this one's at
            `offset`.
        sharded: The mesh's dimensions that the tensor is cut along.
        pieces: Into how many shards it is cut, empty ones included.
        coordinate: This rank's coordinate on each of the mesh's dimensions.
    """

    offset: int
    numel: int
    known: bool
    sharded: tuple[int, ...]
    pieces: int
    coordinate: tuple[int, ...]

    def counts(self, dims: Iterable[int]) -> bool:
        """Whether this rank's sum is one to add over `dims`: of equal replicas the first one's."""
        return all(self.coordinate[dim] == 0 for dim in dims if dim not in self.sharded)


def place_of(param: DTensor) -> Place:
    """Find a DTensor's shard on this rank.

    Args:
        param: On a mesh that this rank is part of.

    Returns:
        Its place. Known for whole tensors, for rows (`Shard(0)`, uneven and empty ones included,
        several mesh dimensions deep), for a dimension that only dimensions of one element stand
        before, and for rows that FSDP cuts inside tensor parallelism's where they divide evenly.
    """
    mesh, shape = param.device_mesh, tuple(param.shape)
    coordinate = tuple(mesh.get_coordinate() or (0,) * mesh.ndim)
    cut = {
        dim: placement
        for dim, placement in enumerate(param.placements)
        if hasattr(placement, "dim") and mesh.size(dim) > 1
    }
    known = _are_runs(param, cut)
    offset = _start_of_run(param) if known else _own_stretch(mesh, shape, coordinate, cut)
    pieces = prod(mesh.size(dim) for dim in cut)
    return Place(offset, prod(shape), known, tuple(cut), pieces, coordinate)


def _are_runs(param: DTensor, cut: dict[int, Any]) -> bool:
    """Whether every rank's shard is one run of elements: the answer is the same on all ranks."""
    mesh, shape = param.device_mesh, tuple(param.shape)
    if any(placement.is_partial() for placement in param.placements):
        return False
    strided = any(hasattr(placement, "split_factor") for placement in cut.values())
    if strided and not _is_even_fsdp_over_tp(mesh, shape, cut):
        return False
    last = max((p.dim for p in cut.values() if shape[p.dim] > 1), default=0)
    return all(size <= 1 for size in _largest_shard(mesh, shape, cut)[:last])


def _largest_shard(
    mesh: DeviceMesh, shape: tuple[int, ...], cut: dict[int, Any]
) -> tuple[int, ...]:
    largest = list(shape)
    for dim, placement in cut.items():
        largest[placement.dim] = -(-largest[placement.dim] // mesh.size(dim))
    return tuple(largest)


def _start_of_run(param: DTensor) -> int:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = tuple(param.shape)
    local, starts = compute_local_shape_and_global_offset(
        shape, param.device_mesh, param.placements
    )
    if prod(local) == 0:
        return 0
    strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return sum(start * stride for start, stride in zip(starts, strides, strict=True))


def _is_even_fsdp_over_tp(mesh: DeviceMesh, shape: tuple[int, ...], cut: dict[int, Any]) -> bool:
    """FSDP's rows within tensor parallelism's: the outer dimension cuts what the inner one has."""
    if len(cut) != 2:
        return False
    (outer, strided), (inner, plain) = cut.items()
    return (
        getattr(strided, "split_factor", None) == mesh.size(inner)
        and not hasattr(plain, "split_factor")
        and strided.dim == plain.dim
        and shape[plain.dim] % (mesh.size(outer) * mesh.size(inner)) == 0
    )


def _own_stretch(
    mesh: DeviceMesh, shape: tuple[int, ...], coordinate: tuple[int, ...], cut: dict[int, Any]
) -> int:
    """Numbers that no other shard of this tensor uses, the same on every replica of this shard."""
    number = 0
    for dim in cut:
        number = number * mesh.size(dim) + coordinate[dim]
    # Four normals come from one draw: no draw may serve two shards.
    return number * -(-prod(_largest_shard(mesh, shape, cut)) // 4) * 4


def _ranks_of(mesh: DeviceMesh) -> set[int]:
    return set(mesh.mesh.flatten().tolist())


# Sums over shards


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
        self.unknown: list[tuple[int, ...]] = []
        """Shapes of tensors whose shards are no runs of elements, and nobody has said so yet"""

    def __bool__(self) -> bool:
        return bool(self._members)

    def start_step(self) -> None:
        """Forget which tensors there are; a wrapper may have exchanged them."""
        self._members, self._pieces, self._stepped = {}, {}, []

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
                self.unknown.append(tuple(param.shape))
        place = self._places[key]
        if place.sharded:
            self._members[index] = Member(mesh, param.device, place)
            self._pieces[index] = place.pieces
        return place

    def add_up(self, numbers: Sequence[tuple[Tensor, Sequence[int]]], ranks: Ranks) -> None:
        """Replace each sharded tensor's number by the sum over its shards, in place.

        One collective for all tensors of a mesh together. Its length is the count of sharded
        tensors, with a gradient or without, so that ranks never disagree about it.

        Args:
            numbers: Pairs of a float64 tensor [n] and its n tensors' places in the optimizer.
            ranks: Those that decide together.
        """
        meshes: dict[Any, list[int]] = {}
        for index, member in self._members.items():
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
                total = total.to(values.device, non_blocking=values.device.type != "cpu")
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
