"""The demo's GPT on one of several ranks, under DDP or FSDP2."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from bench.requests import RequestError
from bench.tasks.gpt import GPT, GPTConfig
from bench.tasks.text import Text, load_text

__all__ = ["GPTConfig", "RequestError", "Text", "load_text", "started", "wrapped"]


def started(command: str) -> bool:
    """Whether torchrun runs this; if not, say how to."""
    if "RANK" in os.environ:
        return True
    print(f"start it with torchrun: torchrun --nproc-per-node=2 {command}", file=sys.stderr)
    return False


def wrapped(config: GPTConfig, seed: int, sharded: bool, device: str = "cpu") -> nn.Module:
    """A GPT whose weights are the seed's, each block a unit of its own where it is sharded."""
    torch.manual_seed(seed)
    model = GPT(config).to(device)
    if not sharded:
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model
