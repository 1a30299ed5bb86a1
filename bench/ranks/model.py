"""The demo's GPT on one of several ranks, under DDP or FSDP2."""

from __future__ import annotations

import os
import sys

from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.tasks.gpt import GPT


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
