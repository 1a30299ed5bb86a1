"""The optimizer as its user meets it: arguments, observations, knobs, groups, save and load."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.step import memory

BUSY = Control(
    every=2, noise_bounds=(0.0, 0.1), plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0)
)
"""Moves every knob early: P is close to 1, so σ leaves its floor at once."""


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def descend(optimizer: Any, params: list[nn.Parameter], steps: int, first: int = 0) -> None:
    """Steps on a noisy quadratic; every number drawn depends on the step alone."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        loss = torch.zeros(())
        for param in params:
            target = torch.randn(param.shape, generator=generator)
            loss = loss + (param - 0.1 * target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, AdaptiveAdamW):
            optimizer.observe(loss)
        optimizer.step()


def snapshot(optimizer: AdaptiveAdamW, params: list[nn.Parameter]) -> Any:
    return copy.deepcopy((optimizer.state_dict(), [p.detach().clone() for p in params]))


def assert_same(left: Any, right: Any) -> None:
    """Bit equality of nested containers of tensors and numbers."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def assert_differ(left: list[Tensor], right: list[Tensor]) -> None:
    with pytest.raises(AssertionError):
        assert_same(left, right)


# Construction


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        (
            {"lr": 0.0},
            ValueError,
            r"lr must be finite and > 0 with Control\(mode='replace'\), got 0.0",
        ),
        ({"lr": math.inf}, ValueError, "lr must be finite and > 0"),
        ({"lr": math.nan}, ValueError, "Invalid learning rate: nan"),
        ({"betas": (1.0, 0.999)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
        ({"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
        ({"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
        ({"differentiable": True}, ValueError, "does not support differentiable=True"),
        (
            {"max_grad_norm": 0.0},
            ValueError,
            "max_grad_norm must be finite and > 0, or None, got 0",
        ),
        ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm must be finite and > 0"),
        ({"seed": -1}, ValueError, r"seed must be a whole number from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be a whole number"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number"),
        ({"control": {"every": 3}}, TypeError, "control must be a Control, got {'every': 3}"),
        (
            {"lr": 1.0, "control": Control(lr_bounds=(1e-4, 1e-2))},
            ValueError,
            r"lr must start inside Control.lr_bounds = \[0.0001, 0.01\], got 1.0",
        ),
        (
            {"betas": (0.5, 0.999), "control": Control(momentum_bounds=(0.85, 0.99))},
            ValueError,
            r"betas\[0\] must start inside Control.momentum_bounds",
        ),
        (
            {"control": Control(mode="modulate", lr_bounds=(2.0, 3.0))},
            ValueError,
            "the factor 1.0 of Control",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaptiveAdamW(parameters((3,)), **arguments)


def test_coupled_weight_decay_is_refused_and_not_ignored() -> None:
    def coupled(*shape: int) -> dict[str, Any]:
        return {"params": parameters(shape), "decoupled_weight_decay": False}

    with pytest.raises(ValueError, match="got a group with decoupled_weight_decay=False"):
        AdaptiveAdamW([coupled(3)])
    with pytest.raises(ValueError, match="got a group with decoupled_weight_decay=False"):
        AdaptiveAdamW([{"params": parameters((2,))}, coupled(3)])
    params = parameters((3,))
    optimizer = AdaptiveAdamW(params)
    with pytest.raises(ValueError, match="got a group with decoupled_weight_decay=False"):
        optimizer.add_param_group(coupled(4))
    assert len(optimizer.param_groups) == 1
    params[0].grad = torch.ones(3)
    optimizer.step()
    before = snapshot(optimizer, params)
    optimizer.param_groups[0]["decoupled_weight_decay"] = False  # in mid run
    with pytest.raises(ValueError, match="leave it out"):
        optimizer.step()
    optimizer.param_groups[0]["decoupled_weight_decay"] = True
    assert_same(snapshot(optimizer, params), before)


def test_a_checkpoint_of_adam_is_decoupled_here_as_in_torchs_adamw() -> None:
    params = parameters((3,))
    adam = torch.optim.Adam(params, weight_decay=0.5)
    params[0].grad = torch.ones(3)
    adam.step()
    for make in (torch.optim.AdamW, AdaptiveAdamW):
        optimizer = make(params)
        optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
        assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
        optimizer.step()


def test_it_is_an_adamw_with_its_arguments_in_their_places() -> None:
    params = parameters((3,))
    ours = AdaptiveAdamW(params, 2e-3, (0.95, 0.98), 1e-7, 0.1, True)
    theirs = torch.optim.AdamW(params, 2e-3, (0.95, 0.98), 1e-7, 0.1, True)
    assert isinstance(ours, torch.optim.AdamW)
    assert ours.defaults == theirs.defaults
    shared = {
        k: v for k, v in ours.param_groups[0].items() if k not in ("adaptive_state", "params")
    }
    assert shared == {k: v for k, v in theirs.param_groups[0].items() if k != "params"}


def test_a_scheduler_may_own_a_rate_of_zero() -> None:
    params = parameters((3,))
    optimizer = AdaptiveAdamW(params, lr=0.0, control=Control(mode="modulate"))
    before = params[0].detach().clone()
    params[0].grad = torch.ones(3)
    optimizer.step(loss=1.0)
    assert_same(params[0].detach(), before)


# Observations


def test_three_ways_to_tell_the_loss_are_one() -> None:
    def by_observe(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        optimizer.observe(loss)
        optimizer.step()

    def by_step(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        optimizer.step(loss=loss)

    def by_closure(optimizer: AdaptiveAdamW, loss: Tensor) -> None:
        assert optimizer.step(lambda: loss) is loss

    results = []
    for tell in (by_observe, by_step, by_closure):
        params = parameters((5,))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
        for step in range(20):
            params[0].grad = params[0].detach().clone()
            tell(optimizer, torch.tensor(1.0 / (1 + step), requires_grad=True))
        results.append(snapshot(optimizer, params))
        assert optimizer.knobs()["updates"] == 10
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_a_closure_adds_nothing_to_what_was_observed() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    optimizer.observe(4.0)
    optimizer.step(lambda: torch.tensor(100.0))
    assert optimizer.knobs()["loss"] == 4.0


@pytest.mark.parametrize("result", [None, "text", (torch.ones(2), 1), torch.ones(3), True])
def test_a_closure_may_return_anything(result: Any) -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    assert optimizer.step(lambda: result) is result
    assert math.isnan(optimizer.knobs()["loss"])


def test_a_closure_runs_with_gradients() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
    assert closure() < first


def test_micro_batches_average() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    for loss in (1.0, torch.tensor(2.0), torch.tensor([6.0], dtype=torch.float64)):
        optimizer.observe(loss)
    optimizer.step()
    assert optimizer.knobs()["loss"] == 3.0


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            torch.ones(2),
            ValueError,
            r"must have one element, got shape \(2,\): reduce it first",
        ),
        (torch.ones(()) * 1j, TypeError, "loss must be a real number, got dtype torch.complex64"),
        (torch.ones((), dtype=torch.bool), TypeError, "got dtype torch.bool"),
        (torch.ones((), device="meta"), TypeError, "loss has no value: it is a tensor on the meta"),
        (None, TypeError, "loss must be a real number or a tensor with one element, got None"),
        ("1.0", TypeError, "got '1.0' of type str"),
        (1j, TypeError, "got 1j of type complex"),
        ([1.0], TypeError, r"got \[1.0\] of type list"),
        (True, TypeError, "got True of type bool"),
    ],
)
def test_what_is_no_loss_changes_nothing(loss: Any, error: type[Exception], message: str) -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    descend(optimizer, params, 5)
    before = snapshot(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.observe(loss)
    if loss is not None:
        with pytest.raises(error, match=message):
            optimizer.step(loss=loss)
    assert_same(snapshot(optimizer, params), before)
    # The refused loss is not in the inbox either: the next one counts alone.
    optimizer.step(loss=7.0)
    assert optimizer.knobs()["loss"] == 7.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_losses_of_other_dtypes(dtype: torch.dtype) -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    optimizer.step(loss=torch.tensor(3, dtype=dtype))
    assert optimizer.knobs()["loss"] == 3.0


def test_a_reward_where_none_belongs() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    with pytest.raises(ValueError, match=r"is 'neg_loss': use Control\(reward='given'\)"):
        optimizer.observe(1.0, reward=1.0)
    params[0].grad = torch.ones(2)
    optimizer.step()
    assert math.isnan(optimizer.knobs()["loss"])


def test_a_given_reward_raises_the_rate() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=Control(reward="given", every=5))
    for step in range(50):
        params[0].grad = torch.ones(2)
        optimizer.observe(1.0, reward=float(step))
        optimizer.step()
    assert optimizer.knobs()["lr"] > 1e-3
    assert optimizer.knobs()["reward"] == 49.0


def test_a_nan_loss_is_a_signal_not_an_error() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=Control(every=3))
    for loss in (1.0, math.nan, 1.0):
        params[0].grad = torch.ones(2)
        optimizer.step(loss=loss)
    knobs = optimizer.knobs()
    assert knobs["nonfinite"] == 1
    # One full reflex: k_r + k_ℓ = 0.1 log-units down, inside the cap of log 0.9.
    assert knobs["lr"] == pytest.approx(1e-3 * math.exp(-0.1))
    assert torch.isfinite(params[0]).all()


def test_one_warning_for_who_never_observes() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params, control=Control(every=3))
    params[0].grad = torch.ones(2)
    for _ in range(9):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"took 10 steps and was never told a loss") as caught:
        optimizer.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            optimizer.step()
    quiet = AdaptiveAdamW(params, control=Control.frozen())
    for _ in range(20):
        quiet.step()


def test_epoch_wise_control_moves_when_called() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(
        params, lr=1e-3, control=Control(every=None, beta_loss=0.3, beta_reward=0.3)
    )
    rates = []
    for epoch in range(5):
        for _ in range(7):
            params[0].grad = torch.ones(2)
            optimizer.step(lambda: torch.tensor(1.0))
        optimizer.update(3.0 - 0.5 * epoch)
        rates.append(optimizer.knobs()["lr"])
    assert rates[0] == pytest.approx(1e-3)
    assert rates == sorted(rates)
    assert rates[-1] > 1.1e-3
    assert optimizer.knobs()["updates"] == 5
    assert optimizer.knobs()["step"] == 35
    with pytest.raises(ValueError, match=r"observe\(\) has no effect with Control\(every=None\)"):
        optimizer.observe(1.0)
    with pytest.raises(ValueError, match=r"observe\(\) has no effect"):
        optimizer.step(loss=1.0)
    with pytest.raises(ValueError, match=r"update\(\) is for .*every=None\), got every=10"):
        AdaptiveAdamW(params).update(1.0)


# Knobs and groups


def test_groups_keep_their_ratio() -> None:
    params = parameters((3,), (3,))
    groups = [{"params": params[:1], "lr": 1e-2}, {"params": params[1:], "lr": 1e-3}]
    optimizer = AdaptiveAdamW(groups, eps=0.0, weight_decay=0.0, control=Control(every=1))
    moved = []
    for step in range(6):
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = torch.full((3,), 0.5)
        optimizer.step(loss=2.0 - 0.1 * step)
        moved.append([(b - p.detach()) for b, p in zip(before, params, strict=True)])
        # With equal gradients of constant size a step is lr_g·(α/α₀) to rounding.
        rate = optimizer.knobs()["lr"]
        torch.testing.assert_close(moved[-1][0], torch.full((3,), rate), rtol=1e-4, atol=0)
        torch.testing.assert_close(moved[-1][0], 10 * moved[-1][1], rtol=1e-3, atol=0)
    assert optimizer.knobs()["lr"] > 1.05e-2
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


def test_modulate_multiplies_what_the_scheduler_sets() -> None:
    params = parameters((3,))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=Control(mode="modulate", every=1))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(5):
        params[0].grad = torch.ones(3)
        optimizer.step(loss=2.0 - 0.1 * step)
        factor = optimizer.trace()["lr"][-1].item()
        assert optimizer.knobs()["lr"] == pytest.approx(1e-2 * 0.5**step * factor, rel=1e-12)
        scheduler.step()
    assert factor > 1


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_tensor_rate_equals_a_float_one(shape: tuple[int, ...]) -> None:
    ends = []
    for lr in (0.01, torch.full(shape, 0.01, dtype=torch.float64)):
        params = parameters((4,), (2, 3))
        optimizer = AdaptiveAdamW(params, lr=lr, control=BUSY)
        descend(optimizer, params, 20)
        ends.append([p.detach() for p in params])
    assert_same(ends[0], ends[1])


def test_frozen_knobs_do_not_move_by_a_bit() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, lr=3e-4, betas=(0.93, 0.99), control=Control.frozen())
    descend(optimizer, params, 50)
    knobs = optimizer.knobs()
    assert (knobs["lr"], knobs["momentum"], knobs["noise"]) == (3e-4, 0.93, 0.0)
    assert knobs["updates"] == 5


def test_knobs_and_trace_tell_the_same() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=BUSY)
    descend(optimizer, params, 30)
    trace, knobs = optimizer.trace(), optimizer.knobs()
    assert trace["step"].tolist() == [float(s) for s in range(2, 31, 2)]
    for name in ("lr", "momentum", "noise", "plateau", "loss_mean", "loss_direction", "loss"):
        assert trace[name][-1].item() == pytest.approx(knobs[name], rel=1e-12)
    assert knobs["noise"] > 0
    with pytest.raises(KeyError, match="the trace has no column 'alpha'; it has step, loss"):
        trace["alpha"]


def test_noise_moves_parameters_and_follows_the_seed() -> None:
    def run(seed: int, control: Control = BUSY) -> list[Tensor]:
        params = parameters((6,), (2, 2))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=control, seed=seed)
        descend(optimizer, params, 10)
        return [p.detach() for p in params]

    quiet = Control(every=2, noise_bounds=(0.0, 0.0))
    assert_same(run(1), run(1))
    assert_differ(run(1), run(2))
    assert_differ(run(1), run(1, quiet))
    assert_same(run(1, quiet), run(2, quiet))


# Gradients


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    params = parameters((4,), (5, 3))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    descend(optimizer, params, 3)
    before = snapshot(optimizer, params)
    params[0].grad = torch.ones(4)
    params[1].grad = torch.ones(5, 3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients, got one of layout"):
        optimizer.step()
    assert_same(snapshot(optimizer, params), before)


def test_gradients_are_read_only_and_parameters_tell_autograd() -> None:
    params = parameters((4,), (3, 3))
    optimizer = AdaptiveAdamW(params, control=BUSY, max_grad_norm=0.1)
    descend(optimizer, params, 4)
    for param in params:
        param.grad = torch.randn_like(param)
    kept = [p.grad.clone() for p in params if p.grad is not None]
    versions = [p.grad._version for p in params if p.grad is not None]
    before = [p._version for p in params]
    optimizer.step(loss=1.0)
    assert_same([p.grad for p in params], kept)
    assert [p.grad._version for p in params if p.grad is not None] == versions
    assert all(p._version > v for p, v in zip(params, before, strict=True))


def test_a_step_without_gradients_moves_nothing() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    before = [p.detach().clone() for p in params]
    optimizer.step(loss=1.0)
    assert_same([p.detach() for p in params], before)
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("fill", [None, 0.0])
def test_missing_and_zero_gradients_draw_no_noise(fill: float | None) -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, weight_decay=0.0, control=Control(noise_bounds=(0.1, 0.1)))
    before = [p.detach().clone() for p in params]
    for _ in range(12):
        params[0].grad = None if fill is None else torch.full((4,), fill)
        optimizer.step(loss=1.0)
    assert_same([p.detach() for p in params], before)


# Loss scaling (method.md#skipped-steps)


def scaled(optimizer: AdaptiveAdamW, scale: float, overflow: bool) -> None:
    """What a GradScaler does around a step of an optimizer that unscales itself."""
    optimizer.grad_scale = torch.tensor(scale)
    optimizer.found_inf = torch.tensor(float(overflow))
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_an_overflow_step_changes_nothing_at_all(
    dtype: torch.dtype, max_grad_norm: float | None
) -> None:
    params = [nn.Parameter(p.detach().to(dtype)) for p in parameters((4,), (3, 2))]
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, max_grad_norm=max_grad_norm)
    descend(optimizer, params, 6)
    before = snapshot(optimizer, params)
    for param in params:
        param.grad = torch.full_like(param, math.inf)
    optimizer.observe(1e9)
    scaled(optimizer, 65536.0, overflow=True)
    assert_same(snapshot(optimizer, params), before)
    # Nor does the lost observation count later.
    optimizer.step(loss=0.25)
    assert optimizer.knobs()["loss"] == 0.25


def test_scaled_gradients_step_as_unscaled_ones() -> None:
    ends = []
    for scale in (1.0, 1024.0):
        params = parameters((4,), (3, 2))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, max_grad_norm=0.5)
        for step in range(8):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator) * scale
            optimizer.observe(1.0 / (1 + step))
            scaled(optimizer, scale, overflow=False)
        ends.append([p.detach() for p in params])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)


# Save and load


def resumed(
    make: Callable[[list[nn.Parameter]], AdaptiveAdamW], through: Callable[[Any], Any]
) -> None:
    """Train 15 steps, save, load into a new optimizer, train 15 more: equal to 30 in one go."""
    straight = parameters((5,), (3, 4))
    optimizer = make(straight)
    descend(optimizer, straight, 15)
    saved = through(copy.deepcopy(optimizer.state_dict()))
    copies = [nn.Parameter(p.detach().clone()) for p in straight]
    descend(optimizer, straight, 15, first=15)

    other = make(copies)
    other.load_state_dict(saved)
    descend(other, copies, 15, first=15)
    assert_same([p.detach() for p in copies], [p.detach() for p in straight])
    assert_same(other.knobs(), optimizer.knobs())
    assert optimizer.knobs()["noise"] > 0
    assert len(other.trace()["step"]) == 8


def test_resume_is_exact(tmp_path: Any) -> None:
    def through_file(state: Any) -> Any:
        torch.save(state, tmp_path / "optimizer.pt")
        return torch.load(tmp_path / "optimizer.pt", weights_only=True)

    resumed(lambda params: AdaptiveAdamW(params, lr=1e-2, control=BUSY, seed=5), through_file)


def test_resume_takes_the_seed_of_the_checkpoint() -> None:
    seeds = iter((5, 6))
    resumed(
        lambda params: AdaptiveAdamW(params, lr=1e-2, control=BUSY, seed=next(seeds)), lambda s: s
    )


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_goes_on_as_the_original(clone: Callable[[Any], Any]) -> None:
    params = parameters((5,), (3, 4))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, max_grad_norm=1.0, seed=3)
    descend(optimizer, params, 9)
    twin = clone(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    descend(optimizer, params, 9, first=9)
    descend(twin, twins, 9, first=9)
    assert_same([p.detach() for p in twins], [p.detach() for p in params])
    assert_same(twin.knobs(), optimizer.knobs())


def test_moments_keep_their_dtype_under_half_precision() -> None:
    params = [nn.Parameter(p.detach().bfloat16()) for p in parameters((5,), (3, 4))]
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
    descend(optimizer, params, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    other = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
    other.load_state_dict(saved)
    assert_same(other.state_dict(), saved)
    for state in other.state.values():
        dtypes = {name: value.dtype for name, value in state.items()}
        assert dtypes == {
            "step": torch.float32,
            "exp_avg": torch.float32,
            "exp_avg_sq": torch.float32,
            "mu_product": torch.float64,
        }


def test_checkpoints_pass_both_ways_to_torch_adamw() -> None:
    params = parameters((5,), (3, 4))
    theirs = torch.optim.AdamW(params, lr=1e-2, betas=(0.8, 0.99))
    descend(theirs, params, 10)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    ours = AdaptiveAdamW(copies, lr=1e-2, betas=(0.8, 0.99), control=Control.frozen())
    ours.observe(3.0)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.knobs()["step"] == 0
    descend(theirs, params, 10, first=10)
    descend(ours, copies, 10, first=10)
    for mine, reference in zip(copies, params, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-7)

    back = torch.optim.AdamW(copies, lr=1e-2, betas=(0.8, 0.99))
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    descend(theirs, params, 10, first=20)
    descend(back, copies, 10, first=20)
    for mine, reference in zip(copies, params, strict=True):
        torch.testing.assert_close(mine, reference, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda memory: memory[:-1].clone(), "got torch.float64 of shape"),
        (lambda memory: memory.half(), "got torch.float16 of shape"),
        (lambda memory: memory.clone().fill_(9.0), "got version 9.0"),
        (lambda memory: [1.0, 2.0], r"got \[1.0, 2.0\]"),
    ],
)
def test_a_damaged_block_is_refused_and_nothing_changes(
    damage: Callable[[Tensor], Any], message: str
) -> None:
    params = parameters((5,))
    optimizer = AdaptiveAdamW(params, control=BUSY)
    descend(optimizer, params, 5)
    before = snapshot(optimizer, params)
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["adaptive_state"] = damage(bad["param_groups"][0]["adaptive_state"])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(bad)
    assert_same(snapshot(optimizer, params), before)


def test_a_group_added_in_mid_training() -> None:
    params = parameters((5,), (3, 4))
    optimizer = AdaptiveAdamW(params[:1], lr=1e-2, control=BUSY)
    descend(optimizer, params[:1], 6)
    optimizer.add_param_group({"params": params[1:], "lr": 1e-3})
    blocks = [group["adaptive_state"] for group in optimizer.param_groups]
    assert blocks[0] is blocks[1]
    descend(optimizer, params, 6, first=6)
    assert optimizer.state[params[1]]["step"] == 6
    assert optimizer.knobs()["step"] == 12


def test_a_checkpoint_librarys_empty_step_moves_nothing() -> None:
    # What torch.distributed.checkpoint does to make an optimizer's state: zero gradients, lr = 0.
    params = parameters((5,))
    optimizer = AdaptiveAdamW(params, control=Control(every=1, noise_bounds=(0.1, 0.1)))
    before = [p.detach().clone() for p in params]
    memory = optimizer.param_groups[0]["adaptive_state"].clone()
    params[0].grad = torch.zeros(5)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure=None)
    assert_same([p.detach() for p in params], before)
    assert_same(optimizer.param_groups[0]["adaptive_state"], memory)


def test_hooks_run_once_each_and_in_order() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    torch.optim.AdamW(params)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    params[0].grad = torch.ones(2)
    optimizer.step(loss=1.0)
    assert calls == ["before", "after"]


def test_a_subclass_with_a_step_of_its_own_runs_hooks_once() -> None:
    class Own(AdaptiveAdamW):
        def step(self, closure: Any = None, **options: Any) -> Any:
            return super().step(closure, **options)

    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    AdaptiveAdamW([param])  # torch wraps the step of a class with its first instance
    optimizer, calls = Own([param], control=Control.frozen()), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


def test_a_hook_on_all_optimizers_may_change_the_arguments() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = AdaptiveAdamW([param])
    handle = register_optimizer_step_pre_hook(lambda o, a, k: (a, {"loss": 0.5}))
    try:
        optimizer.step()
    finally:
        handle.remove()
    optimizer.step()
    assert optimizer.knobs()["loss"] == 0.5
    assert optimizer._controller.read().loss_count == 1


def test_a_profiler_sees_a_step_under_torchs_name() -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = AdaptiveAdamW([param], control=Control.frozen())
    optimizer.step()
    with torch.profiler.profile() as seen:
        optimizer.step()
    assert "Optimizer.step#AdaptiveAdamW.step" in {event.name for event in seen.events()}


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD])
def test_a_step_leaves_the_modes_of_torch_as_they_were(kind: Any) -> None:
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = kind([param], lr=0.1)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            optimizer.step(loss=1.0)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    param.grad = torch.ones(5)[:3].to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step(loss=1.0)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD])
def test_annotations_can_be_read(kind: Any) -> None:
    for function in (kind.__init__, kind.observe, kind.step, kind.knobs, kind.trace):
        assert "return" in typing.get_type_hints(function)


def test_printing_hides_the_block() -> None:
    text = repr(AdaptiveAdamW(parameters((2,)), lr=0.125))
    assert text.startswith("AdaptiveAdamW (\nParameter Group 0\n")
    assert "    lr: 0.125\n" in text
    assert "adaptive_state" not in text


# Reading the knobs


def tensors_of_a_step(optimizer: Any) -> list[Tensor]:
    """What the controller, the sweep and the next step read, beside parameters and their state."""
    controller, table = optimizer._controller, optimizer._round._group_table
    tables = [] if table is None else [table.numbers, table.effective]
    return [
        controller.state,
        controller.inbox,
        controller.ring.on(controller.device),
        controller.memory,
        *tables,
    ]


@pytest.mark.parametrize("steps", [0, 7])
def test_knobs_only_look(steps: int) -> None:
    """At a rate changed by hand they show what a step would use now, and leave that to the step."""
    params = parameters((5,), (2, 2))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
    descend(optimizer, params, steps)
    before = optimizer.knobs()
    optimizer.observe(1.0)
    seen = [(t, t.clone(), t._version) for t in tensors_of_a_step(optimizer)]
    optimizer.param_groups[0]["lr"] *= 3
    knobs = optimizer.knobs()
    assert knobs == pytest.approx(before | {"lr": 3 * before["lr"]}, rel=1e-15, nan_ok=True)
    for now, (tensor, values, version) in zip(tensors_of_a_step(optimizer), seen, strict=True):
        assert now is tensor
        assert tensor._version == version
        assert_same(tensor, values)


def test_knobs_show_a_loaded_memory_that_no_step_has_adopted_yet() -> None:
    params = parameters((5,))
    loaded, optimizer = (AdaptiveAdamW(params, lr=1e-2, control=BUSY) for _ in range(2))
    descend(loaded, params, 9)
    # As ZeroRedundancyOptimizer loads: another memory in the group, and nobody is told.
    memory = loaded.param_groups[0]["adaptive_state"].clone()
    optimizer.param_groups[0]["adaptive_state"] = memory
    own = optimizer._controller.state.clone()
    assert optimizer.knobs() == loaded.knobs()
    assert optimizer.param_groups[0]["adaptive_state"] is memory
    assert_same(optimizer._controller.state, own)


def test_knobs_read_from_another_thread_while_steps_run() -> None:
    def run(reader: bool) -> Any:
        params = parameters((50,), (4, 4))
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
        done = threading.Event()
        read: list[dict[str, float]] = []

        def look() -> None:
            while not done.is_set():
                read.append(optimizer.knobs())

        thread = threading.Thread(target=look)
        if reader:
            thread.start()
        try:
            for step in range(200):
                optimizer.param_groups[0]["lr"] = 1e-2 * (1 + step % 3)
                descend(optimizer, params, 1, first=step)
        finally:
            done.set()
            if reader:
                thread.join()
        assert bool(read) == reader
        return snapshot(optimizer, params)

    assert_same(run(True), run(False))


# Where the controller lives


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Controllers of meta parameters live beside them: the meta device stands for an accelerator.

    Yields:
        Where an operator observed.
    """
    meta, observed = torch.device("meta"), []

    def device_of(device: torch.device) -> torch.device:
        return meta if device == meta else torch.device("cpu")

    def note(inbox: Tensor, loss: Tensor | float, reward: Tensor | float | None) -> None:
        assert inbox.device == meta
        observed.append(loss.device if isinstance(loss, Tensor) else inbox.device)

    monkeypatch.setattr(memory, "controller_device", device_of)
    library = torch.library.Library("adaptiverl", "IMPL")
    for name in ("observe_", "observe_numbers_"):
        library.impl(name, note, "Meta", allow_override=True)
    yield observed
    library._destroy()


