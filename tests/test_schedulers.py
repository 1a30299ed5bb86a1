"""Every scheduler sets what it sets for AdamW, and the controller multiplies it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training import assert_same, descend, parameters, values

from adaptiverl import AdaptiveAdamW, Control

SHAPES = ((7,), (6, 5), ())
STEPS = 24
FROZEN = Control.frozen()
GAINS = (
    "gain_lr_reward",
    "gain_lr_loss",
    "gain_momentum_reward",
    "gain_momentum_loss",
    "gain_noise_plateau",
    "gain_noise_reward",
)
NO_GAINS = Control(mode="modulate", every=2, **dict.fromkeys(GAINS, 0.0))  # type: ignore[arg-type]
"""Sensors at work and σ allowed, but nothing that moves a knob"""
MODULATE = Control(mode="modulate", every=2, noise_bounds=(0.0, 0.1), momentum_bounds=(0.5, 0.999))

Schedule = Callable[[Any], Any]
SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 5)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 7, 0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 11], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, 6),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 2e-2, 4, cycle_momentum=False),
    "CyclicLR, momentum too": lambda o: lr_scheduler.CyclicLR(
        o, 1e-3, 2e-2, 4, base_momentum=0.8, max_momentum=0.95
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 2e-2, STEPS + 1, cycle_momentum=False),
    "OneCycleLR, momentum too": lambda o: lr_scheduler.OneCycleLR(o, 2e-2, STEPS + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2, threshold=0.05),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3, 6),
}
CYCLES_MOMENTUM = {"CyclicLR, momentum too", "OneCycleLR, momentum too"}


def metric(step: int) -> float:
    """Falls, then rests, so that a plateau is seen."""
    return max(1.0, 3.0 - 0.4 * step)


def train(
    optimizer: Any, params: list[nn.Parameter], schedule: Schedule
) -> list[tuple[Any, Any, Any]]:
    """Per step: the first group's entries, and what of them was in effect."""
    scheduler = schedule(optimizer)
    seen = []

    def after(step: int) -> None:
        group = optimizer.param_groups[0]
        knobs = optimizer.knobs() if isinstance(optimizer, AdaptiveAdamW) else None
        seen.append((float(group["lr"]), float(group["betas"][0]), knobs))
        takes = "metrics" in inspect.signature(scheduler.step).parameters
        scheduler.step(*([metric(step)] if takes else []))

    descend(optimizer, params, STEPS, after=after)
    return seen


def test_the_list_is_all_of_torchs() -> None:
    classes = {
        name
        for name, thing in vars(lr_scheduler).items()
        if inspect.isclass(thing) and issubclass(thing, lr_scheduler.LRScheduler)
    }
    tried = {name.split(",")[0] for name in SCHEDULES} - {"SWALR"}
    assert classes - {"LRScheduler", "_LRScheduler"} == tried


