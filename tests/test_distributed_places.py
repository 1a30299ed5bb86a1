"""A shard's place in its logical tensor, against what the shard itself holds."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from ranks import Crew
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
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


SHAPES = [(8,), (5,), (1,), (3,), (8, 3), (5, 3), (2, 7), (1, 9), (1, 1, 6), (4, 4, 4), (3, 5, 2)]
ROWS = [[Shard(0)], [Replicate()]]
ROWS_OF_TWO = [
    [Shard(0), Shard(0)],
    [Replicate(), Shard(0)],
    [Shard(0), Replicate()],
    [Replicate(), Replicate()],
]
OTHERS = [[Shard(1)], [Shard(2)]]
OTHERS_OF_TWO = [[Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(1), Replicate()]]


def test_rows_are_where_the_place_says(crew: Crew) -> None:
    cases: list[Any] = [((4,), p, s) for p in ROWS for s in SHAPES]
    cases += [((2, 2), p, s) for p in ROWS_OF_TWO for s in SHAPES]
    for reports in zip(*crew.run(4, places, cases), strict=True):
        for case, known, there in reports:
            assert known, case
            assert there, case


def test_other_cuts_are_known_only_where_they_are_runs(crew: Crew) -> None:
    cases: list[Any] = [((4,), p, s) for p in OTHERS for s in SHAPES if len(s) > p[0].dim]
    cases += [((2, 2), p, s) for p in OTHERS_OF_TWO for s in SHAPES if len(s) > 1]
    seen = set()
    for reports in zip(*crew.run(4, places, cases), strict=True):
        for case, known, there in reports:
            seen.add(known)
            assert not known or there, case
    assert seen == {True, False}


@pytest.mark.parametrize("placements", [[Shard(1)], [Shard(0), Shard(1)], [Replicate(), Shard(1)]])
def test_shards_that_are_no_runs_use_numbers_of_their_own(
    crew: Crew, placements: list[Any]
) -> None:
    shape = (4,) if len(placements) == 1 else (2, 2)
    for size in [(6, 7), (3, 5, 2), (4, 3)]:
        stretches = crew.run(4, stretch, shape, placements, size)
        by_shard: dict[tuple[int, ...], set[int]] = {}
        for shard, start, length in stretches:
            used = set(range(start, start + length))
            # The replicas of a shard draw the same, other shards draw something else.
            assert by_shard.setdefault(shard, used) == used
        everything = [number for used in by_shard.values() for number in used]
        assert len(everything) == len(set(everything))


@pytest.mark.parametrize("rows", [8, 12])
def test_rows_that_fsdp_cuts_inside_tensor_parallelism(crew: Crew, rows: int) -> None:
    for known, there, strided in crew.run(4, fsdp_over_tp, rows):
        assert strided, "fully_shard places such shards in another way now"
        assert known
        assert there


def test_uneven_rows_inside_tensor_parallelism_are_not_taken_for_known(crew: Crew) -> None:
    for known, there, _ in crew.run(4, fsdp_over_tp, 6):
        assert not known or there
