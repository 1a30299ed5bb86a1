"""Parameters that lie in each other's memory are stepped one after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import BUSY

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control

N = 40_000
"""More than one thread's share"""


def _alone() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(N, generator=generator)) for _ in range(3)]


def _same_data() -> list[nn.Parameter]:
    p, q, r = _alone()
    q.data = p.data
    return [p, q, r]


def _listed_twice() -> list[nn.Parameter]:
    p, _, r = _alone()
    return [p, p, r]


def _partly() -> list[nn.Parameter]:
    memory = torch.randn(N + 1000, generator=torch.Generator().manual_seed(0))
    p, q, r = _alone()
    p.data, q.data = memory[:N], memory[1000:]
    return [p, q, r]


def _within() -> list[nn.Parameter]:
    p, q, r = _alone()
    q.data = p.data[5:6]
    r.data = p.data[N - 2 :]
    return [p, r, q]


KINDS: dict[str, tuple[Callable[[], list[nn.Parameter]], int]] = {
    "alone": (_alone, 0),
    "same data": (_same_data, 2),
    "listed twice": (_listed_twice, 2),
    "partly": (_partly, 2),
    "within another": (_within, 3),
}


def train(make: Callable[[Any], Any], kind: str) -> tuple[list[Tensor], Any]:
    params = KINDS[kind][0]()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
        optimizer = make(params)
    for step in range(4):
        for i, p in enumerate(params):
            generator = torch.Generator().manual_seed(100 * step + i)
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in params], optimizer


class SerialSGD:
    """Momentum, parameter by parameter; torch's forgets a step of one listed twice."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        self.buffers: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        for p in self.params:
            assert p.grad is not None
            self.buffers[p] = 0.9 * self.buffers.get(p, torch.zeros_like(p)) + p.grad
            p.sub_(1e-2 * self.buffers[p])


def by_backend(optimizer: Any) -> dict[str, int]:
    return {b.backend.name: len(b.indices) for b in optimizer._round.plan._sorted}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
            lambda p: AdaptiveAdamW(p, 1e-2, control=Control.frozen()),
        ),
        (SerialSGD, lambda p: AdaptiveSGD(p, 1e-2, momentum=0.9, control=Control.frozen())),
    ],
    ids=["adamw", "sgd"],
)
def test_tensors_in_shared_memory_step_one_after_another(theirs: Any, ours: Any, kind: str) -> None:
    expected, _ = train(theirs, kind)
    found, optimizer = train(ours, kind)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    shared = KINDS[kind][1]
    counts = {"cpu": 3 - shared, "reference": shared}
    assert by_backend(optimizer) == {name: count for name, count in counts.items() if count}


def _shared_step(optimizer: Any, p: Tensor, q: Tensor) -> None:
    optimizer.state[q]["step"] = optimizer.state[p]["step"]


def _shared_moment(optimizer: Any, p: Tensor, q: Tensor) -> None:
    optimizer.state[q]["exp_avg"] = optimizer.state[p]["exp_avg_sq"]


def _gradient_in_a_parameter(_: Any, p: Tensor, q: Tensor) -> None:
    q.grad = p.data


def _gradient_of_both(_: Any, p: Tensor, q: Tensor) -> None:
    q.grad = p.grad


@pytest.mark.parametrize(
    ("share", "together"),
    [
        (_shared_step, 2),
        (_shared_moment, 2),
        (_gradient_in_a_parameter, 2),
        (_gradient_of_both, 0),  # which is only read
    ],
)
def test_state_and_gradients_may_share_memory_too(
    share: Callable[[Any, Tensor, Tensor], None], together: int
) -> None:
    params = _alone()
    optimizer = AdaptiveAdamW(params, control=BUSY)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    share(optimizer, params[0], params[1])
    params[2].grad = None  # entries are made anew
    optimizer.step(loss=1.0)
    assert by_backend(optimizer).get("reference", 0) == together


def test_state_that_shares_memory_is_noticed_beside_a_tensor_that_keeps_none() -> None:
    params = _alone()
    groups: list[Any] = [{"params": params[:1], "momentum": 0.0}, {"params": params[1:]}]
    optimizer = AdaptiveSGD(groups, momentum=0.9, control=BUSY)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    buffer = optimizer.state[params[1]]["momentum_buffer"]
    optimizer.state[params[2]]["momentum_buffer"] = buffer
    optimizer.step(loss=1.0)
    assert by_backend(optimizer) == {"cpu": 1, "reference": 2}


def test_neighbours_in_one_memory_share_nothing() -> None:
    memory, gradients = torch.ones(300), torch.ones(300)
    params = [nn.Parameter(piece) for piece in memory.split(100)]
    for p, grad in zip(params, gradients.split(100), strict=True):
        p.grad = grad
    optimizer = AdaptiveAdamW([*params, nn.Parameter(torch.ones(0))], control=BUSY)
    optimizer.step(loss=1.0)
    assert by_backend(optimizer) == {"cpu": 3}


def test_who_shared_memory_and_no_longer_does_is_swept_again() -> None:
    params = _same_data()
    optimizer = AdaptiveAdamW(params, control=BUSY)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0)
    assert by_backend(optimizer) == {"cpu": 1, "reference": 2}
    params[1].data = params[1].data.clone()
    optimizer.step(loss=1.0)
    assert by_backend(optimizer) == {"cpu": 3}
