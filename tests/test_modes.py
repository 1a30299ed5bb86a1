"""The modes that a program may be in when it calls: inference, a default device, fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from grids import pairwise
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from training import BUSY, assert_same, clones, parameters, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control
from adaptiverl.backends import operators

MAKES: dict[str, Callable[..., Any]] = {
    "adamw": AdaptiveAdamW,
    "climb": partial(AdaptiveAdamW, control=replace(BUSY, law="alignment"), max_grad_norm=1.0),
    "sgd": partial(AdaptiveSGD, momentum=0.9),
}
DTYPES = [torch.float32, torch.bfloat16]
MODES: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "another default device": lambda: torch.device("meta"),
}
NO_TENSORS = {"watch_capture", "capture_has_ended"}
"""Operators, where CUDA is compiled, that take numbers only"""
PLACES = ["construct", "knobs", "observe", "step", "load"]


def run(make: str, dtype: torch.dtype, mode: Any, place: str) -> Any:
    """The end of a few steps; one of the calls is made in a mode, again and again."""

    def at(here: str) -> Any:
        return mode() if here == place else contextlib.nullcontext()

    params = parameters((4, 3), (5,), dtype=dtype)
    with at("construct"):
        optimizer = MAKES[make](params, lr=1e-2, **({} if make == "climb" else {"control": BUSY}))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for i in range(4):
        for p in params:
            p.grad = torch.full_like(p, 1.0 + i)
        with at("knobs"):
            optimizer.knobs()
        with at("observe"):
            optimizer.observe(1.0 + i)
        with at("step"):
            optimizer.step()
        schedule.step()
        saved = optimizer.state_dict()
        with at("load"):
            optimizer.load_state_dict(saved)
    return snapshot(optimizer, params)


@pairwise(place=PLACES, mode=MODES, dtype=DTYPES, make=MAKES)
def test_a_call_in_another_mode_does_as_it_always_does(
    make: str, dtype: torch.dtype, mode: str, place: str
) -> None:
    plain = run(make, dtype, contextlib.nullcontext, place)
    assert_same(run(make, dtype, MODES[mode], place), plain)


@pytest.mark.parametrize("mode", MODES)
def test_epoch_wise_control_in_another_mode(mode: str) -> None:
    ends = []
    for here in (contextlib.nullcontext, MODES[mode]):
        params = clones(parameters((4, 3)))
        optimizer = AdaptiveAdamW(params, control=Control(every=None))
        for i in range(3):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
            with here():
                optimizer.update(2.0 - i)
                optimizer.trace()
        ends.append(snapshot(optimizer, params))
    assert_same(*ends)


# Fake tensors, which have neither memory nor values


@pairwise(
    options=[{}, {"max_grad_norm": 1.0}, {"lr": 0.0}],
    control=["busy", "frozen", "climb"],
    of=[("adamw", DTYPES[0]), ("sgd", DTYPES[1])],
)
def test_a_step_of_fake_tensors_touches_no_address(
    options: dict[str, Any], control: str, of: tuple[str, torch.dtype]
) -> None:
    kind, dtype = of
    controls = {
        "busy": replace(BUSY, mode="modulate"),
        "frozen": replace(Control.frozen(), mode="modulate"),
        "climb": replace(BUSY, mode="modulate", law="alignment"),
    }
    make = AdaptiveAdamW if kind == "adamw" else partial(AdaptiveSGD, momentum=0.9)
    with FakeTensorMode():
        model = nn.Linear(4, 4, dtype=dtype)
        optimizer = make(model.parameters(), **{"lr": 0.1} | options, control=controls[control])
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(2, 4, dtype=dtype)).sum()
            loss.backward()
            optimizer.step(loss=loss)
        for p, state in optimizer.state.items():
            assert {v.shape for k, v in state.items() if k in optimizer._algorithm.slots} == {
                p.shape
            }
            assert {type(v) for v in state.values()} == {FakeTensor}
        assert {b.backend.name for b in optimizer._round.plan._sorted} == {"reference"}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # torch's deepcopy
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_checkpoint_of_fake_tensors_says_nothing_and_is_loaded(make: Callable[..., Any]) -> None:
    with FakeTensorMode():
        param = nn.Parameter(torch.ones(3))
        optimizer = make([param], lr=0.1)
        for _ in range(2):
            param.grad = torch.ones(3)
            optimizer.step(loss=1.0)
            optimizer.load_state_dict(optimizer.state_dict())
        assert {type(v) for v in optimizer.state[param].values()} == {FakeTensor}


def test_every_operator_can_be_called_with_fake_tensors() -> None:
    ours = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("adaptiverl::")
    }
    assert ours - NO_TENSORS == set(operators.OPERATORS)
