"""`AdaptiveSGD`: frozen it is torch.optim.SGD; μ is the momentum; state, bounds, checkpoints."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptiverl.kernels import elements
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveSGD, Control, algorithms
from adaptiverl.backends import CPU, REFERENCE
from adaptiverl.control import HEAVY_BALL

SHAPES = [(50, 7), (33,), (1000,), (4, 3, 2)]
BUSY = Control(every=2, plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0))
"""Moves every knob early."""


def parameters(seed: int = 1, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def params_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def twins(groups: list[dict[str, Any]], **options: Any) -> tuple[AdaptiveSGD, torch.optim.SGD]:
    """Ours, frozen, and torch's single-tensor one, on equal parameters."""

    def build(make: Callable[..., Any], **more: Any) -> Any:
        built = [g | {"params": parameters(i + 1)} for i, g in enumerate(groups)]
        return make(built, **{"lr": 0.01, **options, **more})

    return build(AdaptiveSGD, control=Control.frozen()), build(torch.optim.SGD, foreach=False)


def set_gradients(optimizer: Any, t: int, late: bool = False) -> None:
    """A noisy quadratic's; some come late, some not always."""
    generator = torch.Generator().manual_seed(t)
    for i, param in enumerate(params_of(optimizer)):
        noise = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = 0.1 * param.detach() + noise
        if late and ((i == 1 and t < 60) or (i == 2 and t % 3 == 0) or (i == 3 and t > 150)):
            param.grad = None


def compare_runs(
    ours: AdaptiveSGD,
    theirs: torch.optim.SGD,
    *,
    late: bool = False,
    steps: int = 200,
    first: int = 0,
    change: Callable[[Any, int], None] = lambda *_: None,
) -> None:
    """Raise unless so many steps take both to the same parameters and buffers."""
    start = [param.detach().clone() for param in params_of(ours)]
    for t in range(first, first + steps):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, t, late)
            change(optimizer, t)
        ours.step(loss=3.0 - 0.01 * t)
        theirs.step()
    for a, b in zip(params_of(ours), params_of(theirs), strict=True):
        assert_close(a, b, "torch_sgd_float32")
        buffer, expected = ours.state[a].get("momentum_buffer"), theirs.state[b]
        if "momentum_buffer" in expected:
            assert_close(buffer, expected["momentum_buffer"], "torch_sgd_float32")
        else:
            assert buffer is None
    moved = [not torch.equal(a, b) for a, b in zip(params_of(ours), start, strict=True)]
    assert sum(moved) >= len(moved) // 2


