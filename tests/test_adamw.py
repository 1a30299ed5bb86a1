"""`AdaptiveAdamW` with its controller at rest is torch.optim.AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control

SHAPES = [(50, 7), (33,), (), (1000,), (4, 3, 2)]


def twins(groups: list[dict[str, Any]], **options: Any) -> tuple[Any, Any]:
    """Our optimizer, frozen, and torch's single-tensor one, on equal parameters."""

    def build(make: Callable[..., Any], **more: Any) -> Any:
        torch.manual_seed(1)
        built = []
        for group in groups:
            shapes = group.get("shapes", SHAPES)
            params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
            built.append({k: v for k, v in group.items() if k != "shapes"} | {"params": params})
        return make(built, **options, **more)

    frozen = {"control": Control.frozen()}
    max_grad_norm = options.pop("max_grad_norm", None)
    ours = build(AdaptiveAdamW, **frozen, max_grad_norm=max_grad_norm)
    return ours, build(torch.optim.AdamW, foreach=False, fused=False)


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: Any, t: int, late: bool) -> None:
    """A noisy quadratic's gradients; some come late, some not always."""
    generator = torch.Generator().manual_seed(t)
    for i, param in enumerate(params_of(optimizer)):
        noise = torch.randn(param.shape, generator=generator)
        # Of very different sizes, so that eps counts for some of them.
        param.grad = (0.1 * param.detach() + noise) * 10.0 ** -(i % 5)
        if late and ((i == 1 and t < 60) or (i == 2 and t % 3 == 0) or (i == 3 and t > 150)):
            param.grad = None


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{}], {"weight_decay": 0.0}),
    "weight decay": ([{}], {"weight_decay": 0.3}),
    "maximize": ([{}], {"maximize": True}),
    "amsgrad": ([{}], {"amsgrad": True}),
    "all at once": ([{}], {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "eps": 1e-4}),
    "groups": (
        [
            {"betas": (0.9, 0.999), "lr": 1e-3},
            {"betas": (0.8, 0.95), "lr": 3e-3, "eps": 1e-5, "weight_decay": 0.0},
            {"betas": (0.95, 0.99), "lr": 2e-4, "amsgrad": True, "maximize": True},
            {"betas": (0.0, 0.9), "lr": 1e-3, "shapes": [(5,)]},
        ],
        {"weight_decay": 0.1},
    ),
    "no first moment": ([{}], {"betas": (0.0, 0.99)}),
    "rate of zero": ([{"lr": 0.0}, {"lr": 1e-3}], {}),
}


@pytest.mark.parametrize("late", [False, True], ids=["all gradients", "late and missing gradients"])
@pytest.mark.parametrize("case", CASES)
def test_frozen_is_adamw(case: str, late: bool) -> None:
    groups, options = CASES[case]
    ours, theirs = twins(groups, **options)
    compare_runs(ours, theirs, late=late)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_is_adamw_with_a_rate_in_a_tensor(dtype: torch.dtype) -> None:
    # Without a scalar parameter: torch promotes that to float64 beside a float64 rate, and rounds
    # less than it does with the same rate as a number.
    ours, theirs = twins([{"shapes": [shape for shape in SHAPES if shape]}])
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["lr"] = torch.tensor(1e-3, dtype=dtype)

    def halve(optimizer: Any, t: int) -> None:
        if t == 100:
            optimizer.param_groups[0]["lr"].mul_(0.5)

    compare_runs(ours, theirs, change=halve)


def test_a_rate_in_a_tensor_from_the_start() -> None:
    ours, theirs = twins([{}], lr=torch.tensor(2e-3))
    compare_runs(ours, theirs)
    assert isinstance(ours.param_groups[0]["lr"], Tensor)


def test_frozen_is_adamw_under_a_schedule() -> None:
    ours, theirs = twins([{}, {"lr": 3e-3, "betas": (0.8, 0.99)}])

    def anneal(optimizer: Any, t: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.99 if t > 20 else 1.02

    compare_runs(ours, theirs, change=anneal)


def compare_runs(
    ours: Any,
    theirs: Any,
    *,
    late: bool = False,
    steps: int = 200,
    before: Callable[[Any], None] = lambda _: None,
    change: Callable[[Any, int], None] = lambda *_: None,
) -> None:
    """Raise unless so many steps take both to the same parameters and moments."""
    start = [param.detach().clone() for param in params_of(ours)]
    for t in range(steps):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t, late)
            change(optimizer, t)
        before(theirs)
        ours.step(loss=3.0 - 0.01 * t)
        theirs.step()
    moved = 0
    for a, b, first in zip(params_of(ours), params_of(theirs), start, strict=True):
        assert_close(a, b, "torch_adamw_float32")
        state, expected = ours.state[a], theirs.state[b]
        assert set(expected) | {"mu_product"} == set(state)
        for name, value in expected.items():
            # A first moment passes through zero: its errors are in proportion to the gradients.
            size = expected["exp_avg_sq"].mean().sqrt().item() if name == "exp_avg" else None
            assert_close(state[name], value, "torch_adamw_float32", scale=size)
        moved += not torch.equal(a, first)
    assert moved >= len(start) // 2


def test_the_comparison_sees_a_controller() -> None:
    """One that is not frozen is not AdamW."""
    ours, theirs = twins([{}])
    thawed = AdaptiveAdamW(params_of(ours), control=Control(every=1))
    with pytest.raises(AssertionError, match="torch_adamw_float32"):
        compare_runs(thawed, theirs, steps=20)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}])
def test_clipping_is_torchs(options: dict[str, Any]) -> None:
    max_norm = 27.0
    ours, theirs = twins([{}, {"lr": 3e-3}], **options, max_grad_norm=max_norm)
    norms = []

    def clip(optimizer: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(params_of(optimizer), max_norm, foreach=False)
        norms.append(norm.item())

    compare_runs(ours, theirs, late=True, before=clip)
    # Some steps were clipped and some were not.
    assert min(norms) < 0.98 * max_norm
    assert max(norms) > 1.02 * max_norm
