"""What is SGD's alone: μ is the momentum itself, its bounds, its buffer and its options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveSGD, Control, algorithms
from adaptiverl.kernels import elements
from adaptiverl.limits import HEAVY_BALL

SHAPES = [(50, 7), (33,), (1000,), (4, 3, 2)]


def parameters(seed: int = 1) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: Any, t: int) -> None:
    """A noisy quadratic's."""
    generator = torch.Generator().manual_seed(t)
    for param in params_of(optimizer):
        noise = torch.randn(param.shape, generator=generator)
        param.grad = 0.1 * param.detach() + noise


def steer(optimizer: AdaptiveSGD, losses: list[float]) -> None:
    for t, loss in enumerate(losses):
        set_gradients(optimizer, t)
        optimizer.step(loss=loss)


def test_the_knobs_are_the_momentum_and_the_rate_of_the_step() -> None:
    """One step by hand from the knobs that the optimizer reports."""
    optimizer = AdaptiveSGD(parameters(), lr=0.01, momentum=0.9, control=Control(every=2))
    steer(optimizer, [2.0 - 0.1 * t for t in range(20)])
    knobs = optimizer.knobs()
    assert knobs["lr"] > 0.01
    assert knobs["momentum"] > 0.9
    param = params_of(optimizer)[0]
    before, buffer = param.detach().clone(), optimizer.state[param]["momentum_buffer"].clone()
    set_gradients(optimizer, 100)
    grad = param.grad
    assert grad is not None
    # The 21st step of every second one: the knobs do not move.
    optimizer.step(loss=0.0)
    expected = knobs["momentum"] * buffer + grad
    assert_close(optimizer.state[param]["momentum_buffer"], expected, "step_float32")
    assert_close(param, before - knobs["lr"] * expected, "step_float32")


@pytest.mark.parametrize("slope", [-0.1, 0.1])
def test_momentum_stays_within_its_tighter_bounds(slope: float) -> None:
    control = Control(every=1, gain_momentum_reward=0.5, gain_momentum_loss=0.5)
    optimizer = AdaptiveSGD(parameters(), lr=1e-3, momentum=0.9, control=control)
    steer(optimizer, [50.0 + slope * t for t in range(60)])
    bound = HEAVY_BALL.bounds[1] if slope < 0 else HEAVY_BALL.bounds[0]
    assert optimizer.knobs()["momentum"] == pytest.approx(bound, rel=1e-12)
    trace = optimizer.trace()["momentum"]
    assert HEAVY_BALL.bounds[0] <= trace.min() <= trace.max() <= HEAVY_BALL.bounds[1]


@pytest.mark.parametrize(
    ("momentum", "bounds"),
    [(0.9, (0.85, 0.95)), (0.5, (0.5, 0.95)), (0.99, (0.85, 0.99)), (0.0, (0.0, 0.95))],
)
def test_default_bounds_hold_the_start(momentum: float, bounds: tuple[float, float]) -> None:
    optimizer = AdaptiveSGD(parameters(), lr=0.1, momentum=momentum)
    limits = optimizer._controller.limits
    assert (limits.momentum_min, limits.momentum_max) == bounds
    # The promise of the docstring: within the default bounds μ changes a step at most by half.
    low, high = HEAVY_BALL.bounds
    assert (1 - 0.9) / (1 - high) == pytest.approx(2)
    assert (1 - 0.9) / (1 - low) == pytest.approx(2 / 3)


def test_a_group_without_momentum_never_gets_one() -> None:
    groups: list[dict[str, Any]] = [
        {"params": parameters(1), "momentum": 0.9},
        {"params": parameters(2), "momentum": 0.0},
    ]
    optimizer = AdaptiveSGD(groups, lr=1e-3, control=Control(every=2, noise_bounds=(0.0, 0.0)))
    steer(optimizer, [5.0 - 0.1 * t for t in range(20)])
    knobs = optimizer.knobs()
    assert knobs["momentum"] > 0.9
    still = params_of(optimizer)[len(SHAPES)]
    assert "momentum_buffer" not in optimizer.state[still]
    before = still.detach().clone()
    set_gradients(optimizer, 77)
    assert still.grad is not None
    optimizer.step()
    assert_close(still, before - knobs["lr"] * still.grad, "step_float32")


def test_options_are_where_the_twins_have_them() -> None:
    header = (Path(__file__).parent.parent / "csrc/sgd.cpp").read_text()
    found = dict(re.findall(r"kOption(\w+) = (\d);", header))
    assert found == {"Nesterov": str(algorithms.NESTEROV), "Decoupled": str(algorithms.DECOUPLED)}
    assert (elements.NESTEROV, elements.DECOUPLED) == (algorithms.NESTEROV, algorithms.DECOUPLED)
