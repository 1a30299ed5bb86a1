"""`decay`: whether weight decay goes by what the controller makes of the learning rate."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from training import clones, descend, parameters, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

SGD = partial(AdaptiveSGD, momentum=0.9, decoupled_weight_decay=True)
KINDS = [AdaptiveAdamW, SGD, AdaptiveLion]
LR, LAMBDA, T = 0.1, 0.2, 10
each_kind = pytest.mark.parametrize("kind", KINDS)


def left(optimizer: Any, params: list[Any], steps: int, after: Any = None) -> float:
    """What steps without a gradient leave of parameters of 1: weight decay alone."""
    for param in params:
        param.data.fill_(1.0)
    for _ in range(steps):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        if after is not None:
            after()
    return float(params[0][0].detach())


def made(kind: Any, control: Control, **options: Any) -> tuple[Any, list[Any]]:
    params = [torch.nn.Parameter(torch.ones(5))]
    return kind(params, lr=LR, weight_decay=LAMBDA, control=control, **options), params


@each_kind
@pytest.mark.parametrize(("decay", "rate"), [("coupled", LR / 100), ("independent", LR)])
def test_it_goes_by_the_users_rate_and_the_cooldown(kind: Any, decay: str, rate: float) -> None:
    # Nothing points anywhere: the search stays at a hundredth of the rate, until it is annealed.
    optimizer, params = made(kind, Control.climb(T), decay=decay)
    expected = 1.0
    for t in range(1, T + 1):
        expected *= 1 - rate * LAMBDA * min(1.0, (T - t) / (0.4 * T))
    assert left(optimizer, params, T) == pytest.approx(expected, rel=1e-6)


@each_kind
def test_it_follows_a_scheduler_and_each_group(kind: Any) -> None:
    control = Control(mode="modulate", lr_bounds=(0.1, 100.0))
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(3)]
    groups: list[Any] = [{"params": [p], "lr": LR * (i + 1)} for i, p in enumerate(params)]
    groups[2]["decay"] = "coupled"
    optimizer = kind(groups, lr=LR, weight_decay=LAMBDA, control=control, decay="independent")
    halves = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    left(optimizer, params, 1)
    memory = optimizer.state_dict()
    memory["param_groups"][0]["adaptive_state"][4] += 2.0  # log α
    optimizer.load_state_dict(memory)
    left(optimizer, params, 2, halves.step)
    for i, (param, by) in enumerate(zip(params, (1.0, 1.0, math.exp(2)), strict=True)):
        share = by * LR * (i + 1) * LAMBDA
        assert float(param[0].detach()) == pytest.approx((1 - share) * (1 - share / 2), rel=1e-6)


def test_without_a_rate_it_goes_by_what_stands_in_for_it() -> None:
    params = [torch.nn.Parameter(torch.ones(5))]
    options: Any = {"lr": None, "weight_decay": 50.0, "control": Control.climb()}
    optimizer = AdaptiveAdamW(params, decay="independent", **options)
    assert left(optimizer, params, 1) == pytest.approx(1 - 1e-3 * 50, rel=1e-6)


@each_kind
def test_at_the_users_rate_both_are_the_same_to_the_bit(kind: Any) -> None:
    found = []
    for decay in ("coupled", "independent"):
        params = parameters((40,), (4, 3))
        optimizer = kind(params, LR, weight_decay=LAMBDA, control=Control.frozen(), decay=decay)
        descend(optimizer, params, 5)
        found.append([p.detach().clone() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


TORCHS: dict[str, tuple[Any, Any]] = {
    "adamw": (AdaptiveAdamW, torch.optim.AdamW),
    "sgd": (SGD, partial(torch.optim.SGD, momentum=0.9)),
}


@pytest.mark.parametrize("name", TORCHS)
def test_checkpoints_go_to_torch_and_come_from_there(name: str) -> None:
    kind, torchs = TORCHS[name]
    params = parameters((6,))
    ours, theirs = kind(params, LR, decay="independent"), torchs(clones(params), LR)
    descend(ours, params, 3)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for saved in (theirs.state_dict(), torchs(clones(params), LR).state_dict()):
        for group in saved["param_groups"]:
            group.pop("decay", None)
        # A checkpoint that says nothing leaves what the constructor was given; nothing else.
        for decay, found in (("independent", "independent"), ("coupled", None)):
            loading: Any = kind(clones(params), LR, decay=decay)
            loading.load_state_dict(copy.deepcopy(saved))
            assert loading.param_groups[0].get("decay") == found


@each_kind
def test_what_a_checkpoint_or_a_copy_says_counts(kind: Any) -> None:
    params = parameters((6,))
    ours = kind(params, LR, weight_decay=LAMBDA, decay="independent")
    descend(ours, params, 3)
    loaded = kind(clones(params), LR, weight_decay=LAMBDA)
    assert "decay" not in loaded.param_groups[0]
    loaded.load_state_dict(copy.deepcopy(ours.state_dict()))
    copies = [loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(ours))]
    descend(ours, params, 3, first=3)
    for one in copies:
        its = one.param_groups[0]["params"]
        assert one.param_groups[0]["decay"] == "independent"
        descend(one, its, 3, first=3)
        assert torch.equal(its[0], params[0])
        one.add_param_group({"params": parameters((2,))})
        assert one.param_groups[1].get("decay") == one.defaults.get("decay")


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    *(
        (kind, {"decay": x}, "decay must be 'coupled'")
        for kind in KINDS
        for x in ("decoupled", True)
    ),
    (
        partial(AdaptiveSGD, momentum=0.9),
        {"decay": "independent"},
        r"needs decoupled_weight_decay=True in AdaptiveSGD, got False",
    ),
]
# Below 0 it would be taken for the other choice, of the other sign.
NEGATIVE = "weight_decay must be finite and at least 0, got -0.1"


@pytest.mark.parametrize(("kind", "options", "message"), WRONG)
def test_wrong_input(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(parameters((3,)), LR, **options)
    optimizer = kind(parameters((3,)), LR)
    before = snapshot(optimizer, [])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters((2,)), **options})
    assert len(optimizer.param_groups) == 1
    if options["decay"] != "independent":
        damaged = copy.deepcopy(optimizer.state_dict())
        damaged["param_groups"][0] |= options
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(damaged)
    assert repr(snapshot(optimizer, [])) == repr(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_decay_below_0_is_no_way_to_say_independent(kind: Any) -> None:
    params = parameters((3,))
    optimizer = kind(params, LR, weight_decay=LAMBDA)
    descend(optimizer, params, 1)
    before = repr(snapshot(optimizer, params))
    with pytest.raises(ValueError, match=NEGATIVE):
        optimizer.add_param_group({"params": parameters((2,)), "weight_decay": -0.1})
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["param_groups"][0]["weight_decay"] = -0.1
    with pytest.raises(ValueError, match=NEGATIVE):
        optimizer.load_state_dict(damaged)
    assert repr(snapshot(optimizer, params)) == before
    optimizer.param_groups[0]["weight_decay"] = -0.1
    kept = params[0].clone()
    with pytest.raises(ValueError, match=NEGATIVE):
        descend(optimizer, params, 1)
    assert torch.equal(params[0], kept)
