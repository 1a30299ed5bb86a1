"""What only a GPU can show, as plain functions: `test_gpu.py` runs them, and so does bench/gpu.sh.

Nothing here needs pytest. A check returns, raises AssertionError, or raises `Skip` with a reason.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import recorded_graph
import torch
from adaptiverl.kernels.normals import normals
from tolerances import assert_close
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, backends
from adaptiverl.backends import placement
from adaptiverl.controller import Controller
from adaptiverl.law import knobs
from adaptiverl.law.loop import advance
from adaptiverl.law.numbers import numbers_of
from adaptiverl.layout import FIELDS, State

BUSY = Control(
    every=2, noise_bounds=(0.0, 0.1), plateau_trend=(10.0, 1.0), plateau_variance=(10.0, 1.0)
)
"""Moves every knob early: P is close to 1, so σ leaves its floor at once."""
QUIET = Control(noise_bounds=(0.0, 0.0))
SIGMA = 0.05
NOISY = Control(every=2, noise_bounds=(SIGMA, SIGMA))
ON_PARAMETER = Control(every=2, noise_bounds=(SIGMA, SIGMA), noise_target="parameter")
ALIGNED = Control(law="alignment", horizon=30, every=2, noise_bounds=(0.0, 0.0))
"""The law that reads the sweep's sums; μ still follows the loss."""

FIND = Control.find_lr(1000)

NOISY_EPS = 1e-2
"""Adam's eps where noisy gradients are compared. A gradient that its noise all but cancels moves
its parameter by its sign in the first step, so an error of 1e-9 in the noise becomes lr · 1e-9 /
|gradient|: with eps = 1e-8 one element in 50,000 was off by 4e-5 on an H200."""

WAITING = ("Synchronize", "cudaMemcpy")
"""Of runtime calls that make the host wait; an asynchronous copy's name ends in Async."""

NOT_KERNELS = ("Memcpy", "Memset", "ProfilerStep", "Optimizer.")
"""How else a name may begin among what the device runs"""

CHECKS: dict[str, Callable[[], None]] = {}
"""Every check by its name"""
ANYWHERE: set[str] = set()
"""Names of those that mean something on a CPU, too: so they are known to run before a GPU is"""


class Skip(Exception):
    """This machine cannot show it; the message says why."""


class Where:
    """The device that the checks use."""

    device = torch.device("cuda", 0)


def check(anywhere: bool = False) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Make a function one of `CHECKS`."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[function.__name__] = function
        if anywhere:
            ANYWHERE.add(function.__name__)
        return function

    return register


def parameters(
    sizes: Iterable[Any], dtype: torch.dtype = torch.float32, device: Any = None
) -> list[nn.Parameter]:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(1)
    device = Where.device if device is None else device
    return [nn.Parameter(torch.randn(n, generator=generator).to(device, dtype)) for n in sizes]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """Normal numbers that depend on the step, in the gradients' own memory where there is one."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        grad = (0.5 * torch.randn(p.shape, generator=generator)).to(p)
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def losses(steps: int, device: Any = None) -> list[Tensor]:
    """Falling, then rising: every knob has something to answer."""
    device = Where.device if device is None else device
    course = [3.0 - 0.1 * t + 0.02 * t * t + 0.3 * math.sin(5 * t) for t in range(steps)]
    return list(torch.tensor(course, device=device).unbind())


def train(optimizer: Any, params: list[nn.Parameter], steps: int, first: int = 0) -> None:
    """Observe, step; gradients and losses depend on the step alone."""
    device = params[0].device
    for step, loss in enumerate(losses(first + steps, device)):
        if step >= first:
            set_gradients(params, step)
            optimizer.observe(loss)
            optimizer.step()


def observe_and_step(optimizer: Any, loss: Tensor) -> None:
    """What a graph captures beside forward and backward."""
    optimizer.observe(loss)
    optimizer.step()


def backends_of(optimizer: Any) -> set[str]:
    """Who took the last step's tensors."""
    return {bucket.backend.name for bucket in optimizer._round.plan._sorted}


def expect_triton(optimizer: Any) -> None:
    """On a GPU nothing else is being checked."""
    if Where.device.type == "cuda":
        assert backends_of(optimizer) == {"triton"}, backends_of(optimizer)


def everything(optimizer: Any, params: list[nn.Parameter]) -> list[Tensor]:
    """Copies of all that a step changes."""
    state = [v for state in optimizer.state_dict()["state"].values() for v in state.values()]
    return [t.detach().clone() for t in (*params, *state, optimizer._controller.memory)]


def assert_same_bits(left: list[Tensor], right: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        same = (a == b) | (a.isnan() & b.isnan())
        assert bool(same.all()), f"tensor {i}: {int((~same).sum())} of {a.numel()} elements differ"


def assert_other_bits(left: list[Tensor], right: list[Tensor]) -> None:
    try:
        assert_same_bits(left, right)
    except AssertionError:
        return
    raise AssertionError("the comparison would not have noticed a difference")


def assert_trained_alike(
    left: Any, right: Any, ours: list[nn.Parameter], theirs: list[nn.Parameter], name: str
) -> None:
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p.detach().float(), q.detach().float(), name)
    found, expected = left.state_dict()["state"], right.state_dict()["state"]
    for place, state in expected.items():
        for key, value in state.items():
            tolerance = "step_float32" if value.is_floating_point() else name
            assert_close(found[place][key], value, tolerance)


