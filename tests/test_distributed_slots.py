"""Shards of state under FSDP2: what does not fit is refused, and what was moved away is freed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from ranks import Crew
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control


class Sharded:
    """A model under FSDP2, some quick steps old."""

    def __init__(self, kind: str, size: int) -> None:
        self.model = nn.Linear(4, 6)
        fully_shard(self.model, mesh=init_device_mesh("cpu", (size,)))
        params, control = self.model.parameters(), Control.frozen()
        if kind == "adamw":
            self.optimizer: Any = AdaptiveAdamW(params, control=control)
        else:
            self.optimizer = AdaptiveSGD(params, 0.1, 0.9, control=control)
        for _ in range(3):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(2, 4)).sum().backward()
        self.optimizer.step()


def freed(rank: int, size: int, kind: str) -> tuple[bool, int, bool]:
    """Whether the last step was a quick one; what outlives an offload; whether autograd is told."""
    run = Sharded(kind, size)
    states = list(run.optimizer.state.values())
    old = [weakref.ref(t) for state in states for t in state.values()]
    old += [weakref.ref(t._local_tensor) for s in states for t in s.values() if t.dim() > 0]
    gc.disable()
    for state in states:
        for name in state:
            state[name] = state[name].clone()
    alive = sum(reference() is not None for reference in old)
    gc.enable()
    run.step()
    quick = run.optimizer._round.plan._last is not None
    versions = [p._version for p in run.model.parameters()]
    run.step()
    told = all(p._version > v for p, v in zip(run.model.parameters(), versions, strict=True))
    return quick, alive, told


def cut(rank: int, size: int, kind: str) -> tuple[str, bool]:
    """What a step says of a shard of a moment that was made smaller; whether nothing moved."""
    run = Sharded(kind, size)
    state = next(iter(run.optimizer.state.values()))
    next(t for t in state.values() if t.dim() > 0)._local_tensor.resize_(1)
    params: list[Any] = list(run.model.parameters())
    before = [p.full_tensor().clone() for p in params]
    steps = [float(s["step"]) for s in run.optimizer.state.values()]
    try:
        run.step()
        said = "nothing"
    except RuntimeError as error:
        said = str(error)
    after = [p.full_tensor() for p in params]
    same = all(map(torch.equal, before, after))
    return said, same and steps == [float(s["step"]) for s in run.optimizer.state.values()]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_between_steps_nothing_keeps_a_shard_alive(crew: Crew, kind: str) -> None:
    assert crew.run(2, freed, kind) == [(True, 0, True)] * 2


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_shard_of_a_moment_that_was_cut_is_refused(crew: Crew, kind: str) -> None:
    for said, unmoved in crew.run(2, cut, kind):
        assert "of parameter 0 must match the parameter's, got (1,) beside" in said
        assert unmoved
