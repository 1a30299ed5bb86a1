"""A search on several ranks: all go back in one step, each its own shard, as one rank would."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from rank_jobs import ZeroRedundancyOptimizer
from ranks import Crew, bits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.layout import SLOT

FIND = Control.find_lr(1000)
BATCH, LONGEST, AFTER = 8, 160, 15
CUT = 25


class Course(NamedTuple):
    """What one rank has seen."""

    went_back: int
    began: list[bytes]
    """Parameters before the first step"""
    back: list[bytes]
    """Those after the step that went back"""
    rate: float
    end: list[Tensor]


def whole(model: nn.Module) -> list[Tensor]:
    """All elements of all parameters."""
    found = []
    for param in model.parameters():
        value = param.detach()
        found.append(value.full_tensor() if isinstance(value, DTensor) else value.clone())
    return found


def copied(saved: Any) -> Any:
    """Sharded tensors cannot be copied deeply."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), saved)


class Run:
    """A model under a wrapper, and its optimizer, before the first step."""

    def __init__(self, wrapper: str, size: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        self.net: Any = self.model
        if wrapper == "fsdp":
            fully_shard(self.model, mesh=init_device_mesh("cpu", (size,)))
        elif not wrapper.startswith("alone"):
            self.net = DistributedDataParallel(self.model)
        options: dict[str, Any] = {"lr": 1e-3, "control": FIND, "max_grad_norm": 2.0}
        if wrapper in ("zero", "alone, unclipped"):  # ZeRO's part of the norm is not the norm
            del options["max_grad_norm"]
        if wrapper == "zero":
            self.optimizer: Any = ZeroRedundancyOptimizer(
                self.model.parameters(), AdaptiveAdamW, **options
            )
        else:
            self.optimizer = AdaptiveAdamW(self.model.parameters(), **options)
        self.inner = self.optimizer.optim if wrapper == "zero" else self.optimizer

    def step(self, step: int, rank: int, size: int) -> None:
        """This rank's part of the step's batch."""
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, 6, generator=generator)
        targets = inputs[:, :3] + 0.5 * torch.randn(BATCH, 3, generator=generator)
        share = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
        self.optimizer.zero_grad()
        (self.net(inputs[share]) - targets[share]).square().mean().backward()
        self.optimizer.step()

    def read(self, name: str) -> float:
        return float(self.inner._controller.state[SLOT[name]])

    def goes_on_from(self, other: Run, how: str) -> None:
        """Take over another run's weights and optimizer."""
        self.model.load_state_dict(copied(other.model.state_dict()))
        if how == "state_dict":
            self.optimizer.load_state_dict(copied(other.optimizer.state_dict()))
        else:
            saved = get_optimizer_state_dict(other.model, other.optimizer)
            set_optimizer_state_dict(self.model, self.optimizer, copied(saved))


def search(rank: int, size: int, wrapper: str, how: str | None = None) -> Course:
    """A whole search, and some steps after it; interrupted on the way, if it says how."""
    run = Run(wrapper, size)
    began = [bits(x) for x in whole(run.model)]
    for step in range(LONGEST):
        if how is not None and step == CUT:
            other = Run(wrapper, size)
            other.goes_on_from(run, how)
            run = other
        run.step(step, rank, size)
        if run.read("rewind"):
            break
    back, rate = [bits(x) for x in whole(run.model)], run.read("log_lr")
    for later in range(step + 1, step + 1 + AFTER):
        run.step(later, rank, size)
    assert not run.inner._round.snapshot._copies
    return Course(step, began, back, rate, whole(run.model))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "zero"])
def test_two_ranks_and_one_agree(wrapper: str, crew: Crew) -> None:
    alone = search(0, 1, "alone, unclipped" if wrapper == "zero" else "alone")
    assert CUT < alone.went_back < LONGEST - 1
    courses = crew.run(2, search, wrapper)
    for course in courses:
        # Two halves' mean is the whole's but for rounding: a step more or less would be seen.
        assert course.went_back == alone.went_back
        assert course.began == course.back == alone.began
        assert course.rate == pytest.approx(alone.rate, rel=1e-5)
    assert courses[0].rate == courses[1].rate
    for mine, other in zip(courses[0].end, courses[1].end, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("wrapper", "how"),
    [("ddp", "state_dict"), ("fsdp", "state_dict"), ("ddp", "dcp"), ("fsdp", "dcp")],
)
def test_an_interrupted_search_on_ranks_has_the_bits_of_one_that_was_not(
    wrapper: str, how: str, crew: Crew
) -> None:
    unbroken, resumed = (crew.run(2, search, wrapper, each) for each in (None, how))
    for a, b in zip(unbroken, resumed, strict=True):
        assert (a.went_back, a.began, a.back, a.rate) == (b.went_back, b.began, b.back, b.rate)
        assert all(map(torch.equal, a.end, b.end))
