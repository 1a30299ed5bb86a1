"""With its controller at rest an optimizer is the one that it is named after: torch's, or Lion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pass_cases import CASES as ALGORITHMS
from tolerances import assert_close
from torch import Tensor

from adaptiverl import Control

SHAPES = [(50, 7), (33,), (), (1000,), (4, 3, 2)]
Change = Callable[[Any, int], None]


class PaperLion(torch.optim.Optimizer):
    """The listing of the paper."""

    def __init__(self, params: Any, lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * torch.sign(0.9 * m + 0.1 * p.grad))
                m.copy_(0.99 * m + 0.01 * p.grad)


PLAIN: dict[str, Any] = {"foreach": False, "fused": False}
TWINS: dict[str, Callable[..., Any]] = {
    "adamw": lambda groups, **options: torch.optim.AdamW(groups, **options, **PLAIN),
    "sgd": lambda groups, **options: torch.optim.SGD(groups, **options, **PLAIN),
    "lion": PaperLion,
}
OURS_ALONE = {"adamw": set[str](), "sgd": {"step"}, "lion": {"step"}}


class Pair:
    """Our optimizer, frozen unless said otherwise, and its twin, on equal parameters."""

    def __init__(
        self,
        algorithm: str,
        groups: list[dict[str, Any]] | None = None,
        ours: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.algorithm = algorithm

        def build(make: Callable[..., Any], **more: Any) -> Any:
            torch.manual_seed(1)
            built = []
            for group in groups or [{}]:
                shapes = group.get("shapes", SHAPES)
                params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
                built.append({k: v for k, v in group.items() if k != "shapes"} | {"params": params})
            return make(built, **options, **more)

        frozen = {"control": Control.frozen()}
        self.ours = build(ALGORITHMS[algorithm].optimizer, **frozen | (ours or {}))
        self.theirs = build(TWINS[algorithm])

    def compare(
        self,
        *,
        late: bool = False,
        steps: int = 200,
        change: Change = lambda *_: None,
        before: Callable[[Any, int], None] = lambda *_: None,
    ) -> None:
        """Raise unless so many steps take both to the same parameters and state.

        `change` is called with both before each step, `before` with the twin alone.
        """
        start = [param.detach().clone() for param in params_of(self.ours)]
        for t in range(steps):
            for optimizer in (self.ours, self.theirs):
                set_gradients(optimizer, t, late)
                change(optimizer, t)
            before(self.theirs, t)
            self.ours.step(loss=3.0 - 0.01 * t)
            self.theirs.step()
        moved = 0
        for a, b, first in zip(params_of(self.ours), params_of(self.theirs), start, strict=True):
            self._compare_one(a, b)
            moved += not torch.equal(a, first)
        assert moved >= len(start) // 2

    def _compare_one(self, a: Tensor, b: Tensor) -> None:
        if self.algorithm == "lion":
            # Each step rounds once or twice; signs are those of float32 in both.
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
            return
        name = f"torch_{self.algorithm}_float32"
        assert_close(a, b, name)
        state, expected = self.ours.state[a], self.theirs.state[b]
        assert set(expected) | OURS_ALONE[self.algorithm] == set(state) or not expected
        for entry, value in expected.items():
            # A first moment passes through zero: its errors are in proportion to the gradients.
            size = expected["exp_avg_sq"].mean().sqrt().item() if entry == "exp_avg" else None
            assert_close(state[entry], value, name, scale=size)


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: Any, t: int, late: bool) -> None:
    """A noisy quadratic's gradients; some come late, some not always."""
    generator = torch.Generator().manual_seed(t)
    for i, param in enumerate(params_of(optimizer)):
        noise = torch.randn(param.shape, generator=generator)
        # Of very different sizes, so that AdamW's eps counts for some of them.
        param.grad = (0.1 * param.detach() + noise) * 10.0 ** -(i % 5)
        if late and ((i == 1 and t < 60) or (i == 2 and t % 3 == 0) or (i == 3 and t > 150)):
            param.grad = None


def sgd(**options: Any) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    return "sgd", [{}], {"lr": 0.01} | options