# The controller


@check(anywhere=True)
def the_controller_is_the_law() -> None:
    """Every state of a course of 400 losses against the Python law; counters to the bit."""
    _is_the_law(BUSY)


@check(anywhere=True)
def the_controllers_bandit_is_the_law() -> None:
    """The same of a law that draws."""
    control = Control.bandit([BUSY, replace(BUSY, every=1, gain_lr_loss=0.1)], window=10)
    _is_the_law(control, ("arm", "arm_draws"), ("window_reward", "played_count", "played_mean"))


@check(anywhere=True)
def the_controllers_network_is_the_law() -> None:
    """The same of a law whose weights lie behind the control's numbers."""
    control = replace(Control.distilled(400), every=2)
    _is_the_law(control, ("moved_at",), ("move_lr", "move_momentum"), STEERED[:-2])


STEERED = ("plateau", "log_lr", "lr", "logit_momentum", "momentum", "log_noise", "noise")


def _states(curve: Iterable[float], control: Control) -> list[State]:
    """The Python law's after each loss; of gradients it is told nothing."""
    numbers = numbers_of(control, control.limits(1e-3, 0.9))
    state, states = knobs.start(numbers, control.start_lr(1e-3), 0.9), []
    for loss in curve:
        advance(state, numbers, loss, None)
        states.append(replace(state))
    return states


def _is_the_law(
    control: Control,
    exact: tuple[str, ...] = (),
    close: tuple[str, ...] = (),
    moving: tuple[str, ...] = STEERED,
) -> None:
    generator = torch.Generator().manual_seed(3)
    course = 2 + torch.exp(-torch.arange(400) / 130) + 0.4 * torch.randn(400, generator=generator)
    curve = course.double().tolist()
    for place, loss in ((50, math.nan), (90, math.inf), (130, 30.0), (131, -1e300), (200, 1e-300)):
        curve[place] = loss
    expected = _states(curve, control)
    controller = Controller(control, 1e-3, 0.9, device=Where.device)
    groups = torch.tensor([[1e-3, 0.9, 0.999, 1e-8, 0.01]], dtype=torch.float64).to(Where.device)
    effective = torch.zeros((1, 2), dtype=torch.float64, device=Where.device)
    blocks, in_effect = [], []
    for observed in torch.tensor(curve, dtype=torch.float64, device=Where.device).unbind():
        controller.observe(observed)
        controller.advance(groups, effective)
        blocks.append(controller.state.clone())
        in_effect.append(effective.clone())
    got = torch.stack(blocks).cpu()
    for name in ("step", "updates", "nonfinite", "loss_count", *exact):
        wanted = torch.tensor([float(getattr(s, name)) for s in expected])
        assert torch.equal(got[:, FIELDS.index(name)], wanted.double()), name
    for name in (*moving, *close):
        wanted = torch.tensor([float(getattr(s, name)) for s in expected], dtype=torch.float64)
        assert wanted.unique().numel() > 20, f"{name} hardly moves"
        assert_close(got[:, FIELDS.index(name)], wanted, "law")
    for name in ("loss_mean", "loss_trend", "loss_scale", "loss_direction", "variance"):
        wanted = torch.tensor([float(getattr(s, name)) for s in expected], dtype=torch.float64)
        assert_close(got[:, FIELDS.index(name)], wanted, "law")
    rates = torch.stack(in_effect)[:, 0, 0].cpu()
    assert_close(rates, got[:, FIELDS.index("lr")], "law")
    assert len(controller.trace()["step"]) == expected[-1].updates >= 200


# The sweep

SIZES = (0, 1, 5, 255, 256, 1023, 1024, 1025, 16383, 16384, 16385, 50000, 0)


def _compare(
    make: Callable[[list[nn.Parameter]], Any], steps: int = 4, sizes: Iterable[Any] = SIZES
) -> None:
    """The same training here and on the CPU."""
    ours, theirs = parameters(sizes), parameters(sizes, device="cpu")
    here, there = make(ours), make(theirs)
    train(here, ours, steps)
    train(there, theirs, steps)
    expect_triton(here)
    moved = [p for p, q in zip(ours, parameters(sizes), strict=True) if not torch.equal(p, q)]
    assert len(moved) == sum(p.numel() > 0 for p in ours)
    assert_trained_alike(here, there, ours, theirs, "step_float32")


@check(anywhere=True)
def adamw_trains_as_on_the_cpu() -> None:
    """Every control with and without clipping, amsgrad and maximize."""
    for control in (QUIET, NOISY, ON_PARAMETER):
        for norm in (None, 0.7):
            for amsgrad in (False, True):
                _compare(
                    lambda params, control=control, norm=norm, amsgrad=amsgrad: AdaptiveAdamW(  # type: ignore[misc]
                        params,
                        0.01,
                        eps=NOISY_EPS if control is NOISY else 1e-8,
                        amsgrad=amsgrad,
                        maximize=amsgrad,
                        control=control,
                        max_grad_norm=norm,
                        seed=7,
                    )
                )