# Frozen


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": ([{}], {}),
    "plain, decay": ([{}], {"weight_decay": 0.1}),
    "momentum": ([{}], {"momentum": 0.9}),
    "dampening": ([{}], {"momentum": 0.9, "dampening": 0.3}),
    "all dampened": ([{}], {"momentum": 0.9, "dampening": 1.0}),
    "nesterov": ([{}], {"momentum": 0.9, "nesterov": True}),
    "decay": ([{}], {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov, decay": ([{}], {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "maximize": ([{}], {"momentum": 0.9, "maximize": True, "weight_decay": 0.1, "dampening": 0.5}),
    "dampening without momentum": ([{}], {"dampening": 0.3}),
    "groups": (
        [
            {"momentum": 0.9, "lr": 0.01},
            {"momentum": 0.0, "lr": 0.03, "weight_decay": 0.0},
            {"momentum": 0.95, "lr": 0.002, "nesterov": True, "maximize": True},
            {"momentum": 0.5, "dampening": 0.9, "lr": 0.0},
        ],
        {"weight_decay": 0.05},
    ),
}


@pytest.mark.parametrize("late", [False, True], ids=["all gradients", "late and missing gradients"])
@pytest.mark.parametrize("case", CASES)
def test_frozen_is_sgd(case: str, late: bool) -> None:
    ours, theirs = twins(*CASES[case][:1], **CASES[case][1])
    compare_runs(ours, theirs, late=late)


def test_frozen_is_sgd_under_a_schedule_and_with_a_rate_in_a_tensor() -> None:
    def anneal(optimizer: Any, t: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (0.99 if t > 20 else 1.02)

    compare_runs(*twins([{}, {"lr": 0.003}], momentum=0.9), change=anneal)
    compare_runs(*twins([{}], momentum=0.9, lr=torch.tensor(0.02)))


def test_momentum_switched_on_later_starts_a_buffer() -> None:
    def switch(optimizer: Any, t: int) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = 0.9 if t >= 50 else 0.0

    compare_runs(*twins([{}], dampening=0.5), steps=100, change=switch)


def test_the_comparison_sees_a_controller() -> None:
    ours, theirs = twins([{}], momentum=0.9)
    steered = AdaptiveSGD(params_of(ours), lr=0.01, momentum=0.9, control=Control(every=2))
    with pytest.raises(AssertionError, match="torch_sgd_float32"):
        compare_runs(steered, theirs)


def test_decoupled_weight_decay_is_a_shrinkage_before_the_step() -> None:
    ours, theirs = twins([{}], momentum=0.9, nesterov=True)
    for group in ours.param_groups:
        group["decoupled_weight_decay"], group["weight_decay"] = True, 0.1

    def shrink(optimizer: Any, t: int) -> None:
        if optimizer is theirs:
            for param in params_of(optimizer):
                param.data.mul_(1 - 0.01 * 0.1)

    compare_runs(ours, theirs, change=shrink)


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e3])
def test_clipping_is_torchs(max_grad_norm: float) -> None:
    ours, theirs = twins([{}], momentum=0.9, weight_decay=0.1)
    clipped = AdaptiveSGD(
        params_of(ours),
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
        control=Control.frozen(),
        max_grad_norm=max_grad_norm,
    )

    def clip(optimizer: Any, t: int) -> None:
        if optimizer is theirs:
            torch.nn.utils.clip_grad_norm_(params_of(optimizer), max_grad_norm)

    compare_runs(clipped, theirs, steps=50, change=clip)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_dtypes_take_the_reference(dtype: torch.dtype) -> None:
    a, b = ([torch.nn.Parameter(torch.ones(7, dtype=dtype) * 0.5)] for _ in range(2))
    ours = AdaptiveSGD(a, lr=0.125, momentum=0.5, control=Control.frozen())
    theirs = torch.optim.SGD(b, lr=0.125, momentum=0.5)
    for _ in range(3):
        for (param,) in (a, b):
            param.grad = torch.ones_like(param)
        ours.step()
        theirs.step()
    # Exact in every dtype: halves and eighths.
    assert torch.equal(a[0], b[0])
    wide = {torch.bfloat16: torch.float32}.get(dtype, dtype)
    assert ours.state[a[0]]["momentum_buffer"].dtype == wide


# Steered


def steer(optimizer: AdaptiveSGD, losses: list[float]) -> None:
    for t, loss in enumerate(losses):
        set_gradients(optimizer, t)
        optimizer.step(loss=loss)


def test_the_knobs_are_the_momentum_and_the_rate_of_the_step() -> None:
    """One step by hand from the knobs that the optimizer reports."""
    optimizer = AdaptiveSGD(parameters(), lr=0.01, momentum=0.9, control=Control(every=2))
    steer(optimizer, [2.0 - 0.1 * t for t in range(20)])
    knobs = optimizer.knobs()
    assert knobs["lr"] > 0.01
    assert knobs["momentum"] > 0.9
    param = params_of(optimizer)[0]
    before, buffer = param.detach().clone(), optimizer.state[param]["momentum_buffer"].clone()
    set_gradients(optimizer, 100)
    grad = param.grad
    assert grad is not None
    # The 21st step of every second one: the knobs do not move.
    optimizer.step(loss=0.0)
    expected = knobs["momentum"] * buffer + grad
    assert_close(optimizer.state[param]["momentum_buffer"], expected, "step_float32")
    assert_close(param, before - knobs["lr"] * expected, "step_float32")


@pytest.mark.parametrize("slope", [-0.1, 0.1])
def test_momentum_stays_within_its_tighter_bounds(slope: float) -> None:
    control = Control(every=1, gain_momentum_reward=0.5, gain_momentum_loss=0.5)
    optimizer = AdaptiveSGD(parameters(), lr=1e-3, momentum=0.9, control=control)
    steer(optimizer, [50.0 + slope * t for t in range(60)])
    bound = HEAVY_BALL.bounds[1] if slope < 0 else HEAVY_BALL.bounds[0]
    assert optimizer.knobs()["momentum"] == pytest.approx(bound, rel=1e-12)
    trace = optimizer.trace()["momentum"]
    assert HEAVY_BALL.bounds[0] <= trace.min() <= trace.max() <= HEAVY_BALL.bounds[1]


@pytest.mark.parametrize(
    ("momentum", "bounds"),
    [(0.9, (0.85, 0.95)), (0.5, (0.5, 0.95)), (0.99, (0.85, 0.99)), (0.0, (0.0, 0.95))],
)
def test_default_bounds_hold_the_start(momentum: float, bounds: tuple[float, float]) -> None:
    optimizer = AdaptiveSGD(parameters(), lr=0.1, momentum=momentum)
    limits = optimizer._controller.limits
    assert (limits.momentum_min, limits.momentum_max) == bounds
    # The promise of the docstring: within the default bounds μ changes a step at most by half.
    low, high = HEAVY_BALL.bounds
    assert (1 - 0.9) / (1 - high) == pytest.approx(2)
    assert (1 - 0.9) / (1 - low) == pytest.approx(2 / 3)