class CopiesToTheHost(TorchDispatchMode):
    """Counts copies onto the CPU, each of which would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if func in copies and result.device.type == "cpu":
            self.seen += any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        return result


@pytest.mark.parametrize("moved", [False, True], ids=["", "moved after construction"])
def test_the_first_observation_is_made_where_the_parameters_are(
    elsewhere: list[torch.device], moved: bool
) -> None:
    params = list(nn.Linear(3, 2, device="cpu" if moved else "meta").parameters())
    optimizer = AdaptiveAdamW(params, lr=1e-2)
    # To another kind of device torch moves a parameter by making a new one.
    optimizer.param_groups[0]["params"] = [nn.Parameter(p.to("meta")) for p in params]
    with CopiesToTheHost() as copies:
        optimizer.observe(1.0)
        optimizer.observe(torch.tensor(2.0), None)
    assert elsewhere == [torch.device("meta")] * 2
    assert copies.seen == 0
    assert optimizer._controller.device == torch.device("meta")
    memories = [group["adaptive_state"] for group in optimizer.param_groups]
    assert all(memory is optimizer._controller.memory for memory in memories)
    assert optimizer._controller.observed == 2


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_a_default_device_is_not_where_it_is_made(default: str) -> None:
    params = parameters((5,))
    with torch.device(default):
        optimizer = AdaptiveAdamW(params, lr=1e-2)
        assert optimizer.knobs()["lr"] == 1e-2
    assert optimizer._controller.device == torch.device("cpu")


# Groups that are somebody else's, too


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_optimizers_over_the_same_dictionaries_have_a_controller_each(kind: Any) -> None:
    param = nn.Parameter(torch.ones(3))
    groups = [{"params": [param], "lr": 1e-2}]
    falling, rising = (kind(groups, 1e-2, control=Control(every=1)) for _ in range(2))
    for step in range(10):
        param.grad = torch.ones(3)
        for optimizer, loss in ((falling, 10.0 - step), (rising, 1.0 + step)):
            optimizer.observe(loss)
            optimizer.step()
    assert falling.knobs()["loss"] == 1.0
    assert rising.knobs()["loss"] == 10.0
    assert falling.knobs()["lr"] > 1e-2 > rising.knobs()["lr"]
    assert falling.param_groups[0] is groups[0]


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_a_group_that_is_no_dictionary_gets_torchs_answer(kind: Any) -> None:
    optimizer = kind([nn.Parameter(torch.ones(3))], 1e-2)
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([nn.Parameter(torch.ones(3))])
    assert len(optimizer.param_groups) == 1
