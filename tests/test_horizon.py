"""`Control(horizon="auto")`: who says how long the run is, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from training import assert_differ, assert_same, descend, parameters, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

SGD = partial(AdaptiveSGD, momentum=0.9)
KINDS = [AdaptiveAdamW, SGD, AdaptiveLion]
MAKERS = [
    Control.find_lr,
    Control.climb,
    lambda horizon: Control(horizon=horizon),
    lambda horizon: Control(law="bandit", horizon=horizon),
]
SHORT = pytest.mark.filterwarnings("ignore:.*leaves the search for a learning rate")
T = 20


def begin(kind: Callable[..., Any], control: Control) -> tuple[Any, list[Any]]:
    params = parameters((3, 2), (4,))
    return kind(params, lr=1e-2, control=control), params


@SHORT
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", MAKERS)
def test_a_horizon_that_is_said_is_one_that_was_given(kind: Any, make: Any) -> None:
    given, expected = begin(kind, make(T))
    auto, params = begin(kind, make("auto"))
    auto.set_horizon(T)
    for optimizer, its in ((given, expected), (auto, params)):
        descend(optimizer, its, T)
    assert_same(params, expected)
    assert auto.knobs() == pytest.approx(given.knobs(), nan_ok=True, rel=0, abs=0)
    unsaid, others = begin(kind, make(None))
    descend(unsaid, others, T)
    assert_differ(params, others)


@SHORT
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said_again", [None, T, 2 * T])
def test_a_checkpoint_keeps_the_number(kind: Any, said_again: int | None) -> None:
    first, params = begin(kind, Control.find_lr("auto"))
    first.set_horizon(T)
    descend(first, params, 7)
    saved, at = snapshot(first, params)
    second, others = begin(kind, Control.find_lr("auto"))
    for param, value in zip(others, at, strict=True):
        param.data.copy_(value)
    second.load_state_dict(copy.deepcopy(saved))
    if said_again is not None:
        second.set_horizon(said_again)
    third = pickle.loads(pickle.dumps(second))
    assert {g["horizon"] for g in third.param_groups} == {said_again or T}
    descend(first, params, T - 7, first=7)
    descend(second, others, T - 7, first=7)
    (assert_differ if said_again == 2 * T else assert_same)(params, others)
    assert second.knobs()["step"] == T
    second.add_param_group({"params": parameters((2,))})
    assert second.param_groups[-1]["horizon"] == (said_again or T)


def test_a_number_too_small_for_the_search_is_warned_of_when_it_is_said() -> None:
    auto, _ = begin(AdaptiveAdamW, Control.find_lr("auto"))
    with pytest.warns(UserWarning, match=r"horizon=40, cooldown=0\.4\) leaves the search"):
        auto.set_horizon(40)
    auto.set_horizon(400)


def test_a_checkpoint_without_the_number_leaves_the_one_that_was_said() -> None:
    plain, _ = begin(AdaptiveAdamW, Control.climb(None))
    auto, params = begin(AdaptiveAdamW, Control.climb("auto"))
    auto.set_horizon(T)
    auto.load_state_dict(plain.state_dict())
    assert auto.param_groups[0]["horizon"] == T
    descend(auto, params, T)
    assert auto.knobs()["held"] == 1


def test_nobody_has_said_it() -> None:
    optimizer, params = begin(AdaptiveAdamW, Control.climb("auto"))
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=r"horizon='auto'.*optimizer\.set_horizon\(steps\), or"):
        descend(optimizer, params, 1)
    assert_same(snapshot(optimizer, params), before)


def test_a_step_that_only_makes_state_asks_for_no_horizon() -> None:
    """torch.distributed.checkpoint takes one: zero gradients at a rate of 0."""
    control = replace(Control.climb("auto"), mode="modulate")
    optimizer, params = begin(AdaptiveAdamW, control)
    optimizer.param_groups[0]["lr"] = 0.0
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1


@pytest.mark.parametrize(
    ("control", "steps", "error", "message"),
    [
        (Control.climb(9), 10, ValueError, r"set_horizon\(10\) is for Control\(horizon='auto'\)"),
        (Control(), 10, ValueError, r"got Control\(law='loss', horizon=None\)"),
        (Control.climb("auto"), 0, ValueError, "horizon must be from 1 to"),
        *(
            (Control.climb("auto"), x, TypeError, "a whole number of optimizer steps, got")
            for x in (10.5, "auto", None, True)
        ),
    ],
)
def test_what_cannot_be_said(control: Control, steps: Any, error: Any, message: str) -> None:
    optimizer, params = begin(AdaptiveAdamW, control)
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.set_horizon(steps)
    assert_same(snapshot(optimizer, params), before)
