"""Gradient scalers on many ranks: a step is skipped on all of them or on none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Crew, bits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel

from adaptiverl import AdaptiveAdamW, Control


def overflow(
    rank: int, size: int, wrapper: str, fused: bool, where: str
) -> tuple[list[bytes], bytes, dict[str, float], float]:
    """Ten steps under a gradient scaler; at step 4 one rank's batch overflows."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model)
    control = Control(every=2, noise_bounds=(0.05, 0.1))
    optimizer = AdaptiveAdamW(model.parameters(), lr=1e-2, control=control, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(10):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(4, 4, generator=generator)
        if step == 4 and rank == size - 1:
            x = x * float("inf") if where == "input" else x
        loss = model(x).square().mean()
        if step == 4 and rank == size - 1 and where == "loss":
            loss = loss * float("inf")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        optimizer.observe(loss.detach())
        scaler.step(optimizer)
        scaler.update()
    whole = [bits(p.full_tensor() if hasattr(p, "full_tensor") else p) for p in model.parameters()]
    return (
        whole,
        bits(optimizer._controller.memory),
        optimizer.knobs(),
        scaler.get_scale(),
    )


def sharded_loss(rank: int, size: int) -> tuple[bytes, float]:
    """Tensor parallelism's losses are DTensors themselves."""
    mesh = init_device_mesh("cpu", (size,))
    param = nn.Parameter(torch.ones(3))
    optimizer = AdaptiveAdamW([param], lr=1e-2, control=Control(every=1))
    for _ in range(3):
        param.grad = torch.ones(3)
        optimizer.observe(DTensor.from_local(torch.tensor(1.0 + rank), mesh, [Partial()]))
        optimizer.step()
    return bits(optimizer._controller.memory), optimizer.knobs()["loss"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_one_ranks_overflow_skips_everybodys_step(crew: Crew, wrapper: str, fused: bool) -> None:
    results = crew.run(2, overflow, wrapper, fused, "loss")
    assert results[0] == results[1]
    _, _, knobs, scale = results[0]
    assert knobs["step"] == 9
    assert knobs["nonfinite"] == 0, "a skipped step's loss does not count"
    assert scale == 2.0**9


def test_losses_that_are_sharded_tensors(crew: Crew) -> None:
    one, other = crew.run(2, sharded_loss)
    assert one == other
    assert one[1] == 3.0