def test_a_group_without_momentum_never_gets_one() -> None:
    groups: list[dict[str, Any]] = [
        {"params": parameters(1), "momentum": 0.9},
        {"params": parameters(2), "momentum": 0.0},
    ]
    optimizer = AdaptiveSGD(groups, lr=1e-3, control=Control(every=2, noise_bounds=(0.0, 0.0)))
    steer(optimizer, [5.0 - 0.1 * t for t in range(20)])
    knobs = optimizer.knobs()
    assert knobs["momentum"] > 0.9
    still = params_of(optimizer)[len(SHAPES)]
    assert "momentum_buffer" not in optimizer.state[still]
    before = still.detach().clone()
    set_gradients(optimizer, 77)
    assert still.grad is not None
    optimizer.step()
    assert_close(still, before - knobs["lr"] * still.grad, "step_float32")


def test_noise_is_the_gradients_rms() -> None:
    sigma = 0.5
    gains: dict[str, Any] = {
        name: 0.0 for name in Control.__dataclass_fields__ if name.startswith("gain_")
    }
    frozen_noise = Control(mode="modulate", noise_bounds=(sigma, sigma), **gains)
    runs = []
    for control in (Control.frozen(), frozen_noise):
        optimizer = AdaptiveSGD(parameters(), lr=0.1, momentum=0.9, control=control, seed=3)
        set_gradients(optimizer, 0)
        optimizer.step()
        runs.append(params_of(optimizer))
    for quiet, noisy in zip(*runs, strict=True):
        assert quiet.grad is not None
        added = ((quiet - noisy) / 0.1).detach()
        rms = quiet.grad.square().mean().sqrt().item()
        size = added.square().mean().sqrt().item() / rms
        assert abs(size - sigma) < 4 * sigma / math.sqrt(2 * added.numel()) + 1e-4


# The torch.optim contract


