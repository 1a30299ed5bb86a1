"""Gradients and state that do not fit are refused before anything moves, or put right."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from grids import pairwise
from torch import Tensor, nn
from training import BUSY, assert_same, saved_states, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control

MAKES: dict[str, Callable[..., Any]] = {
    "adamw": AdaptiveAdamW,
    "amsgrad": partial(AdaptiveAdamW, amsgrad=True),
    "sgd": partial(AdaptiveSGD, momentum=0.9),
    "lion": AdaptiveLion,
}
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = ((40, 30), (7,), (5, 3))
SPOILT = 2
"""The parameter that is spoilt: those before it must not move either"""


class Run:
    """Three parameters in two groups, a few steps old."""

    def __init__(
        self, make: str, dtype: torch.dtype = torch.float32, control: Control = BUSY
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [
            nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
        ]
        groups = [{"params": self.params[:1]}, {"params": self.params[1:], "lr": 0.02}]
        self.optimizer = MAKES[make](groups, lr=0.01, control=control)
        self.draw()
        for _ in range(3):
            self.step()

    def twin(self) -> Run:
        """Another run that has come as far; a copied parameter has no gradient."""
        other = copy.deepcopy(self)
        other.draw()
        return other

    def draw(self) -> None:
        for p in self.params:
            p.grad = torch.ones_like(p)

    def step(self, loss: float = 1.0) -> None:
        self.optimizer.step(loss=loss)

    @property
    def grad(self) -> Tensor:
        grad = self.params[SPOILT].grad
        assert grad is not None
        return grad

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state[self.params[SPOILT]]
        return state

    @property
    def moment(self) -> str:
        return next(name for name in self.optimizer._algorithm.slots if name in self.state)

    def end(self) -> Any:
        return snapshot(self.optimizer, self.params)


def _gradient_of(tensor: Tensor) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        run.grad.data = tensor.to(run.grad.dtype)

    return spoil


def _parameter_cut(run: Run) -> None:
    param = run.params[SPOILT]
    param.data = param.data[:2]


def _moment_data_cut(run: Run) -> None:
    run.state[run.moment].data = run.state[run.moment].data[:2]


def _moment(change: Callable[[Tensor], Tensor]) -> Callable[[Run], None]:
    """The moment becomes another tensor."""
    return lambda run: run.state.update({run.moment: change(run.state[run.moment])})


def _last_moment_larger(run: Run) -> None:
    last = [name for name in run.optimizer._algorithm.slots if name in run.state][-1]
    run.state[last] = torch.zeros(9, 3)


SPOILS: list[tuple[Callable[[Run], Any], str]] = [
    (_gradient_of(torch.ones(3)), "size of the gradient of parameter 2 must match"),
    (_gradient_of(torch.ones(1)), "size of the gradient of parameter 2 must match"),
    (_gradient_of(torch.ones(50, 3)), "size of the gradient of parameter 2 must match"),
    (lambda run: run.grad.resize_(2), "size of the gradient of parameter 2 must match"),
    (_parameter_cut, "size of the gradient of parameter 2 must match"),
    (lambda run: run.state[run.moment].resize_(2, 3), "size of .* of parameter 2 must match"),
    (_moment(lambda m: m[:2]), "size of .* of parameter 2 must match"),
    (_moment_data_cut, "size of .* of parameter 2 must match"),
    (_moment(lambda m: m.view(torch.bfloat16)), "size of .* of parameter 2 must match"),
    (_last_moment_larger, "size of .* of parameter 2 must match"),
    (_moment(lambda m: m.to(torch.complex64)), "cannot be cast from torch.complex64"),
    (_moment(lambda m: m.to("meta")), "Expected all tensors to be on the same device"),
    (
        lambda run: run.state.update(step=torch.zeros(2)),
        "step of parameter 2 must be one real number",
    ),
]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("spoil", "message"), SPOILS)
def test_what_does_not_fit_is_refused_before_anything_moves(
    spoil: Callable[[Run], Any], message: str, dtype: torch.dtype, make: str
) -> None:
    run = Run(make, dtype)
    run.optimizer.observe(2.0)
    spoil(run)
    before, inbox = run.end(), run.optimizer._controller.inbox.clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            run.optimizer.step()
        assert_same(run.end(), before)
        assert_same(run.optimizer._controller.inbox, inbox)


@pytest.mark.parametrize("make", MAKES)
def test_what_was_put_right_goes_on_as_if_nothing_had_been(make: str) -> None:
    ends = []
    for spoilt in (False, True):
        run = Run(make)
        if spoilt:
            whole = run.grad.data
            run.grad.data = torch.ones(3)
            run.optimizer.observe(2.0)
            with pytest.raises(RuntimeError, match="must match"):
                run.optimizer.step()
            run.grad.data = whole
            run.optimizer.step()
        else:
            run.step(2.0)
        for _ in range(3):
            run.step()
        ends.append(run.end())
    assert_same(*ends)


@pytest.mark.parametrize("make", MAKES)
def test_memory_that_was_taken_away_is_not_read(make: str) -> None:
    run = Run(make)
    run.grad.untyped_storage().resize_(0)
    state = [t.clone() for s in run.optimizer.state.values() for t in s.values()]
    controlled = run.optimizer._controller.state.clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has no memory: its storage was resized to 0"):
            run.optimizer.step()
        assert_same([t for s in run.optimizer.state.values() for t in s.values()], state)
        assert_same(run.optimizer._controller.state, controlled)


# State that another loader cast


def _load_by_torch(optimizer: Any, state_dict: Any) -> None:
    torch.optim.Optimizer.load_state_dict(optimizer, copy.deepcopy(state_dict))


def _load_by_ours(optimizer: Any, state_dict: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(state_dict))


def _cast_in_place(optimizer: Any, _: Any) -> None:
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if name != "step":
                state[name] = value.to(p.dtype)


def _resumed(
    make: str, dtype: torch.dtype, load: Callable[[Any, Any], None], control: Control
) -> Any:
    """The ends of a run that goes on, and of one that was loaded."""
    run, again = Run(make, dtype, control), Run(make, dtype, control)
    load(again.optimizer, run.optimizer.state_dict())
    for one in (run, again):
        for i in range(4):
            one.step(1.0 + i)
    return run, again


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("load", [_load_by_torch, _load_by_ours, _cast_in_place])
def test_state_is_kept_in_the_dtype_that_kernels_read(
    load: Callable[[Any, Any], None], dtype: torch.dtype, make: str
) -> None:
    run, again = _resumed(make, dtype, load, BUSY)
    for left, right in zip(
        run.optimizer.state.values(), again.optimizer.state.values(), strict=True
    ):
        assert {k: v.dtype for k, v in left.items()} == {k: v.dtype for k, v in right.items()}
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("load", [_load_by_torch, _load_by_ours, _cast_in_place])
def test_a_cast_of_the_product_of_constant_momenta_loses_nothing(
    load: Callable[[Any, Any], None], make: str
) -> None:
    run, again = _resumed(make, torch.float32, load, Control.frozen())
    assert_same(run.params, again.params)


def test_the_same_address_with_another_dtype_is_seen() -> None:
    run = Run("adamw")
    for name, there, then in (
        ("step", torch.float32, torch.float16),
        ("step", torch.float32, torch.int32),
        (run.moment, torch.float32, torch.bfloat16),
    ):
        kept = run.state[name]
        memory = torch.zeros(kept.numel(), dtype=torch.float64)
        first = memory.view(there)[: kept.numel()].view(kept.shape).copy_(kept)
        run.state[name] = first
        run.step()
        run.step()
        twin = run.twin()
        twin.step()
        values = run.state.pop(name).clone()
        del kept, first
        run.state[name] = memory.view(then)[: values.numel()].view(values.shape).copy_(values)
        assert run.state[name].data_ptr() == memory.data_ptr()
        run.step()
        assert run.state[name].dtype == twin.state[name].dtype
        torch.testing.assert_close(run.state[name], twin.state[name], rtol=1e-2, atol=1e-3)


# State that was reset by hand


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("skipped", [False, True])
def test_a_parameter_that_was_reset_starts_as_a_new_one(
    skipped: bool, dtype: torch.dtype, make: str
) -> None:
    run = Run(make, dtype, Control.frozen())
    twin = run.twin()
    twin.optimizer.state.clear()
    for state in run.optimizer.state.values():
        for name in ("step", *run.optimizer._algorithm.slots):
            if name in state:
                state[name].zero_()
    for one in (run, twin):
        if skipped:
            one.optimizer.grad_scale, one.optimizer.found_inf = torch.ones(1), torch.ones(1)
            one.step()
            one.optimizer.found_inf = torch.zeros(1)
        for _ in range(4):
            one.step()
    assert_same(run.end(), twin.end())


def test_one_of_many_that_was_reset_starts_anew_alone() -> None:
    run = Run("adamw", control=Control.frozen())
    others = run.twin()
    first, last = run.params[0], run.params[SPOILT]
    product = float(saved_states(run.optimizer)[first]["mu_product"])
    run.state["step"] = 0  # as code does that takes it for a number
    run.step()
    others.step()
    assert float(saved_states(run.optimizer)[last]["mu_product"]) == 0.9
    assert float(saved_states(run.optimizer)[first]["mu_product"]) == product * 0.9
    assert_same(first, others.params[0])


# Who keeps a tensor alive


def _offload(run: Run) -> None:
    for state in run.optimizer.state.values():
        for name in state:
            state[name] = state[name].clone()  # stands in for .to("cpu")


def _forget_parameters(run: Run) -> None:
    run.optimizer.state.clear()
    run.params = []
    for group in run.optimizer.param_groups:
        group["params"] = []


@pairwise(make=MAKES, dtype=DTYPES, quick=[False, True], drop=[_offload, _forget_parameters])
def test_between_steps_nothing_but_groups_and_state_keeps_a_tensor(
    drop: Callable[[Run], None], quick: bool, dtype: torch.dtype, make: str
) -> None:
    run = Run(make, dtype, replace(BUSY, law="alignment") if make == "adamw" else BUSY)
    if not quick:
        run.params[0].grad = None
        run.step()
    gone = [weakref.ref(t) for s in run.optimizer.state.values() for t in s.values()]
    if drop is _forget_parameters:
        gone += [weakref.ref(p) for p in run.params]
    gc.disable()  # at once, not when cycles are looked for
    try:
        drop(run)
        assert [t() for t in gone] == [None] * len(gone)
    finally:
        gc.enable()


@pytest.mark.parametrize("make", MAKES)
def test_parameters_tell_autograd_of_a_quick_step(make: str) -> None:
    run = Run(make)
    versions = [p._version for p in run.params]
    run.step()
    assert all(p._version > v for p, v in zip(run.params, versions, strict=True))
