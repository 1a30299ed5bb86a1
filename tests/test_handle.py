"""Groups are dictionaries of hyperparameters, and whoever saves one has the controller's memory."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from grids import pairwise
from torch import Tensor, nn
from training import assert_same, snapshot, through_a_file

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.layout import MEMORY_SIZE

MAKES: dict[str, Callable[..., Any]] = {
    "adamw": AdaptiveAdamW,
    "sgd": partial(AdaptiveSGD, momentum=0.9),
    "lion": AdaptiveLion,
}
EACH = pytest.mark.parametrize("make", MAKES)
KEY = "adaptive_state"


def trained(make: str, loss: float = 1.0, steps: int = 5) -> Any:
    """Two groups, a few steps whose loss changes by a factor each."""
    params = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    return go_on(MAKES[make](groups, lr=0.01, control=Control(every=1)), loss, steps)


def go_on(optimizer: Any, loss: float = 1.0, steps: int = 5) -> Any:
    for step in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 1.0 + step)
        optimizer.step(loss=loss * (1 + step))
    return optimizer


def hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """As loggers and sweeps read them."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


# Hyperparameters


@EACH
def test_hyperparameters_are_json(make: str) -> None:
    optimizer = trained(make)
    groups = json.loads(json.dumps(hyperparameters(optimizer)))
    assert [group["lr"] for group in groups] == [0.01, 0.02]
    assert groups[0][KEY] == f"controller of {MEMORY_SIZE} numbers"
    assert "tensor" not in repr(hyperparameters(optimizer))


@EACH
def test_hyperparameters_from_json_change_nothing(make: str) -> None:
    optimizer, plain = trained(make), trained(make)
    for group, values in zip(
        optimizer.param_groups, json.loads(json.dumps(hyperparameters(optimizer))), strict=True
    ):
        group.update(values)
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    assert optimizer.knobs() == plain.knobs()
    assert go_on(optimizer).knobs() == go_on(plain).knobs()


@EACH
def test_groups_compare(make: str) -> None:
    first, second = trained(make), trained(make, loss=3.0, steps=7)
    assert hyperparameters(first) == hyperparameters(second)
    one, other = hyperparameters(first)
    assert one != other
    assert one | {"lr": 0.02} == other
    assert {one[KEY]: 1}[other[KEY]] == 1
    assert len({group[KEY] for group in hyperparameters(first) + hyperparameters(second)}) == 1


# Whose controller


def _shallow(optimizer: Any) -> list[dict[str, Any]]:
    return [copy.copy(group) for group in optimizer.param_groups]


def _the_same(optimizer: Any) -> list[dict[str, Any]]:
    return list(optimizer.param_groups)


def _spread(optimizer: Any) -> list[dict[str, Any]]:
    return [{**group, "lr": 0.5} for group in optimizer.param_groups]


@EACH
@pytest.mark.parametrize("groups_of", [_shallow, _the_same, _spread])
def test_another_optimizer_of_the_same_groups_has_a_controller_of_its_own(
    groups_of: Callable[[Any], list[dict[str, Any]]], make: str
) -> None:
    first = trained(make, loss=1.0)
    told = first.knobs()
    second = MAKES[make](groups_of(first), control=Control(every=1))
    assert second.knobs()["step"] == 0
    go_on(second, loss=30.0, steps=2)
    assert first.knobs() == told
    go_on(first, steps=1)
    assert first.knobs()["step"] == 6
    assert second.knobs()["step"] == 2


@EACH
def test_a_group_of_another_optimizer_brings_its_controller_once(make: str) -> None:
    """As a load does that puts another's groups in place, without a call."""
    first, second = trained(make), trained(make, loss=3.0, steps=2)
    for own, others in zip(second.param_groups, first.param_groups, strict=True):
        own[KEY] = others[KEY]
    assert second.knobs()["step"] == 5
    go_on(second, steps=1)
    assert second.knobs()["step"] == 6
    assert first.knobs()["step"] == 5
    go_on(first, steps=1)
    assert second.knobs()["step"] == 6


# Savers


def _by_state_dict(optimizer: Any) -> Any:
    return optimizer.state_dict()["param_groups"]


def _by_torchs_own(optimizer: Any) -> Any:
    return torch.optim.Optimizer.state_dict(optimizer)["param_groups"]


def _live(optimizer: Any) -> Any:
    """As ZeroRedundancyOptimizer and some wrappers take them."""
    return hyperparameters(optimizer)


WAYS: dict[str, Callable[[Any], Any]] = {
    "torch.save": through_a_file,
    "pickle": lambda groups: pickle.loads(pickle.dumps(groups)),
    "old pickle": lambda groups: pickle.loads(pickle.dumps(groups, protocol=2)),
    "deepcopy": copy.deepcopy,
}


@pairwise(make=MAKES, way=WAYS, groups_of=[_by_state_dict, _by_torchs_own, _live])
def test_what_is_saved_is_the_memory(make: str, way: str, groups_of: Callable[[Any], Any]) -> None:
    optimizer = trained(make)
    found = WAYS[way](groups_of(optimizer))
    memory = optimizer._controller.memory.clone()
    go_on(optimizer, steps=1)
    for group in found:
        assert type(group[KEY]) is Tensor
        assert_same(group[KEY], memory)


@EACH
@pytest.mark.parametrize("by_torch", [False, True])
def test_a_loaded_run_goes_on(by_torch: bool, make: str) -> None:
    optimizer = trained(make)
    state_dict = torch.optim.Optimizer.state_dict if by_torch else type(optimizer).state_dict
    saved = copy.deepcopy(state_dict(optimizer))
    again = trained(make, loss=5.0, steps=1)
    again.load_state_dict(saved)
    for ours, theirs in zip(again.param_groups, optimizer.param_groups, strict=True):
        for p, q in zip(ours["params"], theirs["params"], strict=True):
            p.data.copy_(q.data)
    ends: list[list[Any]] = []
    for run in (again, optimizer):
        go_on(run, steps=3)
        ends.append([run.knobs(), run._controller.memory.clone()])
        if not by_torch:  # which has not AdamW's products of momenta
            ends[-1].append(snapshot(run, [p for g in run.param_groups for p in g["params"]]))
        assert [type(group[KEY]).__name__ for group in run.param_groups] == ["Handle"] * 2
    assert_same(*ends)


@EACH
def test_a_checkpoint_is_what_it_was(make: str) -> None:
    """One tensor, the same in every group, and the optimizer's own, as torch's tensors are."""
    optimizer = trained(make)
    first, second = (group[KEY] for group in optimizer.state_dict()["param_groups"])
    assert first is second is optimizer._controller.memory
    assert [type(group[KEY]).__name__ for group in optimizer.param_groups] == ["Handle"] * 2