@check(anywhere=True)
def the_alignment_law_finds_the_cpus_rate() -> None:
    """Sums, search, hold and cooldown; and the sums are not all of one kind."""
    sizes = [40_000, 3, 1025]
    ours, theirs = parameters(sizes), parameters(sizes, device="cpu")
    here, there = (AdaptiveAdamW(p, 0.01, control=ALIGNED) for p in (ours, theirs))
    seen = []
    for step in range(30):
        train(here, ours, 1, first=step)
        train(there, theirs, 1, first=step)
        knobs, expected = here.knobs(), there.knobs()
        seen.append(knobs)
        # Once the rate is held, a CPU makes no sums any more (method.md#alignment); a GPU goes on.
        sensed = () if expected["held"] else ("alignment", "alignment_direction", "alignment_mean")
        for name in ("alpha", "held", *sensed):
            assert math.isclose(knobs[name], expected[name], rel_tol=1e-4, abs_tol=1e-6), (
                f"step {step}: {name} is {knobs[name]} here, {expected[name]} on the CPU"
            )
    expect_triton(here)
    assert {k["held"] for k in seen} == {0, 1}, "the rate should be held from the cooldown on"
    searching = [k["alignment"] for k in seen if not k["held"]]
    assert len({*searching}) > 12, "the sums hardly change"
    assert_trained_alike(here, there, ours, theirs, "step_float32")


@check(anywhere=True)
def the_alignment_sums_have_the_same_bits_again() -> None:
    """Two runs, over more tensors than the controller's launch has threads."""
    ends = []
    for start in (0.01, 0.01, 0.02):
        params = parameters([300_000, *[17] * 700])
        optimizer = AdaptiveAdamW(params, start, control=ALIGNED)
        train(optimizer, params, 6)
        ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])
    assert_other_bits(ends[0], ends[2])


@check(anywhere=True)
def sgd_trains_as_on_the_cpu() -> None:
    """With and without momentum, with and without noise."""
    for control in (QUIET, NOISY):
        for momentum in (0.0, 0.9):
            _compare(
                lambda params, control=control, momentum=momentum: AdaptiveSGD(  # type: ignore[misc]
                    params, 0.01, momentum, weight_decay=0.1, control=control, max_grad_norm=0.7
                )
            )


@check(anywhere=True)
def half_precision_steps_as_the_reference() -> None:
    """One step from the same bits, rounded by chance and to nearest; moments are float32."""
    for dtype, name in ((torch.bfloat16, "rounded_bfloat16"), (torch.float16, "rounded_float16")):
        for by_chance in (True, False):
            ours, theirs = parameters(SIZES, dtype), parameters(SIZES, dtype, "cpu")
            here, there = (
                AdaptiveAdamW(
                    p, 0.1, eps=NOISY_EPS, control=NOISY, seed=7, stochastic_rounding=by_chance
                )
                for p in (ours, theirs)
            )
            train(here, ours, 1)
            train(there, theirs, 1)
            expect_triton(here)
            assert_trained_alike(here, there, ours, theirs, name)
            assert_few_round_otherwise(ours, theirs)