# What torch's own tests run on, test_contract.py takes from there.
CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "adamw, all at once": (
        "adamw",
        [{}],
        {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "eps": 1e-4},
    ),
    "adamw, groups": (
        "adamw",
        [
            {"betas": (0.9, 0.999), "lr": 1e-3},
            {"betas": (0.8, 0.95), "lr": 3e-3, "eps": 1e-5, "weight_decay": 0.0},
            {"betas": (0.95, 0.99), "lr": 2e-4, "amsgrad": True, "maximize": True},
            {"betas": (0.0, 0.9), "lr": 1e-3, "shapes": [(5,)]},
        ],
        {"weight_decay": 0.1},
    ),
    "adamw, no first moment": ("adamw", [{}], {"betas": (0.0, 0.99)}),
    "adamw, rate of zero": ("adamw", [{"lr": 0.0}, {"lr": 1e-3}], {}),
    "adamw, rate in a tensor": ("adamw", [{}], {"lr": torch.tensor(2e-3)}),
    "sgd, all dampened": sgd(momentum=0.9, dampening=1.0),
    "sgd, nesterov and decay": sgd(momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd, dampening without momentum": sgd(dampening=0.3),
    "sgd, groups": (
        "sgd",
        [
            {"momentum": 0.9, "lr": 0.01},
            {"momentum": 0.0, "lr": 0.03, "weight_decay": 0.0},
            {"momentum": 0.95, "lr": 0.002, "nesterov": True, "maximize": True},
            {"momentum": 0.5, "dampening": 0.9, "lr": 0.0},
        ],
        {"weight_decay": 0.05},
    ),
    "lion": ("lion", [{}, {"lr": 3e-4}], {"lr": 1e-3, "weight_decay": 0.2}),
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_it_is_its_namesake(case: str) -> None:
    """Two of five tensors have a gradient in every step, the others late or not always."""
    algorithm, groups, options = CASES[case]
    pair = Pair(algorithm, groups, **options)
    pair.compare(late=True)
    assert type(pair.ours.param_groups[0]["lr"]) is type(pair.theirs.param_groups[0]["lr"])


def anneal(optimizer: Any, t: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * (0.99 if t > 20 else 1.02)


def halve_in_place(optimizer: Any, t: int) -> None:
    if t == 100:
        optimizer.param_groups[0]["lr"].mul_(0.5)


def start_a_buffer(optimizer: Any, t: int) -> None:
    for group in optimizer.param_groups:
        group["momentum"] = 0.9 if t >= 50 else 0.0


# Without a scalar parameter: torch promotes that to float64 beside a float64 rate, and rounds less
# than it does with the same rate as a number.
NO_SCALAR = {"shapes": [shape for shape in SHAPES if shape]}


@pytest.mark.parametrize(
    ("pair", "change"),
    [
        (lambda: Pair("adamw", [{}, {"lr": 3e-3, "betas": (0.8, 0.99)}]), anneal),
        (lambda: Pair("sgd", [{}, {"lr": 0.003}], momentum=0.9), anneal),
        (lambda: Pair("lion"), anneal),
        (lambda: Pair("adamw", [NO_SCALAR | {"lr": torch.tensor(1e-3)}]), halve_in_place),
        (lambda: Pair("adamw", [NO_SCALAR | {"lr": torch.tensor(1e-3).double()}]), halve_in_place),
        (lambda: Pair("sgd", lr=0.01, dampening=0.5), start_a_buffer),
    ],
)
def test_options_that_change_in_mid_run(pair: Callable[[], Pair], change: Change) -> None:
    pair().compare(change=change)


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_the_comparison_sees_a_controller(algorithm: str) -> None:
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9} if algorithm == "sgd" else {}
    steered = Pair(algorithm, ours={"control": Control(every=1)}, **options)
    with pytest.raises(AssertionError, match=f"torch_{algorithm}_float32"):
        steered.compare(steps=20)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("adamw", {}),
        ("adamw", {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
        ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
        ("lion", {}),
    ],
)
def test_clipping_is_torchs(algorithm: str, options: dict[str, Any]) -> None:
    max_norm, norms = 27.0, []
    pair = Pair(algorithm, [{}, {"lr": 3e-3}], {"max_grad_norm": max_norm}, **options)

    def clip(optimizer: Any, t: int) -> None:
        norm = torch.nn.utils.clip_grad_norm_(params_of(optimizer), max_norm, foreach=False)
        norms.append(norm.item())

    pair.compare(late=True, before=clip)
    # Some steps were clipped and some were not.
    assert min(norms) < 0.98 * max_norm
    assert max(norms) > 1.02 * max_norm


def test_sgds_decoupled_weight_decay_is_a_shrinkage_before_the_step() -> None:
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True}
    pair = Pair("sgd", ours={"decoupled_weight_decay": True}, **options)
    pair.ours.param_groups[0]["weight_decay"] = 0.1

    def shrink(optimizer: Any, t: int) -> None:
        for param in params_of(optimizer):
            param.data.mul_(1 - 0.01 * 0.1)

    pair.compare(before=shrink)
