"""``noise_target="parameter"``: by hand, and by whole optimizers (`test_pass.py` has the step)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_cases import CASES, SEED
from tolerances import assert_close

from adaptiverl import Control

GAINS = [name for name in Control.__dataclass_fields__ if name.startswith("gain_")]
OPTIMIZERS: list[Any] = [case.optimizer for case in CASES.values()]


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


# What else must hold for a noise


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