def assert_few_round_otherwise(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    """Of results that agree in float32: with other random bits, two fifths would."""
    pairs = list(zip(ours, theirs, strict=True))
    differ = sum(int((a.detach().cpu() != b.detach().cpu()).sum()) for a, b in pairs)
    assert differ <= 0.02 * sum(a.numel() for a, _ in pairs), f"{differ} elements round otherwise"


SHORT_OPTIMIZERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (AdaptiveAdamW, {"eps": NOISY_EPS, "amsgrad": True, "weight_decay": 0.1}),
    (AdaptiveSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (AdaptiveLion, {"weight_decay": 0.1}),
)


@check(anywhere=True)
def short_state_is_rounded_as_on_the_cpu() -> None:
    """bfloat16 state beside parameters of both kinds: with the CPU's random bits, at every size."""
    for dtype in (torch.float32, torch.bfloat16):
        for make, options in SHORT_OPTIMIZERS:
            sets = parameters(SIZES, dtype), parameters(SIZES, dtype, "cpu")
            optimizers = [
                make(p, 0.1, control=QUIET, seed=7, state_dtype=torch.bfloat16, **options)
                for p in sets
            ]
            for optimizer, params in zip(optimizers, sets, strict=True):
                train(optimizer, params, 1)
            expect_triton(optimizers[0])
            for key in make._algorithm.slots_of(optimizers[0].param_groups[0]):
                ours, theirs = (
                    [o.state[p][key] for p in params]
                    for o, params in zip(optimizers, sets, strict=True)
                )
                for a, b in zip(ours, theirs, strict=True):
                    assert a.dtype == torch.bfloat16
                    assert_close(a.float(), b.float(), "rounded_bfloat16")
                assert_few_round_otherwise(ours, theirs)


@check(anywhere=True)
def short_training_keeps_up_with_float32() -> None:
    """A parabola's minimum is found by bfloat16 weights and state as by float32's."""
    distances = []
    for dtype in (torch.float32, torch.bfloat16):
        param = nn.Parameter(torch.ones(4096, device=Where.device, dtype=dtype))
        goal = torch.linspace(0.2, 1.8, 4096, device=Where.device)
        optimizer = AdaptiveAdamW([param], 1e-3, control=QUIET, weight_decay=0, state_dtype=dtype)
        for _ in range(1000):
            param.grad = (param.detach().float() - goal).to(dtype)
            optimizer.step(loss=0.0)
        expect_triton(optimizer)
        distances.append(_rms(param.detach().float() - goal))
    # Steps of 1e-3 where a spacing is 2^-7: to nearest, parameters above 1 would not move at all.
    assert distances[0] < 0.1
    assert abs(distances[1] - distances[0]) < 0.02, distances


@check()
def short_steps_replay_bit_for_bit() -> None:
    """Every replay of a captured step draws the bits of a step outside, which never waits."""
    outcomes = []
    for graphed in (True, False):
        params = parameters(SIZES, torch.bfloat16)
        optimizer = AdaptiveAdamW(
            params, 1e-3, control=QUIET, capturable=True, state_dtype=torch.bfloat16
        )
        loss = torch.tensor(1.0, device=Where.device)
        set_gradients(params, 0)
        observe_and_step(optimizer, loss)
        if graphed:
            graph = captured(partial(observe_and_step, optimizer, loss))
            for _ in range(3):
                graph.replay()
        else:
            with waiting_is_an_error():
                for _ in range(3):
                    observe_and_step(optimizer, loss)
        torch.cuda.synchronize()
        outcomes.append(everything(optimizer, params))
    assert_same_bits(*outcomes)


@check()
def pulses_replay_bit_for_bit() -> None:
    """A held-out loss that a replay tells cuts the rate as one told outside, which never waits."""
    outcomes = []
    for graphed in (True, False):
        params = parameters(SIZES)
        optimizer = AdaptiveAdamW(params, 1e-3, control=Control(every=1), capturable=True)
        loss, held_out = (torch.full((), 9.0, device=Where.device) for _ in range(2))

        def step(optimizer: Any = optimizer, loss: Any = loss, held_out: Any = held_out) -> None:
            observe_and_step(optimizer, loss)
            optimizer.pulse(held_out)

        set_gradients(params, 0)
        step()
        again = captured(step).replay if graphed else step
        with contextlib.nullcontext() if graphed else waiting_is_an_error():
            for _ in range(12):
                loss -= 0.25
                held_out += 1.0
                again()
        torch.cuda.synchronize()
        assert optimizer.knobs()["pulse_cuts"] == 2
        outcomes.append(everything(optimizer, params))
    assert_same_bits(*outcomes)


@check(anywhere=True)
def the_noise_is_the_cpus() -> None:
    """The first moment after one step of σ near 1 is the gradient and its noise."""
    control = Control(noise_bounds=(0.999, 0.999))
    drawn = []
    for device in (Where.device, torch.device("cpu")):
        params = parameters([100_003], device=device)
        optimizer = AdaptiveAdamW(params, 0.01, control=control, seed=(1 << 63) + 11)
        train(optimizer, params, 1)
        assert params[0].grad is not None
        rms = params[0].grad.double().square().mean().sqrt()
        noise = optimizer.state[params[0]]["exp_avg"].double() / (1 - 0.9) - params[0].grad
        drawn.append((noise / (0.999 * rms)).cpu())
    xi = normals(
        (torch.tensor(11), torch.tensor(1 << 31)), 0, torch.tensor(1), 0, 100_003, torch.float64
    )
    assert_close(drawn[0], drawn[1], "normals", scale=1.0)
    assert_close(drawn[0], xi, "normals", scale=1.0)


@check(anywhere=True)
def hard_cases_step_as_on_the_cpu() -> None:
    """Views at odd offsets, 0-d, strange strides, gradients that come and go."""
    outcomes = []
    for device in (Where.device, torch.device("cpu")):
        weight = torch.randn(8, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(device)
        params = [
            *parameters([3, 1100, 5, 600], device=device),
            nn.Parameter(torch.tensor(0.5, device=device)),
            nn.Parameter(weight.contiguous(memory_format=torch.channels_last)),
            nn.Parameter(weight[0, 0].t()),
            nn.Parameter(weight[1].clone()),
        ]
        optimizer = AdaptiveAdamW(params, 0.02, control=NOISY, max_grad_norm=0.5, seed=3)
        bucket = torch.zeros(1708, device=device)
        for step, loss in enumerate(losses(5, device)):
            set_gradients(params, step)
            for p, view in zip(params[:4], bucket.split([3, 1100, 5, 600]), strict=True):
                assert p.grad is not None
                p.grad = view.copy_(p.grad)
            grad = params[7].grad
            assert grad is not None
            params[7].grad = grad.permute(2, 1, 0).contiguous().permute(2, 1, 0)
            if step in (1, 3):
                params[1].grad = None
            if step < 2:
                params[2].grad = None
            optimizer.step(loss=loss)
        outcomes.append((optimizer, params))
    assert [int(outcomes[0][0].state[p]["step"]) for p in outcomes[0][1][:3]] == [5, 3, 3]
    (here, ours), (there, theirs) = outcomes
    assert_trained_alike(here, there, ours, theirs, "step_float32")


@check(anywhere=True)
def the_same_seed_gives_the_same_bits() -> None:
    """Two runs, every sum and every draw in them."""
    ends = []
    for seed in (5, 5, 6):
        params = parameters([300_000, 17, 70_000])
        optimizer = AdaptiveAdamW(params, 0.01, control=NOISY, max_grad_norm=1.0, seed=seed)
        train(optimizer, params, 6)
        ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])
    assert_other_bits(ends[0], ends[2])


@check(anywhere=True)
def an_overflow_changes_nothing() -> None:
    """Nor does it leave a trace in what follows."""
    ends = []
    for overflow in (False, True):
        params = parameters([40_000, 3])
        optimizer = AdaptiveAdamW(params, 0.01, control=BUSY, max_grad_norm=1.0, fused=True)
        train(optimizer, params, 3)
        if overflow:
            set_gradients(params, 50)
            assert params[0].grad is not None
            params[0].grad[7] = math.inf
            optimizer.observe(losses(1)[0])
            optimizer.grad_scale = torch.tensor(64.0, device=Where.device)
            optimizer.found_inf = torch.tensor(1.0, device=Where.device)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
        train(optimizer, params, 3, first=3)
        ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])


