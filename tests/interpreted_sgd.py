"""SGD's Triton kernel, and both steps with noise on the parameter, in Triton's interpreter.

`test_kernels.py` runs this file, in a process of its own, as it does `interpreted_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from adaptiverl.kernels import adamw_step, sgd_step, statistics
from adaptiverl.kernels.chunks import CHUNK
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted_kernels import (
    EFFECTIVE,
    GROUPS,
    PAIRS,
    SEED,
    SIZES,
    TOLERANCE,
    Launch,
    Parameter,
    _hardware_rounding,  # noqa: F401 (a fixture, for every test here as well)
    controller_block,
    make_parameter,
    place,
    pytestmark,  # noqa: F401 (likewise)
)
from tolerances import assert_close
from torch import Tensor

# Dampening, options, weight decay of every group; the options by `sgd_step`'s own numbers.
NESTEROV, DECOUPLED = sgd_step.NESTEROV.value, sgd_step.DECOUPLED.value
SGD_GROUPS = torch.tensor(
    [
        [9.0, 9.0, 0.2, 0, 0.1],
        [9.0, 9.0, 0.0, NESTEROV, 0.3],
        [9.0, 9.0, 0.5, DECOUPLED, 0.4],
        [9.0, 9.0, 0.0, NESTEROV + DECOUPLED, 0.2],
        [9.0, 9.0, 0.3, 0, 0.0],
    ],
    dtype=torch.float64,
)
SGD_EFFECTIVE = torch.tensor(
    [[0.05, 0.85], [0.04, 0.7], [0.06, 0.9], [0.3, 0.95], [0.2, 0.6]], dtype=torch.float64
)


def make_sgd_parameter(numel: int, group: int = 0, steps: int = 3, **options: Any) -> Parameter:
    """One whose `exp_avg` is the buffer; `EFFECTIVE` has fewer groups, hence the detour."""
    made = make_parameter(numel, group=0, steps=steps, **options)
    made.group = group
    if steps == 0:
        made.exp_avg.zero_()
    return made


def step_sgd(
    parameters: Sequence[Parameter],
    noise: float = 0.0,
    gradient_scale: float | None = None,
    sums: bool = False,
    momentum: bool = True,
    on_parameter: bool = False,
    block: Tensor | None = None,
    squares: Sequence[float] | None = None,
) -> Tensor | None:
    launch = Launch(parameters)
    if squares is None and on_parameter:
        squares = [float(p.param.double().square().sum()) for p in parameters]
    elif squares is None:
        squares = [p.square for p in parameters]
    scale = None if gradient_scale is None else torch.tensor(gradient_scale, dtype=torch.float64)
    shape = (len(parameters), 3)
    out = torch.full(shape, float("nan"), dtype=torch.float64) if sums else None
    if not momentum:
        launch.rows[:, 2] = 0
    # What SGD has no use for may be absent.
    launch.rows[:, 3:5] = 0
    launch.rows[:, 6] = 0
    sgd_step.sgd_step(
        launch.rows,
        launch.chunks,
        controller_block(noise) if block is None else block,
        SGD_GROUPS,
        SGD_EFFECTIVE,
        torch.tensor(squares, dtype=torch.float64),
        scale,
        out,
        launch.partials,
        launch.finished,
        param_dtype=parameters[0].param.dtype,
        grad_dtype=parameters[0].grad.dtype,
        momentum=momentum,
        noise_on_parameter=on_parameter,
    )
    assert not launch.finished.any(), "a ticket was not handed back"
    return out


def expected_sgd(
    p: Parameter, noise: float, gradient_scale: float | None, momentum: bool, on_parameter: bool
) -> oracle.SGDState:
    lr, mu = SGD_EFFECTIVE[p.group].tolist()
    _, _, dampening, options, weight_decay = SGD_GROUPS[p.group].tolist()
    elements = np.arange(p.offset, p.offset + p.param.numel())
    scale = 1.0 if gradient_scale is None else gradient_scale
    squares = p.square * scale**2
    if on_parameter:
        squares = float(p.param.double().square().sum())
    return oracle.sgd_step(
        p.param.double().numpy(),
        p.grad.double().numpy(),
        None if p.steps == 0 else p.exp_avg.double().numpy(),
        lr=lr,
        momentum=mu if momentum else 0.0,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=bool(int(options) & NESTEROV),
        decoupled=bool(int(options) & DECOUPLED),
        maximize=p.maximize,
        noise=noise,
        xi=oracle.noise(SEED, p.index, 5, elements) if noise else None,
        gradient_scale=scale,
        sum_of_squares=squares,
        rms_numel=p.logical_numel,
        noise_target="parameter" if on_parameter else "gradient",
    )


def check_sgd(
    parameters: Sequence[Parameter],
    noise: float = 0.0,
    gradient_scale: float | None = None,
    sums: bool = False,
    momentum: bool = True,
    on_parameter: bool = False,
) -> None:
    """Step all parameters in one launch and compare everything with the oracle."""
    wanted = [expected_sgd(p, noise, gradient_scale, momentum, on_parameter) for p in parameters]
    wanted_sums = [
        oracle.sgd_alignment_sums(
            p.param.double().numpy(),
            p.grad.double().numpy(),
            p.exp_avg.numpy() if momentum else None,
            0.0 if int(SGD_GROUPS[p.group, 3]) & DECOUPLED else float(SGD_GROUPS[p.group, 4]),
            gradient_scale=1.0 if gradient_scale is None else gradient_scale,
            maximize=p.maximize,
        )
        for p in parameters
    ]
    untouched = [(p.exp_avg.clone(), p.exp_avg_sq.clone()) for p in parameters]
    got = step_sgd(parameters, noise, gradient_scale, sums, momentum, on_parameter)
    for p, state, (buffer, second) in zip(parameters, wanted, untouched, strict=True):
        assert_close(p.param, state.param, TOLERANCE[p.param.dtype])
        if momentum:
            assert_close(p.exp_avg, state.momentum_buffer, "step_float32")
        else:
            assert torch.equal(p.exp_avg, buffer)
        assert torch.equal(p.exp_avg_sq, second)
    if sums:
        assert got is not None
        for (gu, gg, uu), row in zip(wanted_sums, got, strict=True):
            assert_close(row[0], gu, "statistics", scale=(gg * uu) ** 0.5)
            assert_close(row[1], gg, "statistics")
            assert_close(row[2], uu, "statistics")


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("on_parameter", [False, True])
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), PAIRS, ids=str)
def test_sgd_is_the_oracles_with_every_option(
    param_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    on_parameter: bool,
    noise: float,
    momentum: bool,
) -> None:
    dtypes: dict[str, Any] = {"param_dtype": param_dtype, "grad_dtype": grad_dtype}
    parameters = [
        make_sgd_parameter(0, **dtypes),
        make_sgd_parameter(2100, 0, index=1, **dtypes),
        make_sgd_parameter(1, 1, index=2, maximize=True, **dtypes),
        make_sgd_parameter(700, 2, misaligned="grad", index=3, maximize=True, **dtypes),
        make_sgd_parameter(1030, 3, steps=0, index=4, **dtypes),
        make_sgd_parameter(900, 4, index=5, **dtypes),
    ]
    check_sgd(parameters, noise, 0.37, True, momentum, on_parameter)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("gradient_scale", [None, 0.01])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
def test_sgd_is_the_oracles_with_few_options(
    steps: int, maximize: bool, gradient_scale: float | None, sums: bool
) -> None:
    check_sgd([make_sgd_parameter(1030, steps=steps, maximize=maximize)], 0.0, gradient_scale, sums)


def test_sgd_over_chunks_and_empty_tensors() -> None:
    parameters = [make_sgd_parameter(n, i % 5, index=i) for i, n in enumerate(SIZES)]
    check_sgd(parameters, noise=0.2, sums=True)
    check_sgd([make_sgd_parameter(2 * CHUNK + 1500)], noise=0.2, sums=True)


@pytest.mark.parametrize("misaligned", ["param", "grad", "exp_avg"])
@pytest.mark.parametrize("on_parameter", [False, True])
def test_sgd_of_misaligned_tensors(misaligned: str, on_parameter: bool) -> None:
    check_sgd(
        [make_sgd_parameter(1100, misaligned=misaligned)], 0.2, sums=True, on_parameter=on_parameter
    )


@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(0, 2500), min_size=1, max_size=4),
    noise=st.sampled_from([0.0, 0.05, 1.0]),
    gradient_scale=st.sampled_from([None, 0.3]),
    momentum=st.booleans(),
    on_parameter=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sgd_of_any_tensors(
    sizes: list[int],
    noise: float,
    gradient_scale: float | None,
    momentum: bool,
    on_parameter: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    parameters = [
        make_sgd_parameter(n, (seed + i) % 5, index=i, maximize=i % 2 == 1)
        for i, n in enumerate(sizes)
    ]
    check_sgd(parameters, noise, gradient_scale, True, momentum, on_parameter)


@pytest.mark.parametrize("on_parameter", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 1023, 1026])
def test_sgd_shards_draw_the_noise_of_the_whole(cut: int, on_parameter: bool) -> None:
    whole = make_sgd_parameter(2052, 1, index=6)
    shards = []
    for part in (slice(0, cut), slice(cut, 2052)):
        param, grad, first, second, largest = (
            place(t[part], False) for t in (whole.param, whole.grad, *whole.state()[1:])
        )
        shard = Parameter(
            param,
            grad,
            first,
            second,
            largest,
            index=6,
            offset=part.start,
            logical_numel=2052,
            square=whole.square,
        )
        shard.group = 1
        shards.append(shard)
    # As a reduction over the shards gives it.
    square = float((whole.param if on_parameter else whole.grad).double().square().sum())
    step_sgd([whole], noise=0.5, on_parameter=on_parameter, squares=[square])
    step_sgd(shards, noise=0.5, on_parameter=on_parameter, squares=[square] * 2)
    assert torch.equal(torch.cat([shard.param for shard in shards]), whole.param)
    assert torch.equal(torch.cat([shard.exp_avg for shard in shards]), whole.exp_avg)


def test_a_skipped_sgd_step_changes_nothing() -> None:
    p = make_sgd_parameter(1100)
    p.grad[5] = float("nan")
    before = [t.clone() for t in p.state()]
    for on_parameter in (False, True):
        block = controller_block(0.3, active=0)
        sums = step_sgd([p], 0.3, sums=True, on_parameter=on_parameter, block=block)
        assert all(torch.equal(t, b) for t, b in zip(p.state(), before, strict=True))
        assert sums is not None
        assert bool(sums.isnan().all())


def test_no_tensors_is_no_sgd_launch() -> None:
    launch = Launch([make_sgd_parameter(5)])
    before = launch.parameters[0].param.clone()
    sgd_step.sgd_step(
        launch.rows[:0],
        launch.chunks[:0],
        controller_block(0.0),
        SGD_GROUPS,
        SGD_EFFECTIVE,
        None,
        None,
        None,
        launch.partials,
        launch.finished,
        param_dtype=torch.float32,
        grad_dtype=torch.float32,
        momentum=True,
    )
    assert torch.equal(launch.parameters[0].param, before)


# AdamW with noise on the parameter


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("gradient_scale", [None, 0.3])
@pytest.mark.parametrize(("param_dtype", "grad_dtype"), PAIRS, ids=str)
def test_adamw_with_noise_on_the_parameter(
    param_dtype: torch.dtype, grad_dtype: torch.dtype, gradient_scale: float | None, amsgrad: bool
) -> None:
    parameters = [
        make_parameter(n, param_dtype, grad_dtype, misaligned, index=i, group=i % 2)
        for i, (n, misaligned) in enumerate([(2100, ""), (0, ""), (700, "param"), (3, "")])
    ]
    launch = Launch(parameters)
    statistics.sum_squares(
        launch.rows,
        launch.chunks,
        controller_block(2.0),
        launch.squares,
        launch.partials,
        launch.finished,
        always=False,
        grad_dtype=param_dtype,
        of_parameters=True,
    )
    wanted = []
    for p, square in zip(parameters, launch.squares, strict=True):
        assert_close(square, float(p.param.double().square().sum()), "statistics")
        lr, momentum = EFFECTIVE[p.group].tolist()
        _, _, beta2, eps, weight_decay = GROUPS[p.group].tolist()
        param, grad, exp_avg, exp_avg_sq = (
            t.double().numpy() for t in (p.param, p.grad, p.exp_avg, p.exp_avg_sq)
        )
        wanted.append(
            oracle.adamw_step(
                param,
                grad,
                exp_avg,
                exp_avg_sq,
                p.max_exp_avg_sq.double().numpy() if amsgrad else None,
                step=p.steps,
                mu_product=0.9**p.steps,
                lr=lr,
                momentum=momentum,
                beta2=beta2,
                eps=eps,
                weight_decay=weight_decay,
                noise=2.0,
                xi=oracle.noise(SEED, p.index, 5, np.arange(p.param.numel())),
                gradient_scale=1.0 if gradient_scale is None else gradient_scale,
                noise_target="parameter",
            )
        )
    adamw_step.adamw_step(
        launch.rows,
        launch.chunks,
        controller_block(2.0),
        GROUPS,
        EFFECTIVE,
        launch.squares,
        None if gradient_scale is None else torch.tensor(gradient_scale, dtype=torch.float64),
        None,
        launch.partials,
        launch.finished,
        param_dtype=param_dtype,
        grad_dtype=grad_dtype,
        amsgrad=amsgrad,
        noise_on_parameter=True,
    )
    for p, state in zip(parameters, wanted, strict=True):
        assert_close(p.param, state.param, TOLERANCE[param_dtype])
        assert_close(p.exp_avg, state.exp_avg, "step_float32")
        assert_close(p.exp_avg_sq, state.exp_avg_sq, "step_float32")
