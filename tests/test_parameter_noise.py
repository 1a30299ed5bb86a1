"""``noise_target="parameter"``: by hand, against the oracle, in both steps of both optimizers."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import sgd_steps
import torch
from adaptiverl.kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sgd_steps import PATHS, SEED, SIGMA, SIZES, STEP, as_reals, block_of, knobs_of, rows_of
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveAdamW, AdaptiveSGD, Control
from adaptiverl.step.entries import Entry

GAINS = [name for name in Control.__dataclass_fields__ if name.startswith("gain_")]
OPTIMIZERS: list[Any] = [AdaptiveAdamW, AdaptiveSGD]
# lr, β₁, β₂, eps, weight decay; lr and momentum in effect.
GROUPS = torch.tensor([[9.0, 9.0, 0.99, 1e-6, 0.1]], dtype=torch.float64)
EFFECTIVE = torch.tensor([[5e-3, 0.85]], dtype=torch.float64)


def steady(sigma: float, target: Any = "parameter", **options: Any) -> Control:
    """σ held where it is, everything else too."""
    gains: dict[str, Any] = dict.fromkeys(GAINS, 0.0)
    bounds = (sigma, sigma)
    return Control(mode="modulate", noise_bounds=bounds, noise_target=target, **gains, **options)


def parameters(values: Any = None) -> list[torch.nn.Parameter]:
    tensors = [torch.randn(40, 5), torch.randn(7)] if values is None else values
    return [torch.nn.Parameter(t.clone()) for t in tensors]


# By hand


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_by_hand(make: Any) -> None:
    """No gradient, no decay: what moves is σ·RMS(p)·lr·ξ, with RMS(3, 4) = √12.5."""
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.zeros(2)
    optimizer = make([param], lr=0.01, weight_decay=0.0, control=steady(0.5), seed=SEED)
    optimizer.step()
    xi = oracle.noise(SEED, 0, 1, np.arange(2))
    expected = np.array([3.0, 4.0]) + 0.5 * math.sqrt(12.5) * 0.01 * xi
    assert_close(param, expected, "step_float32")
    # Large against the tolerance: the comparison above is of the noise.
    assert np.abs(expected - [3.0, 4.0]).min() > 1e-3


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_gradient_and_what_it_leaves_behind_stay_clean(make: Any) -> None:
    """Against a run without noise: equal moments, and parameters that differ by the noise."""
    start = parameters()
    runs = []
    for control in (Control.frozen(), steady(0.5)):
        params = parameters(start)
        optimizer = make(params, lr=0.01, control=control, seed=5)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        runs.append((params, optimizer))
    (quiet, without), (noisy, with_noise) = runs
    for i, (a, b, first) in enumerate(zip(quiet, noisy, start, strict=True)):
        for name, value in without.state[a].items():
            assert torch.equal(with_noise.state[b][name], value), name
        rms = first.square().mean().sqrt().item()
        xi = oracle.noise(5, i, 1, np.arange(first.numel()).reshape(first.shape))
        # The difference of two rounded parameters of size 1.
        torch.testing.assert_close(
            (b - a).detach().double(), torch.tensor(0.5 * rms * 0.01 * xi), rtol=0, atol=1e-6
        )


# Whether a group moves


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("lr", [0.0, 1e-28])
def test_a_group_without_a_rate_does_not_move(make: Any, lr: float) -> None:
    """How a group is held still, and how a checkpoint library makes an optimizer's state."""
    still, moving = parameters(), parameters()
    groups = [{"params": moving}, {"params": still, "lr": lr}]
    optimizer = make(groups, lr=0.1, control=steady(0.5))
    before = [p.detach().clone() for p in (*still, *moving)]
    for _ in range(3):
        for p in (*still, *moving):
            p.grad = torch.randn_like(p)
        optimizer.step()
    after = [*still, *moving]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True] * len(still) + [False] * len(moving)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_rate_is_the_one_in_effect(make: Any) -> None:
    """A controller that halved α halves the noise."""
    param = torch.nn.Parameter(torch.full((4000,), 2.0))
    control = replace(
        steady(0.5), mode="replace", every=1, gain_lr_loss=1.0, lr_change=(0.5, 2.0), reward="none"
    )
    optimizer = make([param], lr=0.1, weight_decay=0.0, control=control)
    sizes = []
    for loss in (1.0, 2.0, 4.0):
        before = param.detach().clone()
        param.grad = torch.zeros_like(param)
        optimizer.step(loss=loss)
        rms = before.square().mean().sqrt().item()
        spread = (param.detach() - before).std().item()
        sizes.append(spread / (0.5 * rms * optimizer.knobs()["lr"]))
    assert optimizer.knobs()["lr"] < 0.06
    assert sizes == pytest.approx([1.0] * 3, rel=0.05)