@check()
def more_than_two_to_the_thirty_first_elements() -> None:
    """The last elements of a tensor of 2^31 + 2,054, noise included, against plain torch."""
    numel, tail = 2**31 + 2054, 4100
    expect_free(17 * numel)
    param = nn.Parameter(torch.full((numel,), 0.5, device=Where.device))
    param.grad = torch.full_like(param, 0.25)
    param.grad[-tail:] = torch.linspace(-1, 1, tail, device=Where.device)
    control = Control(noise_bounds=(0.999, 0.999))
    optimizer = AdaptiveAdamW([param], 0.01, control=control, seed=11)
    optimizer.step(loss=losses(1)[0])
    expect_triton(optimizer)
    rms = _rms(param.grad)
    xi = normals(
        (torch.tensor(11), torch.tensor(0)),
        0,
        torch.tensor(1),
        numel - tail,
        tail,
        torch.float64,
    )
    noisy = param.grad[-tail:].double().cpu() + 0.999 * rms * xi
    assert_close(optimizer.state[param]["exp_avg"][-tail:], 0.1 * noisy, "normals", scale=rms)
    assert_close(
        optimizer.state[param]["exp_avg_sq"][-tail:], 0.001 * noisy**2, "normals", scale=rms**2
    )
    # A first step goes by the learning rate, whatever the gradient's size, but for eps.
    moved = 0.5 * (1 - 0.01 * 0.01) - param.detach()[-tail:].double().cpu()
    plain = noisy.abs() > 1e-3
    assert float((moved - 0.01 * noisy.sign())[plain].abs().max()) < 1e-6
    assert bool((param.detach()[:: 2**12] != 0.5).all()), "elements were left out on the way"


def expect_free(needed: int) -> None:
    """Skip where fewer bytes of memory than that are free."""
    free, _ = torch.cuda.mem_get_info(Where.device)
    if free < needed:
        raise Skip(f"needs {needed / 2**30:.0f} GiB of free memory, there are {free / 2**30:.0f}")


def _rms(tensor: Tensor) -> float:
    sums = [float(piece.double().square().sum()) for piece in tensor.split(2**28)]
    return math.sqrt(sum(sums) / tensor.numel())


# Nobody waits


def _steady(control: Control = NOISY, sizes: Iterable[Any] = SIZES) -> tuple[Any, Any]:
    """An optimizer that has everything it keeps, and one more of its steps."""
    params = parameters(sizes)
    optimizer = AdaptiveAdamW(params, 0.01, control=control, max_grad_norm=1.0, capturable=True)
    train(optimizer, params, 3)
    expect_triton(optimizer)
    return optimizer, partial(observe_and_step, optimizer, losses(1)[0])


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """torch's own check; it does not see what goes past torch."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@check(anywhere=True)
def a_search_goes_back_where_the_device_says_so() -> None:
    """From the host's memory and from the device's own; what it went back to is let go later."""
    for home in ("host", "device"):
        params = parameters([40_000, 3, 1025])
        began = [p.detach().clone() for p in params]
        optimizer = AdaptiveAdamW(params, None, control=replace(FIND, snapshot=home))  # type: ignore[arg-type]
        for step in range(160):
            set_gradients(params, step)
            optimizer.step()
            if optimizer._controller.read().rewind:
                break
            assert step < 159, "the search did not end"
        assert step > 20, f"the search ended at step {step}"
        assert_same_bits([p.detach() for p in params], began)
        states = [x for state in optimizer.state.values() for x in state.values()]
        assert not any(bool(x.any()) for x in states)
        for later in range(step + 1, step + 6):
            set_gradients(params, later)
            optimizer.step()
            if Where.device.type == "cuda":
                torch.cuda.synchronize()
        assert optimizer._round.snapshot is not None
        assert not optimizer._round.snapshot._copies, "what it went back to is still kept"
        assert_other_bits([p.detach() for p in params], began)


@check()
def no_step_waits_for_the_device() -> None:
    """By torch's own check, over whole steps; and the check sees one that waits."""
    for control in (ALIGNED, NOISY, FIND):
        optimizer, step = _steady(control)
        with waiting_is_an_error():
            for _ in range(40):
                step()
    noticed = ""
    try:
        with waiting_is_an_error():
            optimizer.knobs()
    except RuntimeError as error:
        noticed = str(error)
    assert "synchroniz" in noticed, f"reading the knobs waits, and torch's check said {noticed!r}"


def traced(step: Callable[[], Any]) -> tuple[list[str], list[tuple[str, float]]]:
    """One call as the profiler sees it.

    Returns:
        What the host asks of the runtime, by name; what the device then runs, with microseconds.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for _ in range(2):  # the first starts the profiler's own machinery
        torch.cuda.synchronize()
        with profile(activities=activities) as profiler:
            with record_function("the step"):
                step()
            torch.cuda.synchronize()
    events = list(profiler.events() or [])
    host = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU]
    spans = [e.time_range for e in host if e.name == "the step"]
    assert len(spans) == 1, "the profiler lost the step"
    inside = [e for e in host if spans[0].start <= e.time_range.start <= spans[0].end]
    calls = [e.name for e in inside if e.name.startswith("cu")]
    runs = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    return calls, [(e.name, e.time_range.elapsed_us()) for e in runs if e.name != "the step"]


def profiled(step: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
    """How often one call asks what of the runtime, and how often the device then runs what."""
    calls, runs = traced(step)
    return Counter(calls), Counter(name for name, _ in runs)


def kernels_among(runs: Counter[str]) -> int:
    """Launches, without copies, fills and the profiler's own marks."""
    return sum(n for name, n in runs.items() if not name.startswith(NOT_KERNELS))


