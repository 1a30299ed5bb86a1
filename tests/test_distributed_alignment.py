"""Σ g·u, Σ g² and Σ u² over ranks: every element counts once, however it is sharded or copied."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import pytest
import torch
import torch.distributed as dist
from alignment import ALIGNED, NOISY, alignment_of, assert_sums_close
from rank_jobs import (
    BATCH,
    Products,
    ZeroRedundancyOptimizer,
    coefficients,
    whole_gradients,
    whole_parameters,
)
from ranks import Crew, bits, counted_collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD

Course = list[list[float]]
"""The three sums of every step"""

STEPS = 6
OPTIONS: dict[str, Any] = {"lr": 1e-2, "control": ALIGNED, "max_grad_norm": 0.4, "seed": 3}


def memory_of(optimizer: Any) -> bytes:
    return bits(optimizer._controller.memory)


def make(params: list[Any], options: dict[str, Any]) -> Any:
    options = dict(options)
    return options.pop("algorithm", AdaptiveAdamW)(params, **OPTIONS | options)


def put_gradients(params: list[Any], step: int) -> None:
    """The same whole gradients however they are sharded; in some steps one is missing."""
    for i, (param, grad) in enumerate(zip(params, whole_gradients(step), strict=True)):
        if i == 1 and step % 4 == 2:
            param.grad = None
        elif isinstance(param, DTensor):
            param.grad = distribute_tensor(grad, param.device_mesh, param.placements)
        else:
            param.grad = grad


def course(optimizer: Any, params: list[Any], inner: Any = None) -> Course:
    """What the controller was told in every step; `inner` is the optimizer that has it."""
    seen = []
    for step in range(STEPS):
        put_gradients(params, step)
        optimizer.step(loss=2.0 - 0.01 * step)
        seen.append(alignment_of(inner or optimizer))
    return seen


def alone(options: dict[str, Any]) -> Course:
    """One rank with the whole tensors."""
    params = [nn.Parameter(p) for p in whole_parameters()]
    return course(make(params, options), params)


def shards(
    rank: int,
    size: int,
    mesh_shape: tuple[int, ...],
    ways: list[Any],
    options: dict[str, Any],
) -> tuple[bytes, Course]:
    """Parameters placed on a mesh in turn of `ways`; None: a plain tensor that all ranks hold."""
    mesh = init_device_mesh("cpu", mesh_shape)
    return sharded_on(mesh, ways, options)


def sharded_on(mesh: Any, ways: list[Any], options: dict[str, Any]) -> tuple[bytes, Course]:
    params = []
    for i, whole in enumerate(whole_parameters()):
        way = ways[i % len(ways)]
        params.append(nn.Parameter(whole if way is None else distribute_tensor(whole, mesh, way)))
    optimizer = make(params, options)
    seen = course(optimizer, params)
    return memory_of(optimizer), seen


def on_a_part_of_the_mesh(rank: int, size: int, ways: list[Any]) -> tuple[bytes, Course]:
    """Tensor parallelism of two, twice: the parameters know nothing of the other pair of ranks."""
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("copy", "tensor"))
    return sharded_on(mesh["tensor"], ways, {})


def wrapped(rank: int, size: int, wrapper: str) -> tuple[bytes, Course]:
    """A model whose gradients are means of whole numbers: the same bits on any number of ranks."""
    model = Products()
    net: Any = model
    if wrapper == "ddp":
        net = DistributedDataParallel(model)
    elif wrapper == "fsdp":
        fully_shard(model)
    else:
        mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copy", "shard"))
        fully_shard(model, mesh=mesh)
    optimizer = make(list(model.parameters()), {"max_grad_norm": None})
    share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        net(*(c[share] for c in coefficients(step, exact=True))).mean().backward()
        optimizer.step(loss=2.0 - 0.01 * step)
        seen.append(alignment_of(optimizer))
    return memory_of(optimizer), seen


def zero(rank: int, size: int) -> tuple[bytes, Course]:
    """ZeroRedundancyOptimizer: each rank's optimizer has tensors of its own."""
    params: list[Tensor] = [nn.Parameter(p) for p in whole_parameters()]
    own: Any = partial(AdaptiveAdamW, control=ALIGNED)
    optimizer: Any = ZeroRedundancyOptimizer(params, own, lr=1e-2)
    seen = course(optimizer, params, optimizer.optim)
    return memory_of(optimizer.optim), seen


