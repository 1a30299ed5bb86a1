"""Collectives in place, whatever device a tensor lies on."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce(tensor: Tensor, group: Any) -> None:
    """Sum over a group's ranks, in place; NCCL alone has no way for a CPU tensor but the GPU.

    Raises:
        RuntimeError: The backend's own, where ranks have lost each other; it says why that may be.
    """
    try:
        if _needs_the_gpu(tensor, group):
            staged = tensor.cuda()
            dist.all_reduce(staged, group=group)
            tensor.copy_(staged)
        else:
            dist.all_reduce(tensor, group=group)
    except RuntimeError as error:
        raise type(error)(
            "the ranks of an optimizer lost each other in step(), where they average what they "
            "observed: every rank has to take every step. Ranks with different numbers of batches "
            "train inside `with model.join():`; an optimizer that only some ranks step needs "
            f"process_group=False. What the backend says: {error}"
        ) from error


def broadcast(tensor: Tensor, source: int, group: Any) -> None:
    """Every rank's tensor becomes that of the rank `source` of the group, in place.

    Args:
        tensor: Contiguous, of any dtype, on any device.
        source: The rank in the group.
        group: A process group.
    """
    if tensor.numel() == 0:
        return
    content = tensor.reshape(-1).view(torch.uint8)
    if _needs_the_gpu(tensor, group):
        staged = content.cuda()
        dist.broadcast(staged, group=group, group_src=source)
        content.copy_(staged)
    else:
        dist.broadcast(content, group=group, group_src=source)


def _needs_the_gpu(tensor: Tensor, group: Any) -> bool:
    return tensor.device.type == "cpu" and dist.get_backend(group) == "nccl"
