"""Many ranks on GPUs: over NCCL with a GPU for each, over gloo where they share one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_jobs import (
    FED_OPTIONS,
    SHAPES,
    Perceptron,
    digest,
    learn,
    samples,
    whole_gradients,
    whole_parameters,
)
from ranks import Crew, counted_collectives
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, Control

STEPS = 30


def nccl_replicas(rank: int, size: int) -> tuple[str, dict[str, float]]:
    """DDP on NCCL, a GPU per rank, data of its own for each."""
    torch.cuda.set_device(rank)
    group = dist.new_group(backend="nccl")
    model = DistributedDataParallel(Perceptron().cuda(), process_group=group)
    control = Control(every=5, noise_bounds=(0.01, 0.1))
    optimizer = AdaptiveAdamW(
        model.parameters(), lr=3e-3, control=control, max_grad_norm=1.0, process_group=group
    )
    for step in range(200):
        x, y = (t.cuda() for t in samples(4, seed=10 * step + rank))
        loss = (model(x) - y).square().mean()
        learn(optimizer, loss)
    return digest(optimizer, model.parameters()), optimizer.knobs()


def shard(whole: torch.Tensor, mesh: Any) -> torch.Tensor:
    """This rank's part; every rank has the whole, so nothing is sent."""
    return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)


def gathered(param: Any) -> torch.Tensor:
    """The whole tensor, by way of the host: not all of gloo's collectives take a GPU's memory."""
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, param.to_local().detach().cpu())
    return torch.cat(parts)


def feed(optimizer: Any, params: list[Any], mesh: Any) -> None:
    for step in range(STEPS):
        for param, grad in zip(params, whole_gradients(step), strict=True):
            grad = grad.cuda()
            sharded = isinstance(param, DTensor)
            param.grad = shard(grad, mesh) if sharded else grad
        optimizer.observe(2.0 - 0.01 * step)
        optimizer.step()


def alone() -> tuple[list[torch.Tensor], dict[str, float]]:
    params = [nn.Parameter(p.cuda()) for p in whole_parameters()]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS)
    feed(optimizer, params, None)
    return [p.detach().cpu() for p in params], optimizer.knobs()


def shards_on_one_gpu(
    rank: int, size: int
) -> tuple[list[torch.Tensor], dict[str, float], list[int]]:
    """All ranks' shards on the same GPU, where gloo carries what NCCL would refuse to."""
    mesh = init_device_mesh("cuda", (size,))
    params = [nn.Parameter(shard(p.cuda(), mesh)) for p in whole_parameters()]
    optimizer = AdaptiveAdamW(params, **FED_OPTIONS)
    with counted_collectives() as seen:
        feed(optimizer, params, mesh)
    return [gathered(p) for p in params], optimizer.knobs(), [numbers for _, numbers, _ in seen]


pytestmark = pytest.mark.gpu


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="NCCL wants a GPU per rank: needs two CUDA devices"
)
def test_replicas_on_nccl_are_equal_to_the_bit(crew: Crew) -> None:
    one, other = crew.run(2, nccl_replicas, limit=180.0)
    assert one == other
    assert one[1]["updates"] == 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_shards_on_a_gpu_train_what_one_rank_trains(crew: Crew) -> None:
    """To rounding: a chunk's sum of squares is float32, and shards have other chunks.

    A gradient that its noise all but cancels moves its parameter by its sign, so the rounding of a
    noise's strength may cost a part of one step, of 0.01.
    """
    expected, knobs = alone()
    for whole, others, seen in crew.run(2, shards_on_one_gpu, limit=180.0):
        assert others == pytest.approx(knobs, rel=1e-6, nan_ok=True)
        for mine, one in zip(whole, expected, strict=True):
            torch.testing.assert_close(mine, one, rtol=0, atol=1e-4)
        assert seen == [4, len(SHAPES)] * STEPS