def some_have_no_gradient(rank: int, size: int) -> tuple[bytes, Course]:
    """The last rank has none at first, then nobody has one."""
    param = nn.Parameter(torch.ones(5))
    optimizer = make([param], {})
    seen = []
    for step in range(STEPS):
        has = rank < size - 1 and step < 4
        param.grad = torch.full((5,), 1.0 + step) if has else None
        optimizer.step(loss=2.0)
        seen.append(alignment_of(optimizer))
    return memory_of(optimizer), seen


def own_gradients(rank: int, size: int, how: str) -> tuple[list[Any], list[float]]:
    """Every rank on gradients of its own: who meets, and what the controller is told at last."""
    group: Any = False if how == "alone" else None
    if how == "pairs":
        pairs = [dist.new_group([first, first + 1]) for first in range(0, size, 2)]
        group = pairs[rank // 2]
    param = nn.Parameter(torch.ones(3))
    optimizer = make([param], {"process_group": group, "max_grad_norm": None})
    met: list[Any] = []
    for gradient in (1.0, float(rank + 1)):
        param.grad = torch.full((3,), gradient)
        with counted_collectives() as seen:
            optimizer.step(loss=1.0)
        met = [members for members, _, _ in seen[1:]]  # the first is the losses'
    return met, alignment_of(optimizer)


def collectives(rank: int, size: int) -> dict[str, list[int]]:
    """How many numbers each collective of a step adds up, by what the optimizer does."""
    mesh = init_device_mesh("cpu", (size,))
    modes: dict[str, dict[str, Any]] = {
        "quiet": {"max_grad_norm": None},
        "noise": {"control": NOISY, "max_grad_norm": None},
        "clipping": {},
    }
    found = {}
    for name, options in modes.items():
        whole = whole_parameters()
        params = [nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])) for p in whole]
        optimizer = make(params, options)
        put_gradients(params, 0)
        with counted_collectives() as seen:
            optimizer.step(loss=1.0)
        found[name] = [numbers for _, numbers, _ in seen]
    rehearsal = make([nn.Parameter(torch.ones(3))], {})
    rehearsal.param_groups[0]["lr"] = 0.0
    rehearsal.param_groups[0]["params"][0].grad = torch.zeros(3)
    with counted_collectives() as seen:
        rehearsal.step()
    found["making state for a checkpoint"] = [numbers for _, numbers, _ in seen]
    return found


def skipped(rank: int, size: int) -> tuple[list[bytes], Course]:
    """At the third step a gradient scaler found an overflow, on every rank."""
    params = [nn.Parameter(p) for p in whole_parameters()]
    optimizer = make(params, {})
    optimizer.grad_scale = torch.tensor(1.0)
    memories, told = [], []
    for step in range(4):
        put_gradients(params, step)
        optimizer.found_inf = torch.tensor(float(step == 2))
        optimizer.step()
        memories.append(memory_of(optimizer))
        told.append(alignment_of(optimizer))
    return memories, told


ROWS, COPY = Shard(0), Replicate()


def check(results: list[tuple[bytes, Course]], expected: Course, of: float = 1.0) -> None:
    """All ranks have the same memory to the bit, and `of` times the expected sums in every step."""
    assert all(result == results[0] for result in results)
    assert any(gu != 0 for gu, _, _ in expected), "no direction: the test is of nothing"
    for told, whole in zip(results[0][1], expected, strict=True):
        assert_sums_close(told, [of * number for number in whole], "sums_float64")


# Shards, with gradients put there by hand