# Clipping needs Σ g² and the noise Σ p²


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_beside_clipping_each_has_its_own_sums(make: Any) -> None:
    """Against a run whose gradients were clipped before."""
    start = parameters()
    runs = []
    for max_grad_norm in (None, 0.25):
        params = parameters(start)
        optimizer = make(params, lr=0.01, control=steady(0.5), max_grad_norm=max_grad_norm, seed=5)
        for _ in range(3):
            for p in params:
                p.grad = 3.0 * torch.ones_like(p) + p.detach()
            if max_grad_norm is None:
                torch.nn.utils.clip_grad_norm_(params, 0.25)
            optimizer.step()
        runs.append(params)
    for a, b in zip(*runs, strict=True):
        assert_close(b, a.detach(), "step_float32")


@pytest.mark.parametrize("make", OPTIMIZERS)
@settings(max_examples=40)
@given(power=st.integers(-20, 20), seed=st.integers(0, 2**64 - 1), clip=st.booleans())
def test_its_size_is_the_parameters_and_never_the_gradients(
    make: Any, power: int, seed: int, clip: bool
) -> None:
    """Parameters times 2^k: the noise too, to the bit; gradients times anything: no difference."""
    added = []
    for scale, gradient in ((1.0, 0.0), (2.0**power, 0.0)):
        param = torch.nn.Parameter(scale * torch.arange(1.0, 34.0))
        param.grad = torch.full((33,), gradient)
        options = {"max_grad_norm": 1.0} if clip else {}
        optimizer = make(
            [param], lr=2.0**-7, weight_decay=0.0, control=steady(0.25), seed=seed, **options
        )
        optimizer.step()
        added.append((param.detach() / scale).clone())
    assert torch.equal(*added)


# The steps against the oracle


def adamw_entry(n: int, index: int, dtype: torch.dtype = torch.float32) -> Entry:
    second = 0.01 * torch.rand(n, dtype=dtype) + 1e-4
    return Entry(
        param=torch.randn(n, dtype=dtype),
        grad=0.3 * torch.randn(n, dtype=dtype),
        exp_avg=0.1 * torch.randn(n, dtype=dtype),
        exp_avg_sq=second,
        max_exp_avg_sq=second * (0.5 + torch.rand(n, dtype=dtype)) if index % 2 else None,
        step=torch.tensor(3.0),
        mu_product=torch.tensor(0.6, dtype=torch.float64),
        group=0,
        index=index,
        offset=0,
        logical_numel=n,
        maximize=index % 3 == 0,
    )


def adamw_sweep(path: str, entries: list[Entry], block: Tensor, scale: float | None) -> None:
    factor = None if scale is None else torch.tensor(scale, dtype=torch.float64)
    squares = torch.zeros(len(entries), dtype=torch.float64)
    if path == "reference":
        reference.sum_squares(entries, squares, of_parameters=True)
        reference.adamw_step(
            entries, knobs_of(block), GROUPS, EFFECTIVE, squares, factor, False, True
        )
        return
    for entry in entries:
        entry.step += 1
        entry.mu_product *= EFFECTIVE[0, 1]
    rows = rows_of(entries)  # type: ignore[arg-type]
    torch.ops.adaptiverl.sum_squares_(rows, block, squares, False, True)
    torch.ops.adaptiverl.adamw_step_(rows, block, GROUPS, EFFECTIVE, squares, factor, None, True)


def adamw_expected(entry: Entry, scale: float | None) -> oracle.AdamWState:
    top = entry.max_exp_avg_sq
    return oracle.adamw_step(
        as_reals(entry.param),
        as_reals(entry.grad),
        as_reals(entry.exp_avg),
        as_reals(entry.exp_avg_sq),
        None if top is None else as_reals(top),
        step=3,
        mu_product=0.6,
        lr=EFFECTIVE[0, 0].item(),
        momentum=EFFECTIVE[0, 1].item(),
        beta2=GROUPS[0, 2].item(),
        eps=GROUPS[0, 3].item(),
        weight_decay=GROUPS[0, 4].item(),
        maximize=entry.maximize,
        noise=3.0,
        xi=oracle.noise(SEED, entry.index, STEP, np.arange(entry.param.numel())),
        gradient_scale=1.0 if scale is None else scale,
        noise_target="parameter",
    )