def waits_among(calls: Counter[str]) -> Counter[str]:
    """Runtime calls that make the host wait."""
    return Counter(
        {
            name: n
            for name, n in calls.items()
            if any(word in name for word in WAITING) and not name.endswith("Async")
        }
    )


@check()
def the_profiler_sees_no_wait() -> None:
    """Not only torch's calls: Triton's and our own, too; and it sees one that waits."""
    optimizer, step = _steady()
    calls, runs = profiled(step)
    assert any("Launch" in name for name in calls), f"the profiler saw no launch: {calls}"
    assert not waits_among(calls), calls
    assert not any("DtoH" in name for name in runs), runs
    calls, runs = profiled(optimizer.knobs)
    assert waits_among(calls) or any("DtoH" in name for name in runs), (calls, runs)
    _, step = _steady(ALIGNED)  # whose news for the log are copied, and not waited for
    calls, _ = profiled(step)
    assert not waits_among(calls), calls


@check()
def a_step_is_four_launches_for_any_number_of_tensors() -> None:
    """Controller, statistics, clip, sweep; one more takes in the loss, one the alignment sums."""
    for tensors in (1, 148, 20_000):
        optimizer, _ = _steady(sizes=[3] * tensors)
        _, runs = profiled(optimizer.step)
        assert kernels_among(runs) == 4, (tensors, runs)
        loss = losses(1)[0]
        _, runs = profiled(lambda: optimizer.observe(loss))  # noqa: B023 (called here)
        assert kernels_among(runs) == 1, runs
    for control, launches in ((QUIET, 2), (ALIGNED, 3)):
        optimizer = AdaptiveAdamW(parameters([3] * 148), 0.01, control=control)
        train(optimizer, optimizer.param_groups[0]["params"], 3)
        _, runs = profiled(optimizer.step)
        assert kernels_among(runs) == launches, runs


@check()
def two_optimizers_on_two_streams_keep_apart() -> None:
    """Both at once end where each alone does."""
    ends = []
    for together in (False, True):
        streams = [torch.cuda.Stream(), torch.cuda.Stream() if together else None]
        streams[1] = streams[1] or streams[0]
        pairs = []
        for seed in (1, 2):
            params = parameters([200_000, 33, 5000])
            pairs.append(
                (AdaptiveAdamW(params, 0.01, control=BUSY, max_grad_norm=1.0, seed=seed), params)
            )
        course = losses(12)
        set_gradients(pairs[0][1], 0)
        set_gradients(pairs[1][1], 1)
        torch.cuda.synchronize()
        for loss in course:
            for stream, (optimizer, _) in zip(streams, pairs, strict=True):
                with torch.cuda.stream(stream):
                    optimizer.observe(loss)
                    optimizer.step()
        torch.cuda.synchronize()
        ends.append([t for pair in pairs for t in everything(*pair)])
    assert_same_bits(ends[0], ends[1])


@check()
def tensors_may_be_on_several_devices() -> None:
    """One optimizer over two GPUs, or over a GPU and the CPU, steps as on the CPU alone."""
    places = [torch.device("cuda", 0), torch.device("cpu")]
    if torch.cuda.device_count() > 1:
        places.append(torch.device("cuda", 1))
    ours = [p for place in places for p in parameters([1000, 7], device=place)]
    theirs = [p for _ in places for p in parameters([1000, 7], device="cpu")]
    here, there = (
        AdaptiveAdamW(p, 0.01, control=NOISY, max_grad_norm=0.7, seed=3) for p in (ours, theirs)
    )
    train(here, ours, 4)
    train(there, theirs, 4)
    assert backends_of(here) == {"triton", "cpu"}
    assert_trained_alike(here, there, ours, theirs, "step_float32")


# In a CUDA graph


@check()
def a_captured_step_replays_bit_for_bit() -> None:
    """With the knobs moving; and one whose knobs stand still ends elsewhere."""
    for control in (BUSY, ALIGNED):
        _capture_and_compare(control)


def _capture_and_compare(moving: Control) -> None:
    ends = {}
    for name in ("eager", "graph", "frozen"):
        control = Control.frozen() if name == "frozen" else moving
        params = parameters(SIZES)
        optimizer = AdaptiveAdamW(
            params, 0.01, control=control, max_grad_norm=1.0, capturable=True, seed=3
        )
        loss, course = torch.zeros((), device=Where.device), losses(20)

        step = partial(observe_and_step, optimizer, loss)
        graph, alphas = None, []
        for t in range(20):
            set_gradients(params, t)
            loss.copy_(course[t])
            if name != "graph" or t < 3:
                step()
            elif graph is None:
                graph = captured(step)
                graph.replay()
            else:
                graph.replay()
            alphas.append(optimizer.knobs()["alpha"])
        ends[name] = everything(optimizer, params)
        assert name == "frozen" or len(set(alphas)) > 5, "the knobs hardly move"
    assert_same_bits(ends["eager"], ends["graph"])
    assert_other_bits(ends["graph"], ends["frozen"])


