"""The runs of test_digests.py on several ranks, under DDP and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from training import saved_states

from adaptiverl.layout import FIELDS, MEMORY_SIZE, SLOT
from adaptiverl.readings import OF_THE_GRADIENT

SINCE_4 = (
    "log_lr_risen",
    "undershoot",
    "ramp_losses",
    "losses_heard",
    "ramp_loss",
    "ramp_loss_mean",
    "ramp_loss_square",
    "ramp_loss_least",
    "ramp_loss_limit",
    "climbing",
)
"""Numbers of the controller's memory that its fifth layout was the first to have"""
SINCE_5 = FIELDS[SLOT["arms_key"] : SLOT["aligned_elements"]]
"""The same of the sixth"""
SINCE_6 = FIELDS[SLOT["aligned_elements"] : MEMORY_SIZE]
"""The same of the seventh"""
SINCE_7 = FIELDS[SLOT["watches"] : SLOT["searching"]]
"""The same of the eighth"""
NEWER = (
    *FIELDS[SLOT["log_lr_zero"] : SLOT["held"]],
    "held_at",
    *SINCE_4,
    *SINCE_5,
    *SINCE_6,
    *SINCE_7,
)
"""Numbers of the controller's memory that it did not have when the digests were taken"""

Make = Callable[[list[nn.Parameter]], Any]


class Pulls(nn.Module):
    """Parameters of several shapes, each with a gradient that is its own distance to a target."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(value.clone()) for value in values])

    def forward(self, targets: list[Tensor]) -> Tensor:
        pulls = [
            (weight - target).square().sum() / 2
            for weight, target in zip(self.weights, targets, strict=True)
        ]
        return torch.stack(pulls).sum()


def in_layout_3(memory: Tensor) -> Tensor:
    """The controller's memory as it was laid out when the digests were taken."""
    kept = [SLOT[name] for name in FIELDS[:MEMORY_SIZE] if name not in NEWER]
    memory = memory[kept]
    memory[0] = 3
    return memory


def known_of(optimizer: Any) -> list[float]:
    """What `knobs()` told when the digests were taken."""
    return [value for name, value in optimizer.knobs().items() if name not in OF_THE_GRADIENT]


def whole(value: Any) -> Tensor:
    """A tensor with all its shards."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def train(
    rank: int,
    size: int,
    wrapper: str,
    make: Make,
    values: list[Tensor],
    target: Callable[[tuple[int, ...], int], Tensor],
    loss_of: Callable[[int], float],
    steps: int,
) -> list[Tensor | float]:
    """Parameters, state, the controller's memory and the knobs after some steps.

    Args:
        rank: Of this process; its targets and its losses are its own.
        size: How many ranks there are.
        wrapper: "DDP" or "FSDP2".
        make: Makes the optimizer.
        values: Where the parameters start.
        target: A tensor of a shape, by a number.
        loss_of: The loss of a step.
        steps: How many.
    """
    model: Any = Pulls(values)
    weights = model.weights
    if wrapper == "FSDP2":
        fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    optimizer = make(list(weights))
    for step in range(steps):
        salt = 1000 + 10 * (size * step + rank)
        targets = [target(tuple(v.shape), salt + i) for i, v in enumerate(values)]
        optimizer.zero_grad()
        model(targets).backward()
        optimizer.observe(loss_of(step) + rank)
        optimizer.step()
    states = saved_states(optimizer)
    state = [whole(x) for w in weights for _, x in sorted(states[w].items())]
    memory = in_layout_3(optimizer._controller.memory)
    return [*(whole(w.detach()) for w in weights), *state, memory, *known_of(optimizer)]