def check_adamw(path: str, scale: float | None, dtype: torch.dtype = torch.float32) -> None:
    entries = [adamw_entry(n, i, dtype) for i, n in enumerate(SIZES)]
    expected = [adamw_expected(entry, scale) for entry in entries]
    adamw_sweep(path, entries, block_of(3.0), scale)
    for entry, state in zip(entries, expected, strict=True):
        assert_close(entry.param, state.param, "step_float32")
        assert_close(entry.exp_avg, state.exp_avg, "step_float32")
        assert_close(entry.exp_avg_sq, state.exp_avg_sq, "step_float32")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_adamw_is_the_oracles(path: str, scale: float | None) -> None:
    check_adamw(path, scale)


def test_adamw_in_float64_is_the_oracles() -> None:
    check_adamw("reference", 0.3, torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_sgd_is_the_oracles(path: str, scale: float | None) -> None:
    sgd_steps.against_the_oracle(
        path,
        sgd_steps.mixed_entries(SIZES),
        "step_float32",
        gradient_scale=scale,
        target="parameter",
    )


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("knobs, square, lr)", "knobs, square, None)"),
        ("knobs, square, lr)", "knobs, square, gradient_scale)"),
        ("p = p + _noise(", "p = p - _noise("),
    ],
    ids=["without the rate", "with the gradient's scale", "of the other sign"],
)
def test_the_comparison_sees_a_mutant(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(reference._adamw_tensor)
    changed = source.replace(right, wrong)
    assert changed != source
    namespace = dict(vars(reference))
    exec(changed, namespace)
    monkeypatch.setattr(reference, "_adamw_tensor", namespace["_adamw_tensor"])
    with pytest.raises(AssertionError, match="step_float32"):
        check_adamw("reference", 0.3)


def test_of_the_gradients_root_mean_square_it_would_be_another_noise() -> None:
    entries = [adamw_entry(n, i) for i, n in enumerate(SIZES)]
    expected = [adamw_expected(entry, None) for entry in entries]
    squares = torch.zeros(len(entries), dtype=torch.float64)
    reference.sum_squares(entries, squares)
    knobs = knobs_of(block_of(3.0))
    reference.adamw_step(entries, knobs, GROUPS, EFFECTIVE, squares, None, False, True)
    got = torch.cat([entry.param for entry in entries])
    with pytest.raises(AssertionError, match="step_float32"):
        assert_close(got, np.concatenate([state.param for state in expected]), "step_float32")


# What else must hold for a noise


@pytest.mark.parametrize("cut", [1, 2, 1023, 1026])
def test_shards_draw_the_noise_of_the_whole(cut: int) -> None:
    whole = sgd_steps.entry_of((2052,), index=6, group=1)
    twin = sgd_steps.copy_of(whole)
    assert twin.momentum_buffer is not None
    parts = [
        replace(
            twin,
            param=twin.param[place],
            grad=twin.grad[place],
            momentum_buffer=twin.momentum_buffer[place],
            offset=place.start,
        )
        for place in (slice(0, cut), slice(cut, 2052))
    ]
    squares = torch.zeros(1, dtype=torch.float64)
    block = block_of(SIGMA)
    torch.ops.adaptiverl.sum_squares_(rows_of([whole]), block, squares, True, True)
    assert_close(squares[0], float(whole.param.double().square().sum()), "statistics")
    sgd_steps.compiled_sweep([whole], block, squares=squares, on_parameter=True)
    sgd_steps.compiled_sweep(parts, block, squares=squares.repeat(2), on_parameter=True)
    assert torch.equal(whole.param, twin.param)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_skipped_step_changes_nothing(make: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        params = [torch.nn.Parameter(torch.randn(30, dtype=dtype))]
        optimizer = make(params, lr=0.01, fused=True, control=steady(0.5))
        params[0].grad = torch.full_like(params[0], math.nan)
        before = params[0].detach().clone()
        optimizer.found_inf, optimizer.grad_scale = torch.ones(1), torch.ones(1)
        optimizer.step()
        assert torch.equal(params[0], before)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_at_the_floor_nothing_is_added(make: Any) -> None:
    runs = []
    for target in ("gradient", "parameter"):
        torch.manual_seed(2)
        params = parameters()
        control = Control(every=1, noise_target=target, gain_noise_plateau=0.0)
        optimizer = make(params, lr=0.01, control=control)
        for t in range(5):
            for p in params:
                p.grad = p.detach().clone()
            optimizer.step(loss=1.0 - 0.1 * t)
        runs.append(params)
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
