"""Training on several ranks: torchrun starts it, each rank takes its share of every batch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.tasks import Problem
from bench.tasks.gpt import GPT


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of torchrun's ranks meanwhile, on gloo or NCCL; alone where torchrun isn't."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
        # Whoever left now would take the connection from one that still reads.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(problem: Problem) -> Problem:
    """The same with this rank's part of every batch and, by DDP, the mean of all gradients."""
    if size() == 1:
        return problem
    return replace(
        problem,
        objective=DistributedDataParallel(problem.objective),
        batch=lambda step: tuple(part[rank() :: size()] for part in problem.batch(step)),
    )


def mean(losses: list[Tensor]) -> list[Tensor]:
    if size() == 1:
        return losses
    together = torch.stack(losses) / size()
    dist.all_reduce(together)
    return list(together)


def started(command: str) -> bool:
    """Whether torchrun runs this; if not, say how to."""
    if "RANK" in os.environ:
        return True
    print(f"start it with torchrun: torchrun --nproc-per-node=2 {command}", file=sys.stderr)
    return False


def wrapped(model: GPT, sharded: bool) -> nn.Module:
    """Under DDP; or under FSDP2, each block a unit of its own."""
    if not sharded:
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model
