"""`integrations.accelerate`: what is Accelerate's own; the rest is in test_frameworks.py."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from tiny_models import Bigram

from adaptiverl import AdaptiveAdamW, Control

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

from adaptiverl.integrations.accelerate import observe_backward  # noqa: E402

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_an_optimizer_that_is_none_of_ours() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW(Bigram().parameters()))
    with pytest.raises(
        TypeError, match=r"expected an AdaptiveAdamW, got AcceleratedOptimizer around AdamW"
    ):
        observe_backward(accelerator, optimizer)


def test_epochwise_control_is_told_by_hand() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    control = Control(every=None)
    optimizer = accelerator.prepare(AdaptiveAdamW(Bigram().parameters(), control=control))
    with pytest.raises(ValueError, match=r"optimizer\.optimizer\.update\(loss\)"):
        observe_backward(accelerator, optimizer)
    optimizer.optimizer.update(2.0)
    assert optimizer.optimizer.knobs()["updates"] == 1


@pytest.mark.parametrize("early", [True, False], ids=["prepared before", "prepared after"])
@pytest.mark.parametrize("named", ["one cycle", "linear", "endless"])
@pytest.mark.parametrize("horizon", [3, 8])
def test_a_horizon_that_is_not_a_prepared_schedulers(early: bool, named: str, horizon: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    control = dataclasses.replace(Control.climb(horizon), mode="modulate")
    model = torch.nn.Linear(2, 1)
    optimizer = accelerator.prepare(AdaptiveAdamW(model.parameters(), lr=1e-2, control=control))
    scheduler = {
        "one cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8),
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, 0, 8),
        "endless": lambda: transformers.get_constant_schedule_with_warmup(optimizer, 0),
    }[named]()
    prepared = accelerator.prepare(scheduler) if early else None
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    accelerator.prepare(torch.optim.lr_scheduler.OneCycleLR(other, 1e-2, total_steps=5))
    observe_backward(accelerator, optimizer)
    prepared = prepared or accelerator.prepare(scheduler)
    wrong = horizon == 3 and named != "endless"
    message = (
        r"horizon=3\) and a run of 8 steps \(its prepared scheduler's\): the search.*step 2 at most"
        r"\. Give horizon=8"
    )
    warns = pytest.warns(UserWarning, match=message) if wrong else contextlib.nullcontext()
    with warns:
        accelerator.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    prepared.step()
    accelerator.backward(model(torch.ones(1, 2)).sum())  # said once


def test_an_automatic_horizon_is_a_prepared_schedulers() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model, control = (
        torch.nn.Linear(2, 1),
        dataclasses.replace(Control.climb("auto"), mode="modulate"),
    )
    optimizer = accelerator.prepare(AdaptiveAdamW(model.parameters(), lr=1e-2, control=control))
    observe_backward(accelerator, optimizer)
    accelerator.backward(model(torch.ones(1, 2)).sum())
    with pytest.raises(ValueError, match=r"horizon='auto'.*beside a prepared scheduler"):
        optimizer.step()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8)
    accelerator.prepare(schedule)
    observe_backward(accelerator, optimizer)
    accelerator.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    assert [group["horizon"] for group in optimizer.param_groups] == [8]


@pytest.mark.parametrize("control", [Control(), Control(mode="modulate"), Control.frozen()])
def test_a_scheduler_under_the_default_control_is_warned_of_once(control: Control) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    frozen, tuned = [[p] for p in model.parameters()]
    groups: list[dict[str, Any]] = [{"params": frozen}, {"params": tuned, "lr": torch.tensor(3e-2)}]
    optimizer = accelerator.prepare(AdaptiveAdamW(groups, lr=1e-2, control=control))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda n: 1 / (n + 1)])
    observe_backward(accelerator, optimizer)
    for step in range(4):
        # The first group's rate stays; the second one's, a tensor, is halved after the first step.
        message = r"a scheduler moved lr of parameter group 1 from 0\.03 to 0\.015"
        warned = step == 1 and control.mode == "replace"
        warns = pytest.warns(UserWarning, match=message) if warned else contextlib.nullcontext()
        with warns:
            accelerator.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def test_the_wrapper_hides_our_methods() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    prepared = accelerator.prepare(AdaptiveAdamW(model.parameters()))
    for name in ("observe", "update", "knobs", "trace"):
        assert not hasattr(prepared, name)
    loss = model(torch.ones(1, 2)).sum()
    accelerator.backward(loss)
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'"):
        prepared.step(loss=loss)
    prepared.optimizer.observe(loss)
    prepared.step()
    assert prepared.optimizer.knobs()["loss"] == loss.item()
