"""Jobs of test_distributed_places.py."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from adaptiverl.ranks.places import place_of


def holds(local: Tensor, offset: int) -> bool:
    """Whether a shard of 0, 1, 2 … is the run that begins at `offset`."""
    return torch.equal(local.flatten(), offset + torch.arange(local.numel(), dtype=local.dtype))


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(prod(shape), dtype=torch.float32).reshape(shape)


def places(rank: int, size: int, cases: list[Any]) -> list[tuple[str, bool, bool]]:
    """Per case whether the place is known, and whether the shard lies there."""
    meshes: dict[Any, Any] = {}
    found = []
    for mesh_shape, placements, shape in cases:
        if mesh_shape not in meshes:
            meshes[mesh_shape] = init_device_mesh("cpu", mesh_shape)
        whole = numbered(shape)
        tensor = distribute_tensor(whole, meshes[mesh_shape], placements)
        place, local = place_of(tensor), tensor.to_local()
        assert place.numel == whole.numel()
        there = local.numel() == 0 or holds(local, place.offset)
        found.append((f"{shape} as {placements} on {mesh_shape}", place.known, there))
    return found


def stretch(
    rank: int, size: int, mesh_shape: tuple[int, ...], placements: Any, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int, int]:
    """Which shard this rank has, and the numbers that it draws noise by."""
    mesh = init_device_mesh("cpu", mesh_shape)
    tensor = distribute_tensor(numbered(shape), mesh, placements)
    place = place_of(tensor)
    assert not place.known
    shard = tuple(tensor.to_local().flatten().int().tolist())
    return shard, place.offset, tensor.to_local().numel()


def fsdp_over_tp(rank: int, size: int, rows: int) -> tuple[bool, bool, bool]:
    """A linear layer of tensor parallelism that FSDP shards further."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layer = nn.Linear(3, rows, bias=False)
    with torch.no_grad():
        layer.weight.copy_(numbered((rows, 3)))
    parallelize_module(layer, mesh["tp"], ColwiseParallel())
    fully_shard(layer, mesh=mesh["dp"])
    weight = layer.weight
    assert isinstance(weight, DTensor)
    place = place_of(weight)
    strided = any(hasattr(p, "split_factor") for p in weight.placements)
    return place.known, holds(weight.to_local(), place.offset), strided