def test_the_signature_is_torchs_and_ours_after_it() -> None:
    theirs = list(inspect.signature(torch.optim.SGD).parameters.values())
    ours = list(inspect.signature(AdaptiveSGD).parameters.values())
    for mine, torchs in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (torchs.name, torchs.kind, torchs.default)
    added = [p.name for p in ours[len(theirs) :]]
    assert added == [
        "decoupled_weight_decay",
        "control",
        "max_grad_norm",
        "seed",
        "process_group",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"lr": 0.0}, ValueError, r"lr must be finite and > 0 with Control\(mode='replace'\)"),
        ({"momentum": -0.1}, ValueError, "Invalid momentum value: -0.1"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
        ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum"),
        ({"differentiable": True}, ValueError, "does not support differentiable=True"),
        ({"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together"),
        ({"control": None}, TypeError, "control must be a Control"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be finite and > 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number"),
        (
            {"momentum": 0.5, "control": Control(momentum_bounds=(0.85, 0.95))},
            ValueError,
            r"momentum must start inside Control.momentum_bounds = \[0.85, 0.95\], got 0.5",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaptiveSGD(parameters(), **({"lr": 0.1} | arguments))


def test_a_later_group_of_endless_momentum_is_refused() -> None:
    optimizer = AdaptiveSGD(parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.5"):
        optimizer.add_param_group({"params": parameters(2), "momentum": 1.5})
    assert len(optimizer.param_groups) == 1


def test_options_are_where_the_twins_have_them() -> None:
    header = (Path(__file__).parent.parent / "csrc/sgd.cpp").read_text()
    found = dict(re.findall(r"kOption(\w+) = (\d);", header))
    assert found == {"Nesterov": str(algorithms.NESTEROV), "Decoupled": str(algorithms.DECOUPLED)}
    assert (elements.NESTEROV, elements.DECOUPLED) == (algorithms.NESTEROV, algorithms.DECOUPLED)


def backends_of(optimizer: Any) -> set[Any]:
    plan = optimizer._round.plan
    return {b.backend for b in plan.sort(plan._entries.of(optimizer.param_groups, optimizer.state))}


def test_it_is_torchs_class_and_goes_through_the_compiled_sweep() -> None:
    optimizer = AdaptiveSGD(parameters(), lr=0.1, momentum=0.9)
    assert isinstance(optimizer, torch.optim.SGD)
    set_gradients(optimizer, 0)
    backends = backends_of(optimizer)
    assert backends == {CPU}
    params_of(optimizer)[0].grad = params_of(optimizer)[0].grad.t().contiguous().t()  # type: ignore[union-attr]
    backends = backends_of(optimizer)
    assert backends == {CPU, REFERENCE}


def test_state_has_what_it_needs_and_no_more() -> None:
    optimizer = AdaptiveSGD(parameters(), lr=0.1, momentum=0.9)
    plain = AdaptiveSGD(parameters(), lr=0.1)
    for each in (optimizer, plain):
        set_gradients(each, 0)
        each.step()
    assert {frozenset(s) for s in optimizer.state.values()} == {
        frozenset({"step", "momentum_buffer"})
    }
    assert {frozenset(s) for s in plain.state.values()} == {frozenset({"step"})}


def test_a_scaler_skips_and_unscales() -> None:
    ours, theirs = twins([{}], momentum=0.9, dampening=0.5)
    fused = AdaptiveSGD(
        params_of(ours),
        lr=0.01,
        momentum=0.9,
        dampening=0.5,
        fused=True,
        control=Control.frozen(),
    )
    assert fused._step_supports_amp_scaling
    before = [p.detach().clone() for p in params_of(fused)]
    fused.found_inf, fused.grad_scale = torch.ones(1), torch.tensor([1024.0])
    set_gradients(fused, 0)
    fused.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params_of(fused), strict=True))
    # The skipped step was not the first: the next gradient still enters whole.
    fused.found_inf = torch.zeros(1)

    def scale(optimizer: Any, t: int) -> None:
        if optimizer is fused:
            for param in params_of(optimizer):
                assert param.grad is not None
                param.grad *= 1024.0

    compare_runs(fused, theirs, steps=30, change=scale)


# Save and load


def test_checkpoints_go_both_ways() -> None:
    for options in ({"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}, {}):
        ours, theirs = twins([{}], weight_decay=0.1, **options)
        compare_runs(ours, theirs, steps=20)
        # torch's into ours: its buffers are not first ones.
        fresh, _ = twins([{}], weight_decay=0.1, **options)
        for mine, saved in zip(params_of(fresh), params_of(theirs), strict=True):
            mine.data.copy_(saved)
        fresh.load_state_dict(copy.deepcopy(theirs.state_dict()))
        assert fresh.param_groups[0]["decoupled_weight_decay"] is False
        compare_runs(fresh, theirs, steps=20, first=20)
        # Ours into torch's.
        _, newer = twins([{}], weight_decay=0.1, **options)
        for mine, saved in zip(params_of(newer), params_of(fresh), strict=True):
            mine.data.copy_(saved)
        newer.load_state_dict(copy.deepcopy(fresh.state_dict()))
        compare_runs(fresh, newer, steps=20, first=40)


def test_old_checkpoints_with_an_empty_buffer_load() -> None:
    ours, theirs = twins([{}], momentum=0.9, dampening=0.5)
    saved = theirs.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(len(SHAPES))}
    ours.load_state_dict(saved)
    compare_runs(ours, theirs, steps=20)


def test_an_interrupted_run_goes_on_to_the_bit() -> None:
    def build() -> AdaptiveSGD:
        return AdaptiveSGD(
            parameters(), lr=0.01, momentum=0.9, control=BUSY, decoupled_weight_decay=True, seed=9
        )

    losses = [3.0 - 0.05 * t + 0.3 * (t % 3) for t in range(40)]
    straight, first, second = build(), build(), build()
    steer(straight, losses)
    steer(first, losses[:20])
    with torch.no_grad():
        for a, b in zip(params_of(second), params_of(first), strict=True):
            a.copy_(b)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    pickled = pickle.loads(pickle.dumps(first))
    for resumed in (second, pickled):
        for t in range(20, 40):
            set_gradients(resumed, t)
            resumed.step(loss=losses[t])
        for a, b in zip(params_of(resumed), params_of(straight), strict=True):
            assert torch.equal(a, b)
        assert resumed.knobs() == straight.knobs()
        assert resumed.param_groups[0]["decoupled_weight_decay"] is True


def test_half_precision_buffers_stay_wide_through_a_load() -> None:
    def build() -> AdaptiveSGD:
        return AdaptiveSGD(parameters(dtype=torch.bfloat16), lr=0.1, momentum=0.9)

    first, second = build(), build()
    set_gradients(first, 0)
    first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for a, b in zip(params_of(first), params_of(second), strict=True):
        loaded = second.state[b]["momentum_buffer"]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, first.state[a]["momentum_buffer"])
