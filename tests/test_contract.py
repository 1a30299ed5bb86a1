"""What torch demands of its optimizers, of each of ours; partly by the inputs of torch's tests."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from grids import pairwise
from pass_cases import CASES, Case
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._pytree import tree_map
from training import (
    BUSY,
    CAPTURABLE_WARNING,
    DEVICES,
    assert_differ,
    assert_same,
    clones,
    draw_gradients,
    parameters,
    snapshot,
    values,
)

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.optimizer import AdaptiveOptimizer

pytestmark = CAPTURABLE_WARNING
FROZEN = Control.frozen()
EACH = pytest.mark.parametrize("case", CASES.values(), ids=str)
TORCHS: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
"""The classes that ours extend; torch has no Lion"""
OURS_ALONE = {"step"}
"""State that torch has no use for, the count of torch.optim.AdamW aside"""
NO_GRADIENT = {3: (0,), 4: (1,), 5: (1,)}
"""Step to the parameters without a gradient: missing once, and a layer frozen and unfrozen"""


def torch_inputs() -> Any:
    """The entries of TORCHS in the table that torch's own optimizer tests run on."""
    frozen = torch.backends.flags_frozen()
    # Of this module's imports, which take seconds, the table uses the decorator of torch's tests.
    slow = "torch.testing._internal.common_methods_invocations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, slow, mock.Mock())
        from torch.testing._internal.common_optimizers import optim_db

    # Importing torch's test helpers locks torch.backends for the rest of the process.
    vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = not frozen
    return {name: i for i in optim_db for name, kind in TORCHS.items() if i.optim_cls is kind}


INFO = torch_inputs()
# What torch runs on CUDA only (capturable, tensor betas) is accepted by ours on the CPU as well.
INPUTS = [(name, i) for name, info in INFO.items() for i in info.optim_inputs_func("cuda")]
ERRORS = [
    (name, e)
    for name, info in INFO.items()
    for e in info.optim_error_inputs_func("cpu", torch.float32)
]
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
        if isinstance(optimizer, AdaptiveOptimizer):
            optimizer.observe(1.0 / (1 + step))
        optimizer.step()


def make(case: Case, params: Any, **options: Any) -> Any:
    """One of ours with the case's options, busy unless said otherwise."""
    return case.optimizer(params, **case.options | {"control": BUSY} | options)