@pytest.mark.parametrize(
    ("mesh", "ways", "options"),
    [
        ((2,), [[ROWS]], {}),
        ((3,), [[ROWS]], {}),
        ((4,), [[ROWS]], {}),
        ((3,), [[ROWS], None], {}),
        ((2, 2), [[COPY, ROWS]], {}),
        ((2, 2), [[ROWS, COPY]], {}),
        ((2, 2), [[ROWS, ROWS]], {}),
        ((2, 2), [[COPY, COPY]], {}),
        ((2, 2), [[COPY, ROWS], [ROWS, ROWS], [COPY, COPY], None], {}),
        ((2,), [[ROWS], None], {"algorithm": AdaptiveSGD, "momentum": 0.9, "nesterov": True}),
        ((2,), [[ROWS], None], {"amsgrad": True, "maximize": True}),
        ((2,), [[ROWS], None], {"algorithm": AdaptiveLion}),
        ((2,), [[ROWS], None], {"control": NOISY}),
    ],
    ids=str,
)
def test_shards_are_told_what_one_rank_is(
    crew: Crew, mesh: tuple[int, ...], ways: list[Any], options: dict[str, Any]
) -> None:
    """`None` is a plain tensor among the shards."""
    check(crew.run(prod(mesh), shards, mesh, ways, options), alone(options))


def test_shards_of_a_mesh_that_is_not_all_of_the_ranks(crew: Crew) -> None:
    check(crew.run(4, on_a_part_of_the_mesh, [[ROWS], None, [COPY]]), alone({}))


# Wrappers


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "hsdp"])
def test_wrapped_models_are_told_what_one_rank_is(crew: Crew, wrapper: str, size: int) -> None:
    ((_, expected),) = crew.run(1, wrapped, "ddp")
    check(crew.run(size, wrapped, wrapper), expected)


@pytest.mark.parametrize("size", [2, 3])
def test_tensors_that_one_rank_each_has(crew: Crew, size: int) -> None:
    """ZeRO: the mean over ranks is the whole's sum over their number, which h does not see."""
    expected = alone({"max_grad_norm": None})
    check(crew.run(size, zero), expected, of=1 / size)


# Who meets


def test_ranks_without_a_gradient_meet_the_others(crew: Crew) -> None:
    results = crew.run(3, some_have_no_gradient)
    assert all(result == results[0] for result in results)
    told = results[0][1]
    # Two ranks of three have five elements each, clipped to a norm of 0.4; then nobody has any.
    assert [gg for _, gg, _ in told] == pytest.approx([2 / 3 * 0.16] * 4 + [0.0] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("how", "members", "means"),
    [
        ("world", [4], [2.5] * 4),
        ("pairs", [2], [1.5, 1.5, 3.5, 3.5]),
        ("alone", [], [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_those_who_decide_together_average(
    crew: Crew, how: str, members: list[int], means: list[float]
) -> None:
    """Ranks' gradients are 1, 2, 3, 4 in three places, and all came from the same first step."""
    for (met, (gu, _, uu)), mean in zip(crew.run(4, own_gradients, how), means, strict=True):
        assert met == members
        # u is the same everywhere: Σ g·u goes by the mean gradient.
        assert gu / uu * u_of_first_step() == pytest.approx(mean, rel=1e-5)


def u_of_first_step() -> float:
    """m/√v after one step on a gradient of 1: 0.1/√0.001."""
    return 0.1 / 0.001**0.5


def test_collectives(crew: Crew) -> None:
    squares = len(whole_parameters())
    for found in crew.run(2, collectives):
        assert found == {
            "quiet": [4, 4],
            "noise": [4, squares, 4],
            "clipping": [4, squares, 4],
            "making state for a checkpoint": [],
        }


def test_a_skipped_step_leaves_what_all_ranks_were_told(crew: Crew) -> None:
    results = crew.run(3, skipped)
    assert all(result == results[0] for result in results)
    memories, told = results[0]
    assert memories[2] == memories[1] != memories[3]
    assert told[2] == told[1] != told[3]
