"""Where a rank's shard lies in its logical tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


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