def captured(work: Callable[[], Any]) -> Any:
    """A CUDA graph of it, not yet run."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph


@check()
def a_captured_training_step_replays_bit_for_bit() -> None:
    """Forward, backward and step in one graph: its gradients lie in the graph's own memory."""
    ends = {}
    for name in ("eager", "graph"):
        params = parameters([3000, 17, 20_000])
        optimizer = AdaptiveAdamW(params, 0.01, control=BUSY, capturable=True, seed=3)
        target = torch.zeros((), device=Where.device)

        def train_once(
            params: Any = params, optimizer: Any = optimizer, target: Tensor = target
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.stack([(p - target).square().mean() for p in params]).sum()
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()

        graph = None
        stream = torch.cuda.Stream()
        for t in range(16):
            target.fill_(0.1 * t)
            torch.cuda.synchronize()
            if graph is not None:
                graph.replay()
            else:
                with torch.cuda.stream(stream):
                    train_once()
            torch.cuda.synchronize()
            if name == "graph" and t == 3:
                optimizer.zero_grad(set_to_none=True)
                graph = captured(train_once)
        ends[name] = everything(optimizer, params)
    assert_same_bits(ends["eager"], ends["graph"])


@check()
def a_step_outside_does_not_disturb_a_graph() -> None:
    """Replay, a step of the same optimizer with other gradients, replay: as three plain steps."""
    ends = []
    for graphed in (False, True):
        params = parameters([5000, 12])
        optimizer = AdaptiveAdamW(params, 0.01, control=BUSY, capturable=True, seed=3)
        train(optimizer, params, 3)
        own = [p.grad for p in params]
        loss = losses(1)[0]

        step = partial(observe_and_step, optimizer, loss)
        replay = captured(step).replay if graphed else step
        replay()
        for p in params:
            p.grad = None
        set_gradients(params, 9)
        step()
        # What took the freed table's place in memory must not be read as a table.
        rubbish = take_freed_memory()
        for p, grad in zip(params, own, strict=True):
            p.grad = grad
        replay()
        del rubbish
        ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])


@contextlib.contextmanager
def graphs() -> Iterator[None]:
    """Steps in here can be captured: on a CPU by a stand-in."""
    with recorded_graph.stand_in() if Where.device.type == "cpu" else contextlib.nullcontext():
        yield


def graph_of(work: Callable[[], Any], optimizer: Any, *more: Tensor) -> Any:
    """As `captured`, on any device; `more` is what the work touches beside the optimizer."""
    if Where.device.type == "cpu":
        return recorded_graph.capture(work, optimizer, *more)
    return captured(work)


def take_freed_memory() -> list[Tensor]:
    """Rubbish that takes the place of small tensors that were freed."""
    return [torch.full((26,), -1, device=Where.device) for _ in range(256)]


@check(anywhere=True)
def a_step_of_other_tensors_does_not_disturb_a_graph() -> None:
    """Replays between steps with fewer and with more tensors: as plain steps."""
    for control in (BUSY, replace(ALIGNED, noise_bounds=(0.0, 0.1))):
        ends = []
        for graphed in (False, True):
            with graphs():
                ends.append(_replay_between_other_steps(control, graphed))
        assert_same_bits(ends[0], ends[1])


def _replay_between_other_steps(control: Control, graphed: bool) -> list[Tensor]:
    params = parameters([5000, 12, 7])
    optimizer = AdaptiveAdamW(
        params, 0.01, control=control, max_grad_norm=1.0, capturable=graphed, seed=3
    )
    optimizer._log.announcements._silent = True  # which on a CPU reads, and so would wait
    loss = losses(1)[0]
    step = partial(observe_and_step, optimizer, loss)
    set_gradients(params, 0)
    whole = [p.grad for p in params]
    params[2].grad = None
    step()
    step()
    replay = graph_of(step, optimizer, loss).replay if graphed else step
    rubbish = []
    for absent in ((2,), (0, 2), (2,), (), (2,), (1,), (2,)):
        for i, (p, grad) in enumerate(zip(params, whole, strict=True)):
            p.grad = None if i in absent else grad
        if absent == (2,):
            replay()
        else:
            step()
            rubbish += take_freed_memory()
    return everything(optimizer, params)


@check(anywhere=True)
def a_graph_and_plain_steps_have_each_their_own_numbers() -> None:
    """A graph's are those at its capture; a plain step's are the groups', before and after it."""
    control = replace(BUSY, mode="modulate")
    rates = [0.01, "replay", 0.02, "replay", 0.005, "replay", 0.02, 0.005, "replay", 0.005]
    ends = []
    for name in ("plain", "graph", "other"):
        params = parameters([5000, 12])
        optimizer = AdaptiveAdamW(params, 0.01, control=control, capturable=name == "graph", seed=3)
        loss, (group,) = losses(1)[0], optimizer.param_groups

        step = partial(observe_and_step, optimizer, loss)
        with graphs():
            set_gradients(params, 0)
            step()
            group["lr"], group["weight_decay"] = 0.02, 0.1
            graph = graph_of(step, optimizer, loss) if name == "graph" else None
            for rate in rates:
                group["lr"] = 0.02 if rate == "replay" else rate
                group["weight_decay"] = 0.1 if rate == "replay" else 0.3
                if graph is not None and rate == "replay":
                    group["lr"] = 0.7
                    graph.replay()
                else:
                    step()
            if name == "other":
                step()
            ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])
    assert_other_bits(ends[0], ends[2])


