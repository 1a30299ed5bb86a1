"""bench/methods: the shared settings, schedules by hand, what reacts to the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from adaptiverl.law.numbers import OWN
from bench.methods import ABLATIONS, METHODS, VARIANTS, Method
from bench.methods.base import AdamW, Stepper
from bench.methods.published import Prodigy

HORIZON = 200


def started(name: str, *values: float, rate: float = 1e-2) -> tuple[nn.Parameter, Any]:
    """A parameter, and the method at work on it; told a horizon of `HORIZON` steps."""
    if (reason := METHODS[name].missing()) is not None:
        pytest.skip(reason)
    weight = nn.Parameter(torch.tensor(values))
    return weight, METHODS[name].start([weight], rate, horizon=HORIZON, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_with_the_shared_settings(name: str) -> None:
    weight, stepper = started(name, 1.0, 2.0)
    (group,) = stepper.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.9, 0.999), 0.01)
    for _ in range(3):
        loss = weight.square().sum()
        loss.backward()
        stepper.step(loss)
        assert weight.grad is None
    stepper.finish()
    assert 0 < weight.square().sum() < 5


@pytest.mark.parametrize(
    ("decay", "at"),
    [
        ("none", {0: 0.2, 4: 1.0, 5: 1.0, 99: 1.0, 150: 1.0}),
        ("cosine", {0: 0.2, 4: 1.0, 5: 1.0, 52: 0.508267, 100: 0.0, 150: 0.0}),
        ("linear", {0: 0.2, 4: 1.0, 5: 1.0, 24: 0.8, 62: 0.4, 100: 0.0, 150: 0.0}),
        ("cooldown", {0: 0.2, 4: 1.0, 60: 1.0, 70: 0.75, 90: 0.25, 100: 0.0, 150: 0.0}),
    ],
)
def test_schedules_by_hand(decay: Any, at: dict[int, float]) -> None:
    rate = AdamW(name="").schedule(2.0, horizon=100, decay=decay)
    assert {step: rate(step) / 2 for step in at} == pytest.approx(at)


def test_a_warm_up_of_nothing_is_none_and_any_other_one_step_at_least() -> None:
    shares = (0.0, 1e-9, 0.1)
    assert [AdamW(name="", warm_up=share).warm_up_steps(20) for share in shares] == [0, 1, 2]


@pytest.mark.parametrize("name", ["cosine", "loss-cosine", "alignment-cosine", "prodigy"])
def test_what_ends_with_a_cosine_ends_at_zero(name: str) -> None:
    _, stepper = started(name, 1.0)
    warm_up = METHODS[name].warm_up_steps(HORIZON)
    assert warm_up == (0 if name in ("alignment-cosine", "prodigy") else 10)
    top, middle = stepper.schedule(warm_up), warm_up + (HORIZON - warm_up) // 2
    assert stepper.schedule(middle) == pytest.approx(top / 2, rel=0.02)
    assert stepper.schedule(HORIZON) == 0


def test_a_schedule_sets_the_rate_of_the_step_it_is_for() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = replace(METHODS["constant"], weight_decay=0.0).start([weight], 1.0, 10, 0).optimizer
    stepper = Stepper(optimizer, [0.25, 0.5].__getitem__)
    for expected in (0.75, 0.25):
        weight.grad = torch.ones(1)
        stepper.step(torch.zeros(()))
        # A constant gradient makes AdamW's step the rate itself.
        assert weight.item() == pytest.approx(expected)


def rate_after(method: Method, losses: Sequence[float]) -> float:
    """The rate that a loss-driven method has come to, from 1; its warm-up is one step."""
    if (reason := method.missing()) is not None:
        pytest.skip(reason)
    weight = nn.Parameter(torch.ones(1))
    stepper: Any = method.start([weight], 1e-2, horizon=20, seed=0)
    for loss in losses:
        weight.grad = torch.ones(1)
        stepper.step(torch.tensor(loss))
    rate: float = stepper.optimizer.param_groups[0]["lr"]
    return rate / 1e-2


def test_schedulers_that_react_are_told_the_loss() -> None:
    plateau = replace(METHODS["plateau"], beta=0.5, patience=5)  # type: ignore[call-arg]
    assert rate_after(plateau, [1.0] * 8) == pytest.approx(0.5)
    assert rate_after(plateau, [0.9**n for n in range(8)]) == 1
    greedy = replace(METHODS["greedy"], beta=0.5)  # type: ignore[call-arg]
    assert rate_after(greedy, [0.9**n for n in range(12)]) == pytest.approx(1 / 0.95)
    assert rate_after(greedy, [1.0] * 13) == pytest.approx(0.95)


def test_ours_are_shown_the_loss_and_told_the_horizon_where_they_have_one() -> None:
    for name, method in METHODS.items():
        if not method.is_ours:
            continue
        weight, stepper = started(name, 1.0)
        weight.grad = torch.ones(1)
        stepper.step(torch.tensor(3.0))
        assert stepper.optimizer.knobs()["loss"] == 3
        control = stepper.optimizer.control
        assert control.mode == ("modulate" if "cosine" in name else "replace")
        told = ("alignment", "alignment-cosine", "range-test", "loss-horizon", "distilled")
        assert control.horizon == (HORIZON if name in told else None)


ABLATED: dict[str, dict[str, Any]] = {
    "loss:loss-only": {"gain_lr_reward": 0.0, "gain_momentum_reward": 0.0, "gain_lr_loss": 0.05},
    "loss:reward-only": {"gain_lr_reward": 0.05, "gain_lr_loss": 0.0, "gain_momentum_loss": 0.0},
    "loss:mu-frozen": {"gain_momentum_loss": 0.0, "gain_momentum_reward": 0.0},
    "loss:sigma-frozen-at-0.05": {"noise_bounds": (0.05, 0.05)},
    "alignment:from-the-rate-itself": {"acquire_from": 1e-2, "horizon": HORIZON},
    "range-test:no-cooldown": {"cooldown": 0.0, "law": "range_test"},
}


@pytest.mark.filterwarnings("ignore:.*leaves the search for a learning rate:UserWarning")
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_its_law_but_for_a_part(name: str) -> None:
    method = ABLATIONS[name]
    control = method.start([nn.Parameter(torch.ones(1))], 1e-2, HORIZON, 0).optimizer.control
    assert {k: getattr(control, k) for k in ABLATED.get(name, {})} == ABLATED.get(name, {})
    whole = METHODS[method.whole]
    assert method.has_horizon == whole.has_horizon
    there = whole.start([nn.Parameter(torch.ones(1))], 1e-2, HORIZON, 0).optimizer.control
    assert control != there or not method.told


def test_a_variant_holds_its_share_of_the_mark() -> None:
    weights = [nn.Parameter(torch.ones(1))]
    found = {
        name: method.start(weights, 1e-2, 1000, 0).optimizer._controller.numbers.tolist()
        for name, method in {**METHODS, **VARIANTS}.items()
        if method.is_ours and name.partition(":")[0] in ("alignment", "range-test")
    }
    for whole, slot, value in (
        ("alignment", "log_held_share", {"1.4": 1.4, "2": 2.0}),
        ("range-test", "log_ramp_share", {"0.35": 0.35, "1": 1.0}),
    ):
        for text, share in value.items():
            row, plain = found[f"{whole}:{text}-of-the-mark"], found[whole]
            others = [i for i, (a, b) in enumerate(zip(row, plain, strict=True)) if a != b]
            assert others == [OWN.index(slot)]
            assert row[others[0]] == math.log(share)


def test_a_law_that_is_changed_in_python_asks_for_python(monkeypatch: pytest.MonkeyPatch) -> None:
    method = VARIANTS["range-test:climbs-on"]
    monkeypatch.setenv("ADAPTIVERL_PURE", "0")
    assert "run with ADAPTIVERL_PURE=1" in (method.missing() or "")
    monkeypatch.setenv("ADAPTIVERL_PURE", "1")
    assert method.missing() is None


def test_who_is_told_no_loss_is_not() -> None:
    weight = nn.Parameter(torch.ones(1))
    stepper = ABLATIONS["range-test:told-no-loss"].start([weight], 1e-2, 1000, 0)
    weight.grad = torch.ones(1)
    stepper.step(torch.tensor(3.0))
    assert stepper.optimizer.knobs()["loss"] != 3


def test_schedule_free_is_judged_at_its_average() -> None:
    weight, stepper = started("schedule-free", 1.0, -2.0)
    for _ in range(5):
        weight.grad = torch.ones(2)
        stepper.step(torch.zeros(()))
    trained = weight.detach().clone()
    stepper.finish()
    assert not torch.equal(weight, trained)


def test_prodigy_is_at_its_default_where_adamw_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(METHODS["prodigy"], Prodigy)
    group = started("prodigy", 1.0, rate=1e-3)[1].optimizer.param_groups[0]
    assert (group["d0"], group["lr"]) == (pytest.approx(1e-6), 1.0)
    assert capsys.readouterr().out == ""


def test_a_package_that_is_not_there_is_named() -> None:
    absent = replace(METHODS["constant"], package="no_such_package")
    assert "it needs no_such_package from PyPI" in str(absent.missing())
