"""`AdaptiveLion` as an optimizer of torch's: arguments, save and load, steering.

Its step is in `test_pass.py`.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import BUSY, assert_same

from adaptiverl import AdaptiveLion, Control


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def descend(optimizer: Any, steps: int, first: int = 0) -> None:
    """On a bowl, with some noise."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        loss = torch.stack([p.detach().square().sum() for p in params]).sum() / 2
        for p in params:
            p.grad = p.detach() + 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step(loss=loss)


def lion(param: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """The paper's listing, with its defaults."""
    m = torch.zeros_like(param)
    for grad in grads:
        param = param * (1 - lr * decay) - lr * torch.sign(0.9 * m + 0.1 * grad)
        m = 0.99 * m + 0.01 * grad
    return param


def test_frozen_it_is_lion() -> None:
    start = torch.randn(300)
    grads = [torch.randn(300) for _ in range(200)]
    param = nn.Parameter(start.clone())
    optimizer = AdaptiveLion([param], lr=1e-3, weight_decay=0.2, control=Control.frozen())
    for grad in grads:
        param.grad = grad
        optimizer.step(loss=1.0)
    # 200 steps, of which each rounds once or twice; signs are those of float32 in both.
    torch.testing.assert_close(param, lion(start, grads, 1e-3, 0.2), rtol=0, atol=2e-5)
    assert not torch.allclose(param, start, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be in \[0, 1\), got 1.0"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\] must be in \[0, 1\), got -0.1"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveLion(parameters((3,)), **options)
    optimizer = AdaptiveLion(parameters((3,)))
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters((2,)), **options})
    assert len(optimizer.param_groups) == 1


def test_its_state_is_one_moment_and_a_count() -> None:
    params = parameters((4, 3), ())
    optimizer = AdaptiveLion(params, control=BUSY)
    descend(optimizer, 3)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"exp_avg", "step"}
        assert state["exp_avg"].shape == p.shape
        assert state["step"].item() == 3


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_copy_goes_on_to_the_bit(dtype: torch.dtype, way: str) -> None:
    def make() -> Any:
        params = [nn.Parameter(p.detach().to(dtype)) for p in parameters((4, 3), ())]
        return AdaptiveLion(params, lr=1e-2, control=BUSY, seed=5, max_grad_norm=1.0)

    optimizer = make()
    descend(optimizer, 6)
    if way == "state_dict":
        again = make()
        mine, theirs = (o.param_groups[0]["params"] for o in (again, optimizer))
        for a, b in zip(mine, theirs, strict=True):
            a.data.copy_(b)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        again = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else None
        again = copy.deepcopy(optimizer) if again is None else again
    descend(optimizer, 4, first=6)
    descend(again, 4, first=6)
    pairs = zip(again.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True)
    for a, b in pairs:
        assert_same(a.detach(), b.detach())
        assert_same(again.state[a]["exp_avg"], optimizer.state[b]["exp_avg"])
    assert again.knobs() == optimizer.knobs()


def test_a_scaler_skips_and_unscales_in_its_step() -> None:
    params = parameters((5,))
    optimizer = AdaptiveLion(params, lr=1e-2, fused=True, control=Control.frozen())
    assert optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    before = params[0].detach().clone()
    for overflow in (True, False):
        optimizer.zero_grad()
        loss = params[0].square().sum() * (float("inf") if overflow else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(params[0], before) == overflow


def test_it_finds_its_rate() -> None:
    """From a rate a thousand times too low, on a bowl: α grows, is held, and is annealed."""
    params = parameters((30, 4), (30,))
    optimizer = AdaptiveLion(params, lr=1e-6, control=Control.find_lr(horizon=600), seed=1)
    start = sum(p.square().sum().item() for p in params)
    descend(optimizer, 300)
    held = optimizer.knobs()
    assert held["lr"] > 1e-4
    descend(optimizer, 300, first=300)
    assert sum(p.square().sum().item() for p in params) < 0.05 * start
    assert optimizer.knobs()["lr"] < 0.2 * held["lr"]
