"""Σ g·u, Σ g² and Σ u² on their way from every sweep to the controller (method.md#alignment)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import oracle
import pytest
import torch
from alignment import (
    ALIGNED,
    CHOICES,
    OPTIMIZERS,
    alignment_of,
    as_reals,
    assert_agrees_with_the_compiled_sweep,
    assert_sums_close,
    backends_of,
    expected_alignment,
    make_optimizer,
    one_step,
    parameters,
    put_gradients,
    run,
    sums_of,
)
from grids import pairwise
from tolerances import assert_close
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, backends
from adaptiverl.kernels import reference
from adaptiverl.layout import SLOT
from adaptiverl.ranks import group
from adaptiverl.ranks.group import Ranks
from adaptiverl.step import round as round_of_a_step


def use_reference(patch: pytest.MonkeyPatch) -> None:
    resolution = backends.Resolution(backends.REFERENCE, "a test wants it so")
    patch.setattr(backends, "resolve", lambda *_: resolution)


# Three elements, by hand. Every number is a short binary fraction: nothing is rounded.


# √v + eps = 1, 2, 4, so that u = 1/2, −3/2, 1/4. The largest v so far has no part in it.
ADAMW_STATE = {"exp_avg": [0.5, -3.0, 1.0], "exp_avg_sq": [0.25, 2.25, 12.25]}
ADAMW_STATE |= {"max_exp_avg_sq": [100.0, 100.0, 100.0]}
ADAMW_OPTIONS = {"eps": 0.5, "weight_decay": 0.1, "amsgrad": True}
ADAMW_SUMS = (0.5 + 3.0 + 0.125, 1 + 4 + 0.25, 0.25 + 2.25 + 0.0625)
SGD_STATE = {"momentum_buffer": [0.5, -1.0, 2.0]}
SGD_OPTIONS = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.5}
# The decay is in the gradient before the buffer sees it: 2, −4, 1; the decoupled one is not.
SGD_SUMS = (1.0 + 4.0 + 2.0, 4.0 + 16.0 + 1.0, 0.25 + 1.0 + 4.0)
DECOUPLED_SUMS = (0.5 + 2.0 + 1.0, 1.0 + 4.0 + 0.25, 0.25 + 1.0 + 4.0)
BY_HAND: list[tuple[Any, dict[str, Any], dict[str, list[float]], tuple[float, ...]]] = [
    (AdaptiveAdamW, ADAMW_OPTIONS, ADAMW_STATE, ADAMW_SUMS),
    (
        AdaptiveAdamW,
        ADAMW_OPTIONS | {"maximize": True},
        ADAMW_STATE,
        (-ADAMW_SUMS[0], *ADAMW_SUMS[1:]),
    ),
    (AdaptiveAdamW, {}, {}, (0.0, 1 + 4 + 0.25, 0.0)),  # no update to look back on
    (AdaptiveSGD, SGD_OPTIONS, SGD_STATE, SGD_SUMS),
    (AdaptiveSGD, SGD_OPTIONS | {"decoupled_weight_decay": True}, SGD_STATE, DECOUPLED_SUMS),
]


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        (torch.float32, "cpu"),
        (torch.float64, "reference"),
        (torch.bfloat16, "cpu"),
        (torch.float16, "reference"),
    ],
)
@pytest.mark.parametrize(("algorithm", "options", "state", "expected"), BY_HAND)
def test_three_elements_by_hand(
    algorithm: Any,
    options: dict[str, Any],
    state: dict[str, list[float]],
    expected: tuple[float, ...],
    dtype: torch.dtype,
    backend: str,
) -> None:
    param = nn.Parameter(torch.tensor([2.0, -4.0, 1.0], dtype=dtype))
    param.grad = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    optimizer = algorithm([param], control=ALIGNED, **options)
    if state:
        moments = torch.promote_types(dtype, torch.float32)
        slots = {name: torch.tensor(x, dtype=moments) for name, x in state.items()}
        optimizer.state[param] = {"step": torch.tensor(3.0)} | slots
    optimizer.step()
    assert backends_of(optimizer) == [backend]
    assert tuple(alignment_of(optimizer)) == expected


# The oracle, over the options

LAYOUTS: list[Callable[[], Tensor]] = [
    lambda: torch.randn(()),
    lambda: torch.randn(0, 3),
    lambda: torch.randn(9, 7).t(),
    lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    lambda: torch.randn(8, 30)[::2, 1::3],
    lambda: torch.randn(50)[1:],
    lambda: torch.randn(4, 5, dtype=torch.complex64).t(),
    lambda: torch.randn(1500),
]


@pairwise(of=OPTIMIZERS, dtype=[torch.float32, torch.float64, torch.bfloat16], factor=[1, 1024])
def test_the_controller_is_told_the_oracles_sums(
    of: tuple[Any, str], dtype: torch.dtype, factor: int
) -> None:
    algorithm, name = of
    params = [nn.Parameter(make()) for make in LAYOUTS]
    if dtype != torch.float32:
        params = [nn.Parameter(p.detach().to(dtype)) for p in params if not p.is_complex()]
    optimizer = make_optimizer(algorithm, name, params)
    limit = optimizer._max_grad_norm
    for step in range(5):
        put_gradients(params, step)
        if step == 3:
            params[2].grad = None
        grads = [as_reals(p.grad) for p in params if p.grad is not None]
        scale = 1.0 if limit is None else oracle.clip_coefficient(grads, limit)
        assert (scale < 0.9) == (limit is not None)
        expected = expected_alignment(optimizer, scale)
        if factor != 1:  # a scaled loss is unscaled first
            for param in params:
                param.grad = None if param.grad is None else param.grad * factor
            optimizer.grad_scale, optimizer.found_inf = (
                torch.tensor(float(factor)),
                torch.tensor(0.0),
            )
        optimizer.step(loss=1.0)
        tolerance = "sums_float64" if dtype == torch.float64 else "statistics"
        assert_sums_close(alignment_of(optimizer), expected, tolerance)
    # channels_last and transposed tensors are swept as they lie
    assert ("cpu" in backends_of(optimizer)) == (dtype != torch.float64)
    assert "reference" in backends_of(optimizer)
    assert expected[0] != 0, "no direction: the test is of nothing"


# One way and another


@pytest.mark.parametrize(("algorithm", "name"), OPTIMIZERS)
def test_the_compiled_sweep_and_the_reference_agree(algorithm: Any, name: str) -> None:
    assert_agrees_with_the_compiled_sweep(algorithm, name, "reference", use_reference)


# The reference has one sum for all options.
@pytest.mark.parametrize(
    ("backend", "algorithm", "name"),
    [*(("cpu", *each) for each in OPTIMIZERS)]
    + [("reference", algorithm, "noise and clipping") for algorithm in CHOICES],
)
def test_every_run_has_the_same_bits_on_any_number_of_threads(
    algorithm: Any, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        use_reference(monkeypatch)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        optimizer = one_step(algorithm, name, (270_000, 3))
        assert backends_of(optimizer) == [backend]
        found.append((sums_of(optimizer)[0].tolist(), alignment_of(optimizer)))
    assert found[0] == found[1]


@pytest.mark.parametrize("run", [reference.RUN, 8])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 4095, 4096, 4097, 300_001])
def test_a_sum_in_order_is_a_sum(numel: int, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "RUN", run)
    values = torch.rand(numel, dtype=torch.float64) - 0.25
    sums = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.append(reference.sum_in_order(values).item())
    assert sums[1:] == sums[:1] * 2
    assert_close(sums[0], math.fsum(values.tolist()), "sums_float64")


# What a step may not do


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("algorithm", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
def test_a_skipped_step_leaves_them(algorithm: Any, dtype: torch.dtype) -> None:
    params = parameters(700, 3, dtype=dtype)
    optimizer = run(lambda p: make_optimizer(algorithm, "noise and clipping", p), params)
    told, summed = alignment_of(optimizer), sums_of(optimizer)
    for found_inf in (1.0, 0.0):
        put_gradients(params, 7)
        if found_inf:
            params[0].grad[5] = float("nan")
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        optimizer.step()
        same = alignment_of(optimizer) == told, torch.equal(sums_of(optimizer)[0], summed[0])
        assert same == ((True, True) if found_inf else (False, False))


def test_a_law_that_does_not_read_them_does_not_make_them() -> None:
    params = [*parameters(700), *parameters(3, dtype=torch.float64)]
    optimizer = run(lambda p: AdaptiveAdamW(p, control=Control()), params)
    assert [bucket._sums for bucket in optimizer._round.plan._sorted] == [None, None]
    assert alignment_of(optimizer) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("control", "made"),
    [
        (Control.climb(20), 12),  # the cooldown's first step ends the search
        (Control.find_lr(20), 11),  # too short for a ramp: held at once, and may creep until then
        (replace(Control.find_lr(20), cooldown=0.0, gradient_sensors=True), 20),
    ],
    ids=["climb", "ramp", "sensors"],
)
@pytest.mark.filterwarnings("ignore:.*leaves the search")
def test_sums_that_nobody_reads_any_more_are_not_made(
    control: Control, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> tuple[list[Tensor], int]:
        params, told = parameters(700, 3), Mock()
        optimizer = AdaptiveAdamW(params, lr=1e-3, control=control)
        told.side_effect = optimizer._controller.reduce_alignment
        monkeypatch.setattr(optimizer._controller, "reduce_alignment", told)
        for step in range(20):
            put_gradients(params, step)
            optimizer.step(loss=1.0)
        return params, told.call_count

    params, count = trained()
    assert count == made
    monkeypatch.setattr(round_of_a_step, "still_read", lambda *_, **__: True)
    others, count = trained()
    assert count == 20
    assert all(map(torch.equal, params, others)), "to the bit"


def test_a_climb_after_a_held_rate_reads_the_sums_again() -> None:
    """The loss that is watched did not fall (method.md#watch)."""
    params = parameters(700, 3)
    control = Control(law="range_test", horizon=1000)
    optimizer = AdaptiveAdamW(params, lr=1e-3, control=control)
    state = optimizer._controller.state
    courses: list[float] = []
    for step in range(12):
        if step == 2:  # held, and one loss short of the second window's end
            held = {"searching": 0, "held": 1, "held_at": 1, "step": 300, "log_lr_zero": -4}
            watched = {"watches": 1, "watched": 49, "watched_mean": 1, "watched_before": 1}
            for name, value in (held | watched).items():
                state[SLOT[name]] = value
        put_gradients(params, step)
        optimizer.step(loss=1.0)
        courses.append(optimizer.knobs()["alignment"])
    assert (state[SLOT["climbing"]], state[SLOT["held"]]) == (1, 0)
    assert len(set(courses[6:])) == 6


def test_a_checkpoint_without_a_controller_has_the_search_begin_anew() -> None:
    params = parameters(7)
    optimizer = run(lambda p: AdaptiveAdamW(p, control=Control.climb(5)), params, steps=5)
    assert optimizer.knobs()["held"] == 1
    optimizer.load_state_dict(torch.optim.AdamW(params).state_dict())
    for step in range(2):
        put_gradients(params, step)
        optimizer.step()
    assert optimizer.knobs()["held"] == 0
    assert alignment_of(optimizer) != [0.0, 0.0, 0.0]


@pytest.mark.parametrize("control", [Control.climb(20), Control.find_lr(20)])
@pytest.mark.filterwarnings("ignore:.*leaves the search")
def test_a_search_that_is_loaded_after_the_end_of_a_run_is_followed_to_its_end(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the run before, beyond its horizon, is not that of what is heard."""
    params = parameters(7)
    optimizer = run(lambda p: AdaptiveAdamW(p, control=control), params, steps=0)
    start = copy.deepcopy(optimizer.state_dict())
    for taken in (22, 14):
        caplog.clear()
        with caplog.at_level("INFO", logger="adaptiverl"):
            for step in range(taken):
                put_gradients(params, step)
                optimizer.step()
        assert "holds the learning rate" in caplog.text
        assert ("beyond" in caplog.text) == (taken == 22)
        sums = alignment_of(optimizer)
        put_gradients(params, 99)
        optimizer.step()
        assert alignment_of(optimizer) == sums, "nobody reads them any more"
        optimizer.load_state_dict(start)


def test_their_place_stays_where_it_is() -> None:
    """A CUDA graph goes on writing there."""
    params = [*parameters(700, 40), *parameters(3, dtype=torch.float64)]
    optimizer = run(lambda p: AdaptiveAdamW(p, control=ALIGNED), params, steps=2)
    places = [bucket.sums.data_ptr() for bucket in optimizer._round.plan._sorted]
    put_gradients(params, 5)
    optimizer.step(loss=1.0)
    assert [bucket.sums.data_ptr() for bucket in optimizer._round.plan._sorted] == places


@pytest.mark.parametrize("control", [ALIGNED, Control(gradient_sensors=True)], ids=["law", "asked"])
def test_the_gradients_size_is_that_of_those_that_there_are(control: Control) -> None:
    """Clipped to a norm of 2, of 7 elements of 12: the other tensor has no gradient."""
    params = parameters(7, 5)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=control, max_grad_norm=2.0)
    for _ in range(3):
        params[0].grad, params[1].grad = torch.full((7,), 3.0), None
        optimizer.step(loss=1.0)
    knobs = optimizer.knobs()
    assert knobs["gradient_rms"] == pytest.approx(2 / 7**0.5)
    assert knobs["gradient_variance"] == pytest.approx(0, abs=1e-12)
    # The sums of the second step are of the first one's direction, 0.1·g/√(0.001·g²).
    assert knobs["update_rms"] == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)
    assert "gradient_rms" not in AdaptiveAdamW(params, lr=1e-2).knobs()


def test_a_checkpoint_librarys_step_tells_the_controller_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes with zero gradients and a rate of 0, to make state."""
    params = parameters(7)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=ALIGNED)
    told: list[Any] = []
    monkeypatch.setattr(optimizer._controller, "reduce_alignment", lambda *sums: told.append(sums))
    for rate, gradient in ((0.0, 0.0), (1e-2, 1.0)):
        optimizer.param_groups[0]["lr"] = rate
        params[0].grad = torch.full((7,), gradient)
        optimizer.step()
        assert len(told) == (rate > 0)


def test_averaging_over_ranks_leaves_a_skipped_steps_numbers_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean of seven equal numbers need not be that number."""

    def seven_of(tensor: Tensor, _: Any) -> None:
        one = tensor.clone()
        for _ in range(6):
            tensor += one

    monkeypatch.setattr(group, "all_reduce", seven_of)
    monkeypatch.setattr(Ranks, "size", 7)
    before = torch.rand(300, 4, dtype=torch.float64)
    moved = 0
    for numbers in before:
        kept = numbers.clone()
        Ranks().average_alignment([kept.split((3, 1))], [torch.zeros((), dtype=torch.float64)])
        assert torch.equal(kept, numbers)
        for active in (torch.ones((), dtype=torch.float64), None):
            mean = numbers.clone()
            Ranks().average_alignment([mean.split((3, 1))], [active])
            assert_close(mean, numbers, "sums_float64")
            moved += not torch.equal(mean, numbers)
    assert moved > 0, "the mean was the number itself: the test is of nothing"
