"""What torch demands of its optimizers, from the inputs that its own tests feed to AdamW."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from training import (
    BUSY,
    CAPTURABLE_WARNING,
    DEVICES,
    ON_CUDA,
    assert_differ,
    assert_same,
    clones,
    draw_gradients,
    parameters,
    snapshot,
    values,
)

from adaptiverl import AdaptiveAdamW, Control

pytestmark = CAPTURABLE_WARNING
FROZEN = Control.frozen()
OURS_ALONE = {"mu_product"}
"""State that torch.optim.AdamW has no use for"""
NO_GRADIENT = {3: (0,), 4: (1,), 5: (1,)}
"""Step to the parameters without a gradient: missing once, and a layer frozen and unfrozen"""


def torch_inputs() -> Any:
    """AdamW's entry in the table that torch's own optimizer tests run on."""
    frozen = torch.backends.flags_frozen()
    from torch.testing._internal.common_optimizers import optim_db

    # Importing torch's test helpers locks torch.backends for the rest of the process.
    vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = not frozen
    return next(info for info in optim_db if info.optim_cls is torch.optim.AdamW)


INFO = torch_inputs()
# What torch runs on CUDA only (capturable, tensor betas) is accepted by ours on the CPU as well.
INPUTS = [(i.desc, i.kwargs) for i in INFO.optim_inputs_func("cuda")]
ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)
IMPLEMENTATIONS: list[dict[str, bool]] = [
    {},
    {"foreach": False},
    {"foreach": True},
    {"fused": True},
]
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 2e-6, "atol": 1e-6},
    # torch keeps the moments of half-precision parameters in half precision, ours are float32:
    # twice torch's own tolerance between its implementations.
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
}


def mixed_parameters(dtype: torch.dtype, device: str = "cpu") -> list[nn.Parameter]:
    """A vector, matrices in and out of order, an image, a 0-d one, an empty one."""
    shapes = [(7,), (6, 5), (4, 3), (2, 3, 4, 5), (), (0, 3)]
    params = parameters(*shapes, dtype=dtype, device=device)
    params[2] = nn.Parameter(params[2].detach().t())
    params[3] = nn.Parameter(params[3].detach().to(memory_format=torch.channels_last))
    return params


def run(optimizer: Any, params: list[nn.Parameter], steps: int = 8) -> None:
    for step in range(steps):
        draw_gradients(params, step, NO_GRADIENT.get(step, ()))
        if isinstance(optimizer, AdaptiveAdamW):
            optimizer.observe(1.0 / (1 + step))
        optimizer.step()


def assert_follows(ours: Any, theirs: Any, mine: Any, reference: Any, **tolerance: Any) -> None:
    """Equal parameters, and equal state entry by entry."""
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert set(ours.state[a]) - OURS_ALONE == set(theirs.state[b])
        for name, entry in theirs.state[b].items():
            torch.testing.assert_close(
                ours.state[a][name], entry, check_dtype=False, check_device=False, **tolerance
            )


# Arguments


@pytest.mark.parametrize("error", ERRORS, ids=[e.optimizer_error_input.desc for e in ERRORS])
def test_the_errors_of_adamw(error: Any) -> None:
    arguments = error.optimizer_error_input
    params = arguments.params or parameters((1, 1))
    for kind in (torch.optim.AdamW, AdaptiveAdamW):
        if error.error_type is UserWarning:
            with pytest.warns(UserWarning, match=error.error_regex):
                kind(params, **arguments.kwargs)
        else:
            with pytest.raises(error.error_type, match=error.error_regex):
                kind(params, **arguments.kwargs)


def test_no_parameters_at_all() -> None:
    for kind in (torch.optim.AdamW, AdaptiveAdamW):
        with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
            kind([])


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be `True`"),
        ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `diff"),
        ({"differentiable": True}, ValueError, "does not support differentiable=True: its step is"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: dict[str, bool], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdaptiveAdamW(parameters((2,)), **flags)  # type: ignore[arg-type]


def test_fused_refuses_what_has_no_numbers_and_works_once_it_has() -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    optimizer = AdaptiveAdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(4, 3, device="meta")).sum().backward()
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be floating"):
        optimizer.step()
    model.to_empty(device="cpu")
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    model.zero_grad()
    optimizer = AdaptiveAdamW(model.parameters(), lr=0.1, fused=True, weight_decay=0.0)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step(loss=1.0)
    torch.testing.assert_close(model.weight.detach(), torch.full((2, 3), 0.9))


def test_fused_refuses_complex_parameters_as_adamw_does() -> None:
    for kind in (torch.optim.AdamW, AdaptiveAdamW):
        param = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        param.grad = torch.ones_like(param)
        with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be float"):
            kind([param], fused=True).step()
        assert_same(param.detach(), torch.ones(3, dtype=torch.complex64))


# The same numbers as AdamW


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("name", "arguments"), INPUTS, ids=[name for name, _ in INPUTS])
def test_every_option_follows_adamw(
    name: str, arguments: dict[str, Any], dtype: torch.dtype, flags: dict[str, bool], device: str
) -> None:
    if flags.get("foreach") and isinstance(arguments.get("lr"), Tensor):
        flags = {**flags, "capturable": True}
    if dtype == torch.float16:
        arguments = {**arguments, "eps": 0.1}  # 1e-8 is 0 in float16
    mine = mixed_parameters(dtype, device)
    reference = clones(mine)
    ours = AdaptiveAdamW(mine, **{**arguments, **flags}, control=FROZEN)
    # torch's plain loop knows no capturable=True on the CPU; it is what the others are held to.
    plain = {k: v for k, v in arguments.items() if k != "capturable"}
    # torch computes with a float32 tensor in float32; ours reads its number once, as a float64.
    single = any(isinstance(x, Tensor) for x in (plain.get("lr"), *plain.get("betas", ())))
    tolerance = TOLERANCE[torch.float32 if single and dtype == torch.float64 else dtype]
    theirs = torch.optim.AdamW(reference, **plain, foreach=False)
    run(ours, mine)
    run(theirs, reference)
    assert_follows(ours, theirs, mine, reference, **tolerance)
    assert_differ(values(mine), values(mixed_parameters(dtype, device)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dims", [0, 1, 2])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("control", [FROZEN, BUSY], ids=["frozen", "busy"])
def test_a_tensor_rate_equals_a_float_on_either_device(
    dims: int, capturable: bool, control: Control, device: str
) -> None:
    ends = []
    places = {"cpu", device}
    tensors = [torch.full((1,) * dims, 0.015625, device=place) for place in sorted(places)]
    rates: list[Any] = [0.015625, *tensors]
    for lr in rates:
        params = mixed_parameters(torch.float32, device)
        optimizer = AdaptiveAdamW(params, lr=lr, capturable=capturable, control=control)
        run(optimizer, params)
        ends.append(snapshot(optimizer, params))
    for end in ends[1:]:
        assert_same(end[0]["state"], ends[0][0]["state"])
        assert_same(end[1], ends[0][1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dims", [0, 1, 3])
def test_tensor_betas_equal_floats(dims: int, device: str) -> None:
    def betas(place: str) -> tuple[Tensor, Tensor]:
        shape = (1,) * dims
        return torch.full(shape, 0.875, device=place), torch.full(shape, 0.984375, device=place)

    ends = []
    pairs: list[Any] = [(0.875, 0.984375), *(betas(place) for place in sorted({"cpu", device}))]
    for pair in pairs:
        params = mixed_parameters(torch.float32, device)
        optimizer = AdaptiveAdamW(params, betas=pair, control=BUSY)
        run(optimizer, params)
        ends.append(values(params))
    for end in ends[1:]:
        assert_same(end, ends[0])


def test_a_rate_may_change_its_type_in_mid_training() -> None:
    ends = []
    for tensors in (False, True):
        params = parameters((5,))
        optimizer = AdaptiveAdamW(params, lr=0.5, control=BUSY)
        for step, lr in enumerate((0.5, 0.25, 0.125, 0.0625)):
            optimizer.param_groups[0]["lr"] = torch.tensor(lr) if tensors and step % 2 else lr
            draw_gradients(params, step)
            optimizer.step(loss=1.0)
        ends.append(values(params))
    assert_same(ends[0], ends[1])


@pytest.mark.parametrize("flags", IMPLEMENTATIONS[:3], ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_complex_parameters_are_pairs_of_reals(
    shape: tuple[int, ...], flags: dict[str, bool]
) -> None:
    start = torch.randn(*shape, 2, dtype=torch.float64)
    complex_param = nn.Parameter(torch.view_as_complex(start.clone()))
    real = nn.Parameter(start.clone())
    optimizers = [
        AdaptiveAdamW([p], lr=1e-2, amsgrad=True, control=BUSY, **flags)  # type: ignore[arg-type]
        for p in (complex_param, real)
    ]
    for step in range(12):
        real.grad = torch.randn(*shape, 2, dtype=torch.float64)
        complex_param.grad = torch.view_as_complex(real.grad.clone())
        for optimizer in optimizers:
            optimizer.step(loss=1.0 / (1 + step))
    assert optimizers[0].knobs()["noise"] > 0
    torch.testing.assert_close(torch.view_as_real(complex_param.detach()), real.detach())
    assert optimizers[0].state[complex_param]["exp_avg"].is_complex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    ends = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            params = parameters((4,), (3, 2), dtype=dtype)
            optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
            run(optimizer, params)
        finally:
            torch.set_default_dtype(torch.float32)
        assert optimizer.state[params[0]]["step"].dtype == torch.float32
        ends.append(values(params))
    assert_same(ends[0], ends[1])


# Training goes down


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_right_direction(
    contiguous: bool, scheduled: bool, maximize: bool, device: str
) -> None:
    weight = torch.randn(10, 5, device=device)
    bias = torch.randn(10, device=device)
    if not contiguous:
        weight, bias = weight.t().contiguous().t(), torch.randn(10, 2, device=device)[:, 0]
    params = [nn.Parameter(weight), nn.Parameter(bias)]
    inputs = torch.randn(5, device=device)
    optimizer = AdaptiveAdamW(params, lr=1e-2, maximize=maximize)
    schedulers: list[Any] = []
    if scheduled:
        schedulers = [StepLR(optimizer, gamma=0.9, step_size=10), ReduceLROnPlateau(optimizer)]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (params[0].mv(inputs) + params[1]).square().sum()
        if maximize:
            loss = -loss
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        assert isinstance(loss, Tensor)
        for scheduler in schedulers:
            scheduler.step(*([loss.detach()] if isinstance(scheduler, ReduceLROnPlateau) else []))
    assert (closure().item() > first) if maximize else (closure().item() < first)


# Groups


def test_groups_keep_their_own_options() -> None:
    mine = parameters((4,), (3, 2), (5,))
    reference = clones(mine)

    def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": params[:1], "lr": 1e-2, "weight_decay": 0.5},
            {"params": params[1:2], "betas": (0.7, 0.9), "eps": 1e-3},
            {"params": params[2:], "amsgrad": True, "maximize": True},
        ]

    ours = AdaptiveAdamW(groups(mine), lr=1e-3, control=FROZEN)
    theirs = torch.optim.AdamW(groups(reference), lr=1e-3, foreach=False)
    run(ours, mine)
    run(theirs, reference)
    assert_follows(ours, theirs, mine, reference, rtol=2e-6, atol=1e-7)


def test_a_vanishing_rate_moves_nothing_noise_included() -> None:
    params = parameters((4,), (4,))
    loud = Control(every=1, noise_bounds=(0.1, 0.1))
    groups = [{"params": params[:1], "lr": 1e-2}, {"params": params[1:], "lr": 1e-28}]
    optimizer = AdaptiveAdamW(groups, control=loud)
    before = values(params)
    run(optimizer, params)
    assert optimizer.knobs()["noise"] == 0.1
    assert_same(params[1].detach(), before[1])
    assert_differ(params[0].detach(), before[0])


def test_a_group_added_in_mid_training_is_adamws() -> None:
    mine = parameters((4,), (3, 2))
    reference = clones(mine)
    ends = []
    for optimizer, params in (
        (AdaptiveAdamW(mine[:1], lr=1e-2, control=FROZEN), mine),
        (torch.optim.AdamW(reference[:1], lr=1e-2, foreach=False), reference),
    ):
        run(optimizer, params[:1], 5)
        optimizer.add_param_group({"params": params[1:], "lr": 1e-3, "amsgrad": True})
        run(optimizer, params, 8)
        ends.append(optimizer)
    assert_follows(ends[0], ends[1], mine, reference, rtol=2e-6, atol=1e-7)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        ends[0].add_param_group({"params": mine[:1]})


# Gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
def test_gradients_are_read_only_and_versions_tell_autograd(
    flags: dict[str, bool], dtype: torch.dtype, device: str
) -> None:
    params = mixed_parameters(dtype, device)
    optimizer = AdaptiveAdamW(params, control=BUSY, max_grad_norm=0.1, **flags)  # type: ignore[arg-type]
    run(optimizer, params, 6)
    draw_gradients(params, 7)
    grads = [p.grad for p in params if p.grad is not None]
    kept, versions = values(grads), [g._version for g in grads]
    before = [p._version for p in params]
    optimizer.step(loss=1.0)
    assert_same(grads, kept)
    assert [g._version for g in grads] == versions
    assert all(p._version > v for p, v in zip(params, before, strict=True))


def test_backward_through_a_stepped_parameter_is_refused() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params)
    loss = params[0].square().square().sum()
    params[0].grad = torch.ones(4)
    optimizer.step(loss=1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fill", [None, 0.0])
def test_steps_without_gradients_are_no_steps(fill: float | None) -> None:
    mine = parameters((4,), (3, 2))
    reference = clones(mine)
    ours = AdaptiveAdamW(mine, control=FROZEN)
    theirs = torch.optim.AdamW(reference)
    for _ in range(3):
        for param in (*mine, *reference):
            param.grad = None if fill is None else torch.full_like(param, fill)
        ours.step(loss=1.0)
        theirs.step()
    # With zero gradients AdamW decays the weights; with none it does nothing at all.
    torch.testing.assert_close(values(mine), values(reference), rtol=1e-7, atol=0)
    assert (ours.state_dict()["state"] == {}) == (fill is None)


# Hooks


@pytest.fixture
def calls() -> Iterator[list[str]]:
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    yield seen
    for handle in handles:
        handle.remove()


def test_step_hooks_run_once_each_and_in_order(calls: list[str]) -> None:
    params = parameters((2,))
    torch.optim.AdamW(params)  # AdamW.step is wrapped from here on as well
    optimizer = AdaptiveAdamW(params)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    params[0].grad = torch.ones(2)
    optimizer.step(loss=1.0)
    assert calls == ["global pre", "pre", "post", "global post"]


def test_a_pre_hook_may_change_the_arguments() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    optimizer.register_step_pre_hook(lambda _, args, kwargs: (args, {"loss": 5.0}))
    params[0].grad = torch.ones(2)
    optimizer.step()
    assert optimizer.knobs()["loss"] == 5.0


# torch 2.11 says so at its first use, whatever is asked of it.
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_the_profiler_sees_one_step() -> None:
    params = parameters((2,))
    optimizer = AdaptiveAdamW(params)
    params[0].grad = torch.ones(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(loss=1.0)
    names = [e.name for e in profile.events() if e.name.startswith("Optimizer.step#")]
    assert names == ["Optimizer.step#AdaptiveAdamW.step"]


# Copies


@pytest.mark.parametrize("flags", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_as_its_original(
    copier: Callable[[Any], Any], flags: dict[str, bool]
) -> None:
    params = parameters((4,), (3, 2))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, max_grad_norm=0.5, seed=7, **flags)  # type: ignore[arg-type]
    run(optimizer, params)
    twin, twins = copier((optimizer, params))
    assert_same(snapshot(twin, twins), snapshot(optimizer, params))
    run(optimizer, params)
    run(twin, twins)
    assert_same(snapshot(twin, twins), snapshot(optimizer, params))
    assert twin.knobs() == optimizer.knobs()
    assert twin._step_supports_amp_scaling == optimizer._step_supports_amp_scaling
    public = [name for name in vars(optimizer) if not name.startswith("_")]
    assert sorted(public) == ["defaults", "param_groups", "state"]
    assert repr(twin) == repr(optimizer)


def test_a_copied_group_has_its_own_controller() -> None:
    params = parameters((4,))
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY)
    twin, twins = copy.deepcopy((optimizer, params))
    run(twin, twins)
    assert optimizer.knobs()["step"] == 0
    assert twin.knobs()["step"] == 8


def test_printing() -> None:
    params = parameters((2,))
    theirs = repr(torch.optim.AdamW(params, lr=0.125))
    assert repr(AdaptiveAdamW(params, lr=0.125)) == "Adaptive" + theirs


# Several devices


@pytest.mark.parametrize("device", [ON_CUDA])
def test_parameters_on_two_devices(device: str) -> None:
    shapes = [(7,), (6, 5), (), (4, 3)]
    mine = parameters(*shapes)
    for i in (1, 2):
        mine[i] = nn.Parameter(mine[i].detach().to(device))
    together = parameters(*shapes)
    ends = []
    for params in (mine, together):
        optimizer = AdaptiveAdamW(params, lr=1e-2, control=BUSY, max_grad_norm=0.5)
        for step in range(12):
            draw_gradients(params, step)
            optimizer.step(loss=1.0 / (1 + step))
        ends.append([p.detach().cpu() for p in params])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