@pytest.mark.parametrize(("dtype", "tensor"), [(torch.float32, False), (torch.float64, True)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gains_of_zero_are_the_schedulers_run(name: str, dtype: torch.dtype, tensor: bool) -> None:
    def lr() -> Any:
        return torch.tensor(1e-2, dtype=torch.float64) if tensor else 1e-2

    runs = {}
    for kind, control in (("frozen", FROZEN), ("no gains", NO_GAINS)):
        params = parameters(*SHAPES, dtype=dtype)
        optimizer = AdaptiveAdamW(params, lr=lr(), control=control)
        seen = train(optimizer, params, SCHEDULES[name])
        runs[kind] = [(a, b) for a, b, _ in seen], values(params)
        assert [(k["lr"], k["momentum"], k["noise"]) for _, _, k in seen] == [
            (rate, beta, 0.0) for rate, beta, _ in seen
        ]
    assert_same(runs["no gains"], runs["frozen"])

    reference = parameters(*SHAPES, dtype=dtype)
    kind_of_theirs = ProductAdamW if name in CYCLES_MOMENTUM else torch.optim.AdamW
    theirs = kind_of_theirs(reference, lr=lr(), foreach=False)
    numbers = [(a, b) for a, b, _ in train(theirs, reference, SCHEDULES[name])]
    assert numbers == runs["frozen"][0]
    assert len({rate for rate, _ in numbers}) > 1
    tolerance: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(runs["frozen"][1], values(reference), **tolerance)


class ProductAdamW(torch.optim.AdamW):
    """AdamW for a momentum that varies: 1 − Π β₁ for 1 − β₁^t, in float64.

    See method.md#bias-correction.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], float(group["lr"])
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    shadow = torch.zeros_like(param, dtype=torch.float64)
                    state.update(step=0, product=1.0, m=shadow, v=shadow.clone())
                    state["p"] = param.double()
                state["step"] += 1
                state["product"] *= beta1
                grad = param.grad.double()
                state["m"].lerp_(grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                root = (state["v"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
                state["p"].mul_(1 - lr * group["weight_decay"])
                state["p"].addcdiv_(state["m"], root, value=-lr / (1 - state["product"]))
                param.copy_(state["p"])


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR"])
def test_the_reference_for_cycled_momentum_is_adamw_where_momentum_rests(name: str) -> None:
    ends = []
    for kind in (ProductAdamW, torch.optim.AdamW):
        params = parameters(*SHAPES, dtype=torch.float64)
        train(kind(params, lr=1e-2), params, SCHEDULES[name])
        ends.append(values(params))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_modulate_multiplies_whatever_a_scheduler_sets(name: str) -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=MODULATE)
    start = optimizer.knobs()
    seen = train(optimizer, params, SCHEDULES[name])

    plain = parameters(*SHAPES)
    theirs = train(torch.optim.AdamW(plain, lr=1e-2), plain, SCHEDULES[name])
    assert [(a, b) for a, b, _ in seen] == [(a, b) for a, b, _ in theirs]

    factors = []
    shift_from = math.log(start["momentum"] / (1 - start["momentum"]))
    for step, (rate, beta, knobs) in enumerate(seen, start=1):
        trace = optimizer.trace()
        written = int((trace["step"] <= step).sum())
        factor = trace["lr"][written - 1].item() if written else 1.0
        assert knobs["lr"] == pytest.approx(rate * factor, rel=1e-12)
        momentum = trace["momentum"][written - 1].item() if written else start["momentum"]
        shift = math.log(momentum / (1 - momentum)) - shift_from
        expected = 1 / (1 + math.exp(-math.log(beta / (1 - beta)) - shift))
        assert knobs["momentum"] == pytest.approx(expected, rel=1e-9)
        factors.append(factor)
    assert len(set(factors)) > 5
    assert {beta for _, beta, _ in seen} != {0.9} or name not in CYCLES_MOMENTUM


@pytest.mark.parametrize("horizon", [None, 20])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_alignment_law_finds_a_factor_of_what_a_scheduler_sets(
    name: str, horizon: int | None
) -> None:
    params = parameters(*SHAPES)
    control = replace(Control.climb(horizon), mode="modulate")
    optimizer = AdaptiveAdamW(params, lr=1e-2, betas=(0.5, 0.999), control=control)
    seen = train(optimizer, params, SCHEDULES[name])

    plain = parameters(*SHAPES)
    theirs = train(torch.optim.AdamW(plain, lr=1e-2, betas=(0.5, 0.999)), plain, SCHEDULES[name])
    assert [(a, b) for a, b, _ in seen] == [(a, b) for a, b, _ in theirs]
    for rate, _, knobs in seen:
        assert knobs["lr"] == pytest.approx(rate * knobs["alpha"], rel=1e-12)
    factors = [knobs["alpha"] for _, _, knobs in seen]
    assert factors[0] == pytest.approx(0.01, rel=1e-12)
    assert max(factors[:12]) > 0.03
    if horizon is None:
        assert len(set(factors)) > 15
    else:
        # Held when the scheduler may begin to anneal, 40 % before the end, and never annealed here,
        # not even beyond it.
        assert [knobs["held"] for _, _, knobs in seen] == [0.0] * 11 + [1.0] * 13
        assert set(factors[11:]) == {factors[11]}


def greedy(optimizer: Any) -> Any:
    with warnings.catch_warnings():
        # Its imports warn of what is deprecated in libraries of its own.
        warnings.simplefilter("ignore")
        optimization = pytest.importorskip(
            "transformers.optimization", reason="GreedyLR is transformers' own"
        )
    if not hasattr(optimization, "GreedyLR"):
        pytest.skip("this version of transformers has no GreedyLR")
    return optimization.GreedyLR(
        optimizer, patience=1, cooldown=1, warmup=0, factor=0.8, min_lr=1e-5, max_lr=1.0
    )


@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_greedy_of_hugging_face(tensor: bool) -> None:
    def lr() -> Any:
        return torch.tensor(1e-2, dtype=torch.float64) if tensor else 1e-2

    def run(optimizer: Any, params: list[nn.Parameter]) -> list[tuple[float, Any]]:
        seen = train(optimizer, params, greedy)
        return [(rate, knobs and knobs["lr"]) for rate, _, knobs in seen]

    reference, still, live = (parameters(*SHAPES) for _ in range(3))
    theirs = run(torch.optim.AdamW(reference, lr=lr(), foreach=False), reference)
    frozen = run(AdaptiveAdamW(still, lr=lr(), control=FROZEN), still)
    optimizer = AdaptiveAdamW(live, lr=lr(), control=MODULATE)
    steered = run(optimizer, live)
    assert [rate for rate, _ in theirs] == [rate for rate, _ in frozen]
    assert len({rate for rate, _ in theirs}) > 3
    assert all(rate == in_effect for rate, in_effect in frozen)
    torch.testing.assert_close(values(still), values(reference))
    assert [rate for rate, _ in theirs] == [rate for rate, _ in steered]
    factors = [in_effect / rate for rate, in_effect in steered]
    trace = optimizer.trace()
    assert factors[-1] == pytest.approx(trace["lr"][-1].item(), rel=1e-12)
    assert max(factors) > 1.05