@check(anywhere=True)
def recapturing_does_not_leak() -> None:
    """Forward, backward and step, captured again and again: what ended graphs had is let go."""
    cuda = Where.device.type == "cuda"
    params = parameters([3] * (500 if cuda else 50))
    optimizer = AdaptiveAdamW(params, 0.01, control=BUSY, max_grad_norm=1.0, capturable=True)

    def train_once() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.cat(list(params)).square().mean()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()

    kept, allocated, reserved = [], [], []
    side = torch.cuda.Stream() if cuda else None
    with graphs():
        for _ in range(20 if cuda else 6):
            with torch.cuda.stream(side):  # type: ignore[arg-type]
                train_once()
            if cuda:
                torch.cuda.synchronize()
            optimizer.zero_grad(set_to_none=True)
            graph = graph_of(train_once, optimizer)
            graph.replay()
            del graph
            optimizer.zero_grad(set_to_none=True)
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                allocated.append(torch.cuda.memory_allocated())
                reserved.append(torch.cuda.memory_reserved())
            kept.append(len(optimizer._round.workspace._captured))
    # CUDA may tell a little later that a graph has ended: two graphs' worth is no leak.
    assert kept[-1] <= 3 * kept[0], f"kept for graphs after each of them: {kept}"
    if cuda:
        assert allocated[-1] - allocated[4] < 2**18, allocated
        assert reserved[-1] - reserved[4] < 2**24, reserved


@check()
def steps_may_change_streams() -> None:
    """One after another on two streams, with other numbers of tensors: as on one stream.

    The memory of a table that is replaced while a slow step on another stream still reads it must
    not be given to anybody. Where it is, the step reads rubbish for addresses, and CUDA fails.
    """
    ends = []
    for names in ("AAAAAAAAA", "ABBABBABB"):
        streams = {name: torch.cuda.Stream() for name in set(names)}
        params = parameters([200_000, 33, 5000, 700])
        optimizer = AdaptiveAdamW(params, 0.01, control=BUSY, max_grad_norm=1.0, seed=3)
        set_gradients(params, 0)
        whole, course = [p.grad for p in params], losses(len(names))
        torch.cuda.synchronize()
        rubbish, last = [], None
        for step, name in enumerate(names):
            stream = streams[name]
            if last is not None:
                stream.wait_stream(last)
            # A table is made in every third step, used in the next and replaced in the third.
            for i, (p, grad) in enumerate(zip(params, whole, strict=True)):
                p.grad = None if step % 3 == 2 and i % 2 else grad
            with torch.cuda.stream(stream):
                if step % 3 == 1:
                    torch.cuda._sleep(20_000_000)
                optimizer.observe(course[step])
                optimizer.step()
            if step % 3 == 2:
                with torch.cuda.stream(streams["A"]):  # which waits for nobody yet
                    rubbish += take_freed_memory()
            last = stream
        torch.cuda.synchronize()
        expect_triton(optimizer)
        ends.append(everything(optimizer, params))
    assert_same_bits(ends[0], ends[1])


@check()
def a_capture_notices_a_wait() -> None:
    """Else the checks above would show nothing. In a process of its own, whose CUDA is lost."""
    done = subprocess.run(
        [sys.executable, "-c", "import gpu_checks; gpu_checks.capture_a_wait()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "noticed" in done.stdout, done.stdout + done.stderr


def capture_a_wait() -> None:
    """Say whether a capture notices that the host waits in it, and end the process."""
    optimizer, step = _steady(sizes=[1000])

    def waits() -> None:
        step()
        optimizer.knobs()

    try:
        captured(waits)
    except RuntimeError as error:
        print(f"noticed: {error}", flush=True)
    os._exit(0)


# Memory


@check()
def a_step_needs_little_memory_beyond_adamws_states() -> None:
    """Less than a megabyte and eight bytes per chunk, with noise and clipping."""
    numel = 300_000_000
    expect_free(20 * numel)
    extra, chunks = extra_memory([numel // 3] * 3)
    assert extra < 2**20 + 8 * chunks, f"{extra} bytes beyond AdamW's states, {chunks} chunks"


def extra_memory(sizes: Iterable[int], dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Peak bytes that an optimizer with noise and clipping takes beyond AdamW's states.

    Returns:
        Bytes, and how many chunks the sweep has.
    """
    from adaptiverl.kernels.chunks import CHUNK

    params = [nn.Parameter(torch.zeros(n, dtype=dtype, device=Where.device)) for n in sizes]
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.synchronize()
    # What was asked for: the allocator may hand out up to a megabyte more with each large tensor.
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    optimizer = AdaptiveAdamW(params, 0.01, control=NOISY, max_grad_norm=1.0)
    for loss in losses(3):
        optimizer.step(loss=loss)
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    states = sum(4 + 2 * 4 * p.numel() for p in params)
    chunks = sum(max(1, -(-p.numel() // CHUNK)) for p in params)
    return peak - states, chunks


@check()
def cuda_tensors_go_to_triton() -> None:
    """And the controller is there, too: else the other checks check something else."""
    assert placement.has_cuda_controller(), backends.describe()
    for param, grad in backends.DTYPES:
        resolution = backends.resolve("cuda", param, grad)
        assert resolution.backend.name == "triton", resolution.reason