def assert_follows(ours: Any, theirs: Any, mine: Any, reference: Any, **tolerance: Any) -> None:
    """Equal parameters, and equal state entry by entry."""
    for a, b in zip(mine, reference, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
        assert set(ours.state[a]) - OURS_ALONE == set(theirs.state[b]) - OURS_ALONE
        for name, entry in theirs.state[b].items():
            torch.testing.assert_close(
                ours.state[a][name], entry, check_dtype=False, check_device=False, **tolerance
            )


# Arguments


@pytest.mark.parametrize("name", TORCHS)
def test_it_is_torchs_class_with_its_arguments_in_their_places(name: str) -> None:
    kind = CASES[name].optimizer
    theirs = list(inspect.signature(TORCHS[name]).parameters.values())
    ours = list(inspect.signature(kind).parameters.values())
    for mine, torchs in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (torchs.name, torchs.kind, torchs.default)
    own = ["control", "max_grad_norm", "seed", "process_group"]
    own += ["state_dtype", "stochastic_rounding", "master_bits", "decay"]
    assert [p.name for p in ours[len(theirs) :]][-8:] == own
    assert issubclass(kind, TORCHS[name])
    params, options = parameters((3,)), {"maximize": True, "foreach": True, "weight_decay": 0.5}
    mine, torchs = kind(params, 2e-3, **options), TORCHS[name](params, 2e-3, **options)
    groups = [dict(o.param_groups[0]) for o in (mine, torchs)]
    added = {"adamw": set(), "sgd": {"decoupled_weight_decay"}}[name]
    assert set(groups[0]) - set(groups[1]) == {"adaptive_state"} | added
    assert all(groups[0][key] == value for key, value in groups[1].items() if key != "params")
    assert all(mine.defaults[key] == value for key, value in torchs.defaults.items())


@pytest.mark.parametrize(
    ("name", "error"), ERRORS, ids=[f"{n}, {e.optimizer_error_input.desc}" for n, e in ERRORS]
)
def test_the_errors_of_torch(name: str, error: Any) -> None:
    arguments = error.optimizer_error_input
    params = arguments.params or parameters((1, 1))
    expected = pytest.warns if error.error_type is UserWarning else pytest.raises
    for kind in (TORCHS[name], CASES[name].optimizer):
        with expected(error.error_type, match=error.error_regex):
            kind(params, **arguments.kwargs)


NARROW = Control(lr_bounds=(1e-4, 1e-2))
OF_ALL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": 0.0}, ValueError, r"lr must be finite and > 0 with Control\(mode='replace'\), got 0.0"),
    ({"lr": math.inf}, ValueError, "lr must be finite and > 0"),
    ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm must be finite and > 0, or None, got 0"),
    ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm must be finite and > 0"),
    ({"max_grad_norm": -1}, ValueError, "max_grad_norm must be finite and > 0, or None, got -1"),
    ({"max_grad_norm": True}, TypeError, "max_grad_norm must be a number or None, got True"),
    ({"max_grad_norm": "1.0"}, TypeError, "max_grad_norm must be a number or None, got '1.0'"),
    ({"max_grad_norm": [1.0]}, TypeError, r"got \[1.0\] of type list"),
    ({"seed": 7.0}, ValueError, r"seed must be a whole number .* got 7.0: give int\(7.0\)"),
    ({"seed": -1}, ValueError, r"seed must be a whole number from 0 to 2\*\*64 - 1, got -1"),
    ({"seed": 2**64}, ValueError, "seed must be a whole number"),
    ({"seed": 1.5}, ValueError, "seed must be a whole number"),
    ({"seed": True}, ValueError, "seed must be a whole number"),
    ({"seed": "7"}, ValueError, "seed must be a whole number"),
    ({"control": {"every": 3}}, TypeError, "control must be a Control, got {'every': 3}"),
    ({"control": None}, TypeError, "control must be a Control"),
    (
        {"lr": 1.0, "control": NARROW},
        ValueError,
        r"lr must start inside .* = \[0.0001, 0.01\], got",
    ),
    (
        {"control": Control(mode="modulate", lr_bounds=(2.0, 3.0))},
        ValueError,
        "the factor 1.0 of Control",
    ),
]
BETA1 = Control(momentum_bounds=(0.95, 0.99))
OF_ONE: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("adamw", {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    ("adamw", {"lr": math.nan}, ValueError, "Invalid learning rate: nan"),
    ("adamw", {"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
    ("adamw", {"eps": -1e-8}, ValueError, "Invalid epsilon value: -1e-08"),
    ("adamw", {"control": BETA1}, ValueError, r"betas\[0\] must start inside .*momentum_bounds"),
    ("adamw", {"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be"),
    ("adamw", {"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support"),
    ("adamw", {"differentiable": True}, ValueError, "does not support differentiable=True: its"),
    ("sgd", {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
    ("sgd", {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    ("sgd", {"weight_decay": -0.1}, ValueError, "Invalid weight_decay value: -0.1"),
    ("sgd", {"nesterov": True}, ValueError, "Nesterov momentum requires a momentum"),
    ("sgd", {"differentiable": True}, ValueError, "does not support differentiable=True"),
    ("sgd", {"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together"),
    ("sgd", {"control": BETA1}, ValueError, r"momentum must start inside .* = \[0.95, 0.99\], got"),
    ("lion", {"lr": -1.0}, ValueError, "lr must be at least 0, got -1.0"),
    ("lion", {"lr": math.nan}, ValueError, "lr must be at least 0, got nan"),
    (
        "lion",
        {"weight_decay": -0.1},
        ValueError,
        "weight_decay must be finite and at least 0",
    ),
    ("lion", {"weight_decay": math.inf}, ValueError, "weight_decay must be finite"),
    ("lion", {"betas": 5}, ValueError, "betas must be a pair of numbers, got 5"),
    ("lion", {"betas": (0.9,)}, ValueError, "betas must be a pair of numbers"),
    ("lion", {"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\), got 1.0"),
    ("lion", {"betas": (0.9, -0.1)}, ValueError, r"betas\[1\] must be in \[0, 1\), got -0.1"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [*[(name, *row) for name in CASES for row in OF_ALL], *OF_ONE],
)
def test_wrong_arguments(
    name: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    momentum = {"momentum": 0.9} if name == "sgd" and "nesterov" not in arguments else {}
    with pytest.raises(error, match=message):
        CASES[name].optimizer(parameters((3,)), **momentum | arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("adamw", {"decoupled_weight_decay": False}, "got a group with decoupled_weight_decay=Fal"),
        ("sgd", {"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
        ("lion", {"betas": (0.9, 1.5)}, r"betas\[1\] must be in \[0, 1\), got 1.5"),
    ],
)
def test_a_group_that_asks_for_too_much_is_refused_at_any_time(
    name: str, wrong: dict[str, Any], message: str
) -> None:
    def group(shape: int) -> dict[str, Any]:
        return {"params": parameters((shape,)), **wrong}

    for groups in ([group(3)], [{"params": parameters((2,))}, group(3)]):
        with pytest.raises(ValueError, match=message):
            CASES[name].optimizer(groups)
    params = parameters((3,))
    optimizer = make(CASES[name], params)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(group(4))
    assert len(optimizer.param_groups) == 1
    run(optimizer, params, 1)
    before = snapshot(optimizer, params)
    kept = dict(optimizer.param_groups[0])
    optimizer.param_groups[0].update(wrong)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    optimizer.param_groups[0].clear()
    optimizer.param_groups[0].update(kept)
    assert_same(snapshot(optimizer, params), before)


@EACH
def test_no_parameters_at_all(case: Case) -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        case.optimizer([])


@EACH
def test_a_group_that_is_no_dictionary_gets_torchs_answer(case: Case) -> None:
    optimizer = make(case, parameters((3,)))
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group(parameters((3,)))
    assert len(optimizer.param_groups) == 1


@EACH
def test_annotations_can_be_read(case: Case) -> None:
    kind = case.optimizer
    for function in (kind.__init__, kind.observe, kind.step, kind.knobs, kind.trace):
        assert "return" in typing.get_type_hints(function)


@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.complex64, "cpu"), (torch.float32, "meta")],
    ids=["complex", "meta"],
)
def test_fused_refuses_complex_and_meta_parameters_as_adamw_does(
    dtype: torch.dtype, device: str
) -> None:
    for kind in (torch.optim.AdamW, AdaptiveAdamW):
        param = nn.Parameter(torch.ones(3, dtype=dtype, device=device))
        param.grad = torch.ones_like(param)
        with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be float"):
            kind([param], fused=True).step()
        assert device == "meta" or torch.equal(param, torch.ones(3, dtype=dtype))


# The same numbers as torch's


# Each input and each way to ask for an implementation with every dtype, and with each other.
EVERY_PAIR = [
    pytest.param(name, given, dtype, flags, id=f"{name}, {given.desc}, {dtype}, {flags}")
    for i, (name, given) in enumerate(INPUTS)
    for j, dtype in enumerate(TOLERANCE)
    for flags in [IMPLEMENTATIONS[(i + j) % len(IMPLEMENTATIONS)]]
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "given", "dtype", "flags"), EVERY_PAIR)
def test_every_option_follows_torchs(
    name: str, given: Any, dtype: torch.dtype, flags: dict[str, bool], device: str
) -> None:
    arguments = given.kwargs
    if name == "adamw" and flags.get("foreach") and isinstance(arguments.get("lr"), Tensor):
        flags = {**flags, "capturable": True}
    if name == "adamw" and dtype == torch.float16:
        arguments = {**arguments, "eps": 0.1}  # 1e-8 is 0 in float16
    mine = mixed_parameters(dtype, device)
    reference = clones(mine)
    # Halves are rounded to nearest, as torch rounds them.
    options = {**arguments, **flags, "stochastic_rounding": False}
    ours = CASES[name].optimizer(mine, **options, control=FROZEN)
    # torch's plain loop knows no capturable=True on the CPU; it is what the others are held to.
    plain = {k: v for k, v in arguments.items() if k != "capturable"}
    # torch computes with a float32 tensor in float32; ours reads its number once, as a float64.
    single = any(isinstance(x, Tensor) for x in (plain.get("lr"), *plain.get("betas", ())))
    tolerance = TOLERANCE[torch.float32 if single and dtype == torch.float64 else dtype]
    if name == "sgd" and dtype in (torch.bfloat16, torch.float16):
        # Its buffer sums gradients of 1 in half precision, and rounds in every step.
        tolerance = {"rtol": 1e-2, "atol": 5e-2}
    theirs = TORCHS[name](reference, **plain, foreach=False)
    run(ours, mine)
    run(theirs, reference)
    assert_follows(ours, theirs, mine, reference, **tolerance)
    assert_differ(values(mine), values(mixed_parameters(dtype, device)))


@pytest.mark.parametrize("device", DEVICES)
@pairwise(
    dims=[0, 1, 3],
    capturable=[False, True],
    frozen=[True, False],
    options=[{"lr": 0.015625}, {"betas": (0.875, 0.984375)}],
)
def test_tensor_options_equal_floats_on_either_device(
    dims: int, capturable: bool, frozen: bool, options: dict[str, Any], device: str
) -> None:
    control = FROZEN if frozen else BUSY

    def tensors(x: Any, place: str) -> Any:
        return tree_map(lambda number: torch.full((1,) * dims, number, device=place), x)

    ends = []
    for given in (options, *(tensors(options, place) for place in sorted({"cpu", device}))):
        params = mixed_parameters(torch.float32, device)
        optimizer = AdaptiveAdamW(params, capturable=capturable, control=control, **given)
        run(optimizer, params)
        ends.append(snapshot(optimizer, params))
    for end in ends[1:]:
        assert_same(end[0]["state"], ends[0][0]["state"])
        assert_same(end[1], ends[0][1])


@EACH
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_complex_parameters_are_pairs_of_reals(shape: tuple[int, ...], case: Case) -> None:
    start = torch.randn(*shape, 2, dtype=torch.float64)
    complex_param = nn.Parameter(torch.view_as_complex(start.clone()))
    real = nn.Parameter(start.clone())
    amsgrad = {"amsgrad": True} if case.name == "adamw" else {}
    optimizers = [make(case, [p], **amsgrad) for p in (complex_param, real)]
    for step in range(12):
        real.grad = torch.randn(*shape, 2, dtype=torch.float64)
        complex_param.grad = torch.view_as_complex(real.grad.clone())
        for optimizer in optimizers:
            optimizer.step(loss=1.0 / (1 + step))
    assert optimizers[0].knobs()["noise"] > 0
    torch.testing.assert_close(torch.view_as_real(complex_param.detach()), real.detach())
    assert optimizers[0].state[complex_param][case.algorithm.slots[0]].is_complex()


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


# Groups


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
    ends: list[Any] = []
    for optimizer, params in (
        (AdaptiveAdamW(mine[:1], lr=1e-2, control=FROZEN), mine),
        (torch.optim.AdamW(reference[:1], lr=1e-2, foreach=False), reference),
    ):
        run(optimizer, params[:1], 5)
        optimizer.add_param_group({"params": params[1:], "lr": 1e-3, "amsgrad": True})
        assert optimizer.param_groups[0]["lr"] == 1e-2
        run(optimizer, params, 8)
        ends.append(optimizer)
    assert_follows(ends[0], ends[1], mine, reference, rtol=2e-6, atol=1e-7)
    first, second = (group["adaptive_state"] for group in ends[0].param_groups)
    assert first is second
    assert ends[0].knobs()["step"] == 13
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        ends[0].add_param_group({"params": mine[:1]})


# Gradients


@EACH
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_read_only_and_versions_tell_autograd(
    dtype: torch.dtype, device: str, case: Case
) -> None:
    params = mixed_parameters(dtype, device)
    optimizer = make(case, params, max_grad_norm=0.1)
    run(optimizer, params, 6)
    draw_gradients(params, 7)
    grads = [p.grad for p in params if p.grad is not None]
    kept, versions = values(grads), [g._version for g in grads]
    before = [p._version for p in params]
    optimizer.step(loss=1.0)
    assert_same(grads, kept)
    assert [g._version for g in grads] == versions
    assert all(p._version > v for p, v in zip(params, before, strict=True))


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


@EACH
@pytest.mark.parametrize("subclass", [False, True])
def test_step_hooks_run_once_each_and_in_order(
    calls: list[str], subclass: bool, case: Case
) -> None:
    class Own(case.optimizer):  # type: ignore[name-defined, misc]
        def step(self, closure: Any = None, **options: Any) -> Any:
            return super().step(closure, **options)

    params = parameters((2,))
    make(case, params)  # torch wraps the step of a class with its first instance
    torch.optim.AdamW(params)
    kind = Own if subclass else case.optimizer
    optimizer = kind(params, **case.options, control=BUSY)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    run(optimizer, params, 1)
    assert calls == ["global pre", "pre", "post", "global post"]


@EACH
@pytest.mark.parametrize("of_all", [False, True])
def test_a_pre_hook_may_change_the_arguments(of_all: bool, case: Case) -> None:
    params = parameters((2,))
    optimizer = make(case, params)
    register = register_optimizer_step_pre_hook if of_all else optimizer.register_step_pre_hook
    handle = register(lambda _, args, kwargs: (args, {"loss": 5.0}))
    params[0].grad = torch.ones(2)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert optimizer.knobs()["loss"] == 5.0
    assert optimizer._controller.read().loss_count == 1


# torch 2.11 says so at its first use, whatever is asked of it.
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
@EACH
def test_the_profiler_sees_one_step(case: Case) -> None:
    params = parameters((2,))
    optimizer = make(case, params)
    run(optimizer, params, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, params, 1)
    names = [e.name for e in profile.events() if e.name.startswith("Optimizer.step#")]
    assert names == [f"Optimizer.step#{case.optimizer.__name__}.step"]


# Loss scaling


@EACH
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fused_step_unscales_and_skips_by_itself(
    dtype: torch.dtype, max_grad_norm: float | None, case: Case
) -> None:
    ends = []
    for scale in (1.0, 1024.0):
        params = parameters((4,), (3, 2), dtype=dtype)
        optimizer = make(case, params, fused=True, max_grad_norm=max_grad_norm)
        assert optimizer._step_supports_amp_scaling
        for step in range(8):
            draw_gradients(params, step)
            for p in params:
                assert p.grad is not None
                p.grad *= scale if step not in (0, 5) else math.inf
            before = snapshot(optimizer, params)
            optimizer.observe(1e9 if step in (0, 5) else 1.0 / (1 + step))
            optimizer.grad_scale = torch.tensor(scale)
            optimizer.found_inf = torch.tensor(float(step in (0, 5)))
            optimizer.step()
            if step == 5:
                assert_same(snapshot(optimizer, params), before)
        ends.append(snapshot(optimizer, params))
        assert optimizer.knobs()["loss"] == 0.125
    assert_same(ends[0], ends[1])


# Copies


def pickled(found: Any) -> Any:
    return pickle.loads(pickle.dumps(found))


@pairwise(
    case=CASES.values(),
    dtype=[torch.float32, torch.bfloat16],
    fused=[None, True],
    copier=[copy.deepcopy, pickled],
)
def test_a_copy_goes_on_as_its_original(
    case: Case, dtype: torch.dtype, fused: bool | None, copier: Callable[[Any], Any]
) -> None:
    params = parameters((4,), (3, 2), dtype=dtype)
    optimizer = make(case, params, max_grad_norm=0.5, seed=7, fused=fused)
    run(optimizer, params)
    twin, twins = copier((optimizer, params))
    assert_same(snapshot(twin, twins), snapshot(optimizer, params))
    run(optimizer, params)
    run(twin, twins)
    assert_same(snapshot(twin, twins), snapshot(optimizer, params))
    assert twin.knobs() == optimizer.knobs()
    assert optimizer.knobs()["noise"] > 0
    assert twin._step_supports_amp_scaling == optimizer._step_supports_amp_scaling == bool(fused)
    public = [name for name in vars(optimizer) if not name.startswith("_")]
    assert {"defaults", "param_groups", "state"} <= set(public)
    assert repr(twin) == repr(optimizer)
    entries = {"adamw": {"exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
    expected = entries.get(case.name, {"exp_avg"}) | {"step"}
    assert all(set(twin.state[p]) == expected for p in twins)


@pytest.mark.parametrize("name", TORCHS)
def test_printing(name: str) -> None:
    params = parameters((2,))
    lines = repr(TORCHS[name](params, lr=0.125)).splitlines()
    own = repr(CASES[name].optimizer(params, lr=0.125)).splitlines()
    added = {"adamw": [], "sgd": ["    decoupled_weight_decay: False"]}[name]
    assert sorted(own) == sorted(["Adaptive" + lines[0], *lines[1:], *added])


@EACH
def test_optimizers_over_the_same_dictionaries_have_a_controller_each(case: Case) -> None:
    param = nn.Parameter(torch.ones(3))
    groups = [{"params": [param], "lr": 1e-2}]
    falling, rising = (make(case, groups, control=Control(every=1)) for _ in range(2))
    for step in range(10):
        param.grad = torch.ones(3)
        for optimizer, loss in ((falling, 10.0 - step), (rising, 1.0 + step)):
            optimizer.observe(loss)
            optimizer.step()
    assert falling.knobs()["loss"] == 1.0
    assert rising.knobs()["loss"] == 10.0
    assert falling.knobs()["lr"] > 1e-2 > rising.knobs()["lr"]
    assert falling.param_groups[0] is groups[0]
