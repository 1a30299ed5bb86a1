"""Save and load: bit for bit, across a kill, to and from AdamW, and refused with a reason."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpointed_run
import numpy as np
import pytest
import torch
from grids import pairwise
from pass_cases import CASES
from rank_jobs_digests import SINCE_4, SINCE_5, SINCE_6, SINCE_7, in_layout_3
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from training import (
    BUSY,
    CAPTURABLE_WARNING,
    DEVICES,
    assert_differ,
    assert_same,
    clones,
    descend,
    parameters,
    saved_states,
    snapshot,
    through_a_file,
    values,
)

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, layout
from adaptiverl.migrations import MIGRATIONS

pytestmark = CAPTURABLE_WARNING
SHAPES = ((7,), (6, 5), (), (3, 4))
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("adamw", {}),
    "amsgrad": ("adamw", {"amsgrad": True, "maximize": True}),
    "clipped": ("adamw", {"max_grad_norm": 0.3, "seed": 11}),
    "fused": ("adamw", {"fused": True}),
    "tensor rate": ("adamw", {"lr": torch.tensor(1e-2), "capturable": True}),
    "modulate": (
        "adamw",
        {"control": Control(mode="modulate", every=3, noise_bounds=(0.05, 0.1))},
    ),
    "alpha at its floor": ("adamw", {"control": Control(every=1, lr_bounds=(1e-2, 1e-2))}),
    # Searching when it is saved, and annealing at the end.
    "alignment": (
        "adamw",
        {"control": Control(law="alignment", every=3, horizon=28, noise_bounds=(0, 0.1))},
    ),
    "sgd": ("sgd", {"decoupled_weight_decay": True, "seed": 9}),
    "sgd without momentum": ("sgd", {"momentum": 0.0, "dampening": 0.0}),
    "lion": ("lion", {"max_grad_norm": 1.0, "seed": 5}),
}


def make(algorithm: str, params: list[nn.Parameter], **options: Any) -> Any:
    case = CASES[algorithm]
    return case.optimizer(params, **case.options | {"control": BUSY} | copy.deepcopy(options))


def busy(params: list[nn.Parameter], **options: Any) -> AdaptiveAdamW:
    arguments: dict[str, Any] = {"lr": 1e-2, "control": BUSY}
    return AdaptiveAdamW(params, **(arguments | options))


# Going on


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    name: str, dtype: torch.dtype, device: str
) -> None:
    algorithm, options = OPTIONS[name]
    params = parameters(*SHAPES, dtype=dtype, device=device)
    optimizer = make(algorithm, params, **options)
    descend(optimizer, params, 13)
    saved = through_a_file((optimizer.state_dict(), values(params)))

    resumed = [nn.Parameter(x) for x in saved[1]]
    other = make(algorithm, resumed, **options)
    other.load_state_dict(saved[0])
    assert_same(snapshot(other, resumed), snapshot(optimizer, params))
    assert other.knobs() == pytest.approx(optimizer.knobs(), rel=0, abs=0, nan_ok=True)
    descend(optimizer, params, 12, first=13)
    descend(other, resumed, 12, first=13)
    assert_same(snapshot(other, resumed), snapshot(optimizer, params))
    assert optimizer.knobs()["step"] == 25


def test_the_noise_goes_on_where_it_was() -> None:
    # The seed and the counter are in the checkpoint: one built with another seed draws the same.
    loud = Control(every=2, noise_bounds=(0.1, 0.1))
    params = parameters(*SHAPES)
    optimizer = busy(params, control=loud, seed=3)
    descend(optimizer, params, 5)
    ends = {}
    for kept in (True, False):
        resumed = clones(params)
        other = busy(resumed, control=loud, seed=4)
        saved = copy.deepcopy(optimizer.state_dict())
        if not kept:
            del saved["param_groups"][0]["adaptive_state"]
        other.load_state_dict(saved)
        descend(other, resumed, 5, first=5)
        ends[kept] = values(resumed)
    descend(optimizer, params, 5, first=5)
    assert_same(ends[True], values(params))
    assert_differ(ends[False], values(params))


@pytest.mark.parametrize("device", DEVICES)
def test_the_controllers_address_survives_a_load(device: str) -> None:
    params = parameters(*SHAPES, device=device)
    optimizer = busy(params)
    descend(optimizer, params, 4)
    address = optimizer._controller.memory.data_ptr()
    optimizer.load_state_dict(through_a_file(optimizer.state_dict(), map_location="cpu"))
    descend(optimizer, params, 1, first=4)
    assert optimizer._controller.memory.data_ptr() == address


def test_an_old_checkpoint_lacks_flags_and_counts_in_floats() -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params, control=Control(every=2))
    descend(optimizer, params, 6)
    saved = copy.deepcopy(optimizer.state_dict())
    for flag in ("foreach", "fused", "maximize", "capturable", "differentiable", "amsgrad"):
        del saved["param_groups"][0][flag]
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    resumed = clones(params)
    other = busy(resumed, control=Control(every=2))
    other.load_state_dict(saved)
    descend(optimizer, params, 6, first=6)
    descend(other, resumed, 6, first=6)
    assert_same(values(resumed), values(params))


@pytest.mark.parametrize("saved_named", [False, True])
@pytest.mark.parametrize("loaded_named", [False, True])
def test_named_parameters(saved_named: bool, loaded_named: bool) -> None:
    def build(params: list[nn.Parameter], named: bool) -> AdaptiveAdamW:
        handed: Any = [(f"p{i}", p) for i, p in enumerate(params)] if named else params
        return busy(handed)

    params = parameters(*SHAPES)
    optimizer = build(params, saved_named)
    descend(optimizer, params, 6)
    resumed = clones(params)
    other = build(resumed, loaded_named)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert ("param_names" in other.param_groups[0]) == (saved_named or loaded_named)
    descend(optimizer, params, 6, first=6)
    descend(other, resumed, 6, first=6)
    assert_same(values(resumed), values(params))


def test_a_checkpoint_of_an_untrained_optimizer() -> None:
    params = parameters(*SHAPES)
    optimizer, other = busy(params), busy(clones(params))
    descend(other, other.param_groups[0]["params"], 3)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.knobs()["step"] == 0
    assert len(other.state) == 0


# A real kill


STEPS = 14


def kill_in_save(folder: Path, pause: int) -> None:
    script = Path(__file__).parent / "checkpointed_run.py"
    # As pytest itself was started: isolated where the installed wheel is to be tested.
    isolated = ["-I"] if sys.flags.isolated else []
    command = [sys.executable, *isolated, str(script), str(folder), str(STEPS), str(pause)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mid-save\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    unfinished = folder / "checkpoint.unfinished"
    with pytest.raises((RuntimeError, EOFError, OSError)):
        torch.load(unfinished, weights_only=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_killed_in_mid_save_ends_with_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for killed in (False, True):
        folder = tmp_path / str(killed)
        folder.mkdir()
        if killed:
            kill_in_save(folder, pause=9)
            assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 6
        checkpointed_run.main(folder, STEPS, pause=0)
        ends.append(torch.load(folder / "end.pt", weights_only=True))
        assert not (folder / "checkpoint.unfinished").exists()
    assert [end.pop("first") for end in ends] == [0, 6]
    assert_same(ends[1], ends[0])
    assert ends[1]["knobs"]["step"] == STEPS
    assert ends[1]["knobs"]["noise"] > 0


# To and from torch.optim


TORCHS: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.99)}
SGD: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", ADAMW),
        ("adamw", ADAMW | {"amsgrad": True}),
        ("adamw", ADAMW | {"fused": True}),
        ("adamw", ADAMW | {"foreach": True}),
        ("sgd", SGD),
        ("sgd", SGD | {"momentum": 0.9, "dampening": 0.5}),
        ("sgd", SGD | {"momentum": 0.9, "nesterov": True}),
    ],
    ids=str,
)
def test_torchs_checkpoint_goes_on_here_and_ours_there(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    tolerance: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12} if dtype == torch.float64 else {}
    reference = parameters(*SHAPES, dtype=dtype)
    theirs = TORCHS[name](reference, **options)
    descend(theirs, reference, 10)
    mine = clones(reference)
    ours = CASES[name].optimizer(mine, **options, control=Control.frozen())
    ours.step(loss=3.0)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert ours.knobs()["step"] == 0
    assert math.isnan(ours.knobs()["loss"])
    # torch.optim.SGD's has no such option: then it is what the constructor was given.
    assert ours.param_groups[0]["decoupled_weight_decay"] is (name == "adamw")
    descend(theirs, reference, 10, first=10)
    descend(ours, mine, 10, first=10)
    torch.testing.assert_close(values(mine), values(reference), **tolerance)

    back = TORCHS[name](mine, **options)
    back.load_state_dict(through_a_file(ours.state_dict()))
    descend(theirs, reference, 10, first=20)
    descend(back, mine, 10, first=20)
    torch.testing.assert_close(values(mine), values(reference), **tolerance)


def test_the_option_that_torchs_sgd_lacks_is_the_constructors() -> None:
    params = parameters(*SHAPES)
    theirs = torch.optim.SGD(params, **SGD)
    ours = AdaptiveSGD(clones(params), **SGD, decoupled_weight_decay=True)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["decoupled_weight_decay"] is True


def test_an_old_checkpoint_of_sgd_has_empty_buffers() -> None:
    options: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9, "dampening": 0.5}
    reference = parameters(*SHAPES)
    mine = clones(reference)
    theirs = torch.optim.SGD(reference, **options)
    ours = AdaptiveSGD(mine, **options, control=Control.frozen())
    saved = theirs.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(len(SHAPES))}
    ours.load_state_dict(saved)
    descend(theirs, reference, 20)
    descend(ours, mine, 20)
    torch.testing.assert_close(values(mine), values(reference))


def test_a_half_precision_checkpoint_of_adamw_gets_float32_moments() -> None:
    reference = parameters(*SHAPES, dtype=torch.bfloat16)
    theirs = torch.optim.AdamW(reference, lr=1e-2)
    descend(theirs, reference, 5)
    mine = clones(reference)
    ours = busy(mine)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert {s["exp_avg"].dtype for s in ours.state.values()} == {torch.float32}
    descend(ours, mine, 5, first=5)
    back = torch.optim.AdamW(mine, lr=1e-2)
    back.load_state_dict(through_a_file(ours.state_dict()))
    descend(back, mine, 5, first=10)
    assert all(torch.isfinite(p).all() for p in mine)


# What is refused


def replaced(name: str, value: float) -> Callable[[Tensor], Tensor]:
    def change(memory: Tensor) -> Tensor:
        memory = memory.clone()
        memory[layout.SLOT[name]] = value
        return memory

    return change


DAMAGES: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda m: m[:-1].clone(), "got torch.float64 of shape"),
    (lambda m: torch.cat([m, m[-1:]]), "got torch.float64 of shape"),
    (lambda m: m.half(), "got torch.float16 of shape"),
    (lambda m: m[:-1].float(), "got torch.float64 of shape"),
    (lambda m: m[:0].clone(), r"got torch.float64 of shape \(0,\)"),
    (lambda m: m.reshape(1, -1), "got torch.float64 of shape"),
    (lambda m: m.tolist(), r"got \[8.0, "),
    (lambda _: None, "got None"),
    (replaced("version", 0.0), "got version 0.0"),
    (replaced("version", 1.0), rf"got .* of shape \({layout.MEMORY_SIZE},\) in layout 1"),
    (replaced("version", 3.0), rf"got .* of shape \({layout.MEMORY_SIZE},\) in layout 3"),
    (lambda m: replaced("version", 1.0)(m)[:31], r"of shape \(31,\) in layout 1"),
    (replaced("version", 9.0), "got version 9.0"),
    (replaced("version", math.nan), "got version nan"),
    (replaced("log_lr", math.nan), "got log_lr = nan"),
    (replaced("log_lr", -math.inf), "got log_lr = -inf"),
    (replaced("log_noise", math.inf), "got log_noise = inf"),
    (replaced("logit_momentum", math.nan), "got logit_momentum = nan"),
    (replaced("loss_mean", math.inf), "got loss_mean = inf"),
    (replaced("alignment_mean", math.nan), "got alignment_mean = nan"),
    (replaced("alignment_square", math.inf), "got alignment_square = inf"),
    (replaced("log_lr_downhill", math.inf), "got log_lr_downhill = inf"),
    (replaced("log_lr_doubted", math.nan), "got log_lr_doubted = nan"),
    (replaced("overshoot", -math.inf), "got overshoot = -inf"),
    (replaced("anneal", math.nan), "got anneal = nan"),
    (replaced("log_lr_start", -700.0), "got log_lr = .*, which is further than 46.0517 from"),
    (replaced("log_lr", 50.0), "got log_lr = 50.0, which is further than 46.0517 from"),
    (replaced("log_lr_start", 1e9), "got log_lr_start = 1000000000.0, which is not in"),
    (replaced("logit_momentum", 1e9), "got logit_momentum = 1000000000.0, which is not in"),
    (replaced("log_noise", 1e9), "got log_noise = 1000000000.0, which is not in"),
    (replaced("seed_low", 1e300), r"got seed_low = 1e\+300, which is not in"),
    (replaced("seed_high", 2.0**32), "got seed_high = 4294967296.0, which is not in"),
    (replaced("seed_low", -1.0), "got seed_low = -1.0, which is not in"),
    (replaced("seed_low", 0.5), "got seed_low = 0.5, which is no whole number"),
    (replaced("step", -1e18), r"got step = -1e\+18, which is not in"),
    (replaced("step", 1e18), r"got step = 1e\+18, which is not in"),
    (replaced("step", 2.5), "got step = 2.5, which is no whole number"),
    (replaced("updates", -1.0), "got updates = -1.0, which is not in"),
    (replaced("held", 0.5), "got held = 0.5, which is no whole number"),
    (replaced("observed_pending", 0.5), "got observed_pending = 0.5, which is no whole number"),
    (replaced("anneal", 1e6), "got anneal = 1000000.0, which is not in"),
    (replaced("plateau", -0.1), "got plateau = -0.1, which is not in"),
    (replaced("loss_direction", 3.0), "got loss_direction = 3.0, which is not in"),
    (replaced("variance", -1.0), "got variance = -1.0, which is not in"),
    (replaced("noise", -1.0), "got noise = -1.0, which is not in"),
    (replaced("momentum", 1.5), "got momentum = 1.5, which is not in"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[m for _, m in DAMAGES])
def test_a_damaged_or_foreign_memory_is_refused_and_nothing_changes(
    damage: Callable[[Tensor], Any], message: str
) -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params)
    descend(optimizer, params, 5)
    bad = copy.deepcopy(optimizer.state_dict())
    descend(optimizer, params, 2, first=5)
    before = snapshot(optimizer, params)
    bad["param_groups"][0]["adaptive_state"] = damage(bad["param_groups"][0]["adaptive_state"])
    with pytest.raises(ValueError, match=f"{message}.*nothing was changed$"):
        optimizer.load_state_dict(bad)
    assert_same(snapshot(optimizer, params), before)
    # The hook that looked at it is gone as well.
    assert not optimizer._optimizer_load_state_dict_pre_hooks  # type: ignore[attr-defined]


TREES: dict[str, Callable[[Any], Any]] = {
    "0-d tensors are numbers": lambda t: t.item() if t.dim() == 0 else t,
    "float64 is float32": lambda t: t.float(),
    "both": lambda t: t.item() if t.dim() == 0 else t.float(),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tree", TREES)
def test_a_checkpoint_that_was_numbers_and_float32_goes_on(
    tree: str, dtype: torch.dtype, kind: str
) -> None:
    params = parameters((4, 3), (), dtype=dtype)
    seed = 2**40 + 12345679
    optimizer = make(kind, params, seed=seed)
    descend(optimizer, params, 6)
    mine = clones(params)
    again = make(kind, mine, seed=seed)
    state = tree_map_only(Tensor, TREES[tree], copy.deepcopy(optimizer.state_dict()))
    if "numbers" in tree:
        again.load_state_dict(state)
    else:
        with pytest.warns(UserWarning, match="seed of the noise and the step count are others"):
            again.load_state_dict(state)
    state = again._controller.state
    assert state.dtype == torch.float64
    torch.testing.assert_close(
        state, optimizer._controller.state, equal_nan=True, rtol=1e-6, atol=0
    )
    places = [layout.SLOT[name] for name in ("seed_low", "seed_high", "step")]
    assert_same(state[places], optimizer._controller.state[places])
    descend(optimizer, params, 3, first=6)
    descend(again, mine, 3, first=6)
    for left, right in zip(params, mine, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-2)
        same = {k: v.dtype for k, v in optimizer.state[left].items()}
        assert {k: v.dtype for k, v in again.state[right].items()} == same


def test_a_seed_that_was_rounded_is_one_all_the_same() -> None:
    params = parameters((3,))
    optimizer = AdaptiveAdamW(params, seed=2**64 - 1)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["adaptive_state"] = state["param_groups"][0]["adaptive_state"].float()
    for seed, expected in ((2**64 - 1, 2**32 - 1), (5, 2**32 - 1)):
        again = AdaptiveAdamW(clones(params), seed=seed)
        with pytest.warns(UserWarning, match="loaded as float32"):
            again.load_state_dict(copy.deepcopy(state))
        assert again._controller.read().seed_low == expected


Damage = Callable[[dict[str, Any]], Any]


def entry(name: str, value: Any) -> Damage:
    """An entry of the second parameter's state; a callable is asked of what is there."""

    def change(saved: dict[str, Any]) -> None:
        entries = saved["state"][1]
        entries[name] = value(entries[name]) if callable(value) else value

    return change


def option(name: str, value: Any) -> Damage:
    return lambda saved: saved["param_groups"][1].update({name: value})


def part(name: str, value: Any) -> Damage:
    return lambda saved: saved.update({name: value})


def without(*path: Any) -> Damage:
    def change(saved: Any) -> None:
        for key in path[:-1]:
            saved = saved[key]
        del saved[path[-1]]

    return change


def double(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


WRONG_COUNTS = [math.nan, math.inf, -3.0, 2.5, 1e17, torch.tensor(math.nan), torch.tensor(-1)]
NO_NUMBERS = ["x", b"4", True, [1], {}, torch.zeros(2), torch.tensor(1j), np.zeros(2), 10**400]
WRONG_PRODUCTS = [math.nan, math.inf, -0.1, 1.5, 1.0, double(1.0), torch.tensor(1.5)]
NO_SLOTS: list[tuple[Any, str]] = [
    (torch.zeros(3), r"of the parameter's shape \(2, 2\), got torch.float32 of shape \(3,\)"),
    (lambda x: x[:1], r"of the parameter's shape \(2, 2\), got .* of shape \(1, 2\)"),
    (lambda x: x.to(torch.complex64), "of a dtype that can be cast to torch.float32"),
    (lambda x: x.to(torch.int8), "of a floating-point dtype, no codes without their scales"),
    (Tensor.to_sparse, "a dense tensor, got torch.sparse_coo"),
    (Tensor.numpy, "a dense tensor, got array"),
    (np.array([[None, None], [None, None]]), "a dense tensor, got array"),
    (Tensor.tolist, "a dense tensor"),
    (1.0, "a dense tensor, got 1.0"),
    ("x", "a dense tensor, got 'x'"),
]
PARTS: list[tuple[Damage, str]] = [
    (part("state", []), "state must be a dictionary"),
    (part("state", None), "state must be a dictionary, got None"),
    (without("state"), r"has 'state' and 'param_groups', got a dictionary with the keys"),
    (without("param_groups"), r"has 'state' and 'param_groups', got .* keys \['state'\]"),
    (lambda saved: saved["state"].update({1: None}), "state of parameter 1 must be a dictionary"),
    (lambda saved: saved["state"].update({1: [1]}), "state of parameter 1 must be a dictionary"),
    (part("param_groups", {}), "param_groups must be a list of dictionaries, got {}"),
    (lambda saved: saved["param_groups"].__setitem__(1, None), r"param_groups\[1\] must be a dict"),
    (without("param_groups", 1, "params"), "params of group 1 must be a list"),
    (option("params", [[1]]), "params of group 1 must be a list"),
    (without("param_groups", 1, "lr"), "its group 1 has no lr"),
    (option("lr", None), "lr of group 1 must be finite, and a number, got None"),
    (option("lr", "x"), "lr of group 1 must be finite, and a number, got 'x'"),
    (option("lr", torch.tensor(math.nan)), "lr of group 1 must be finite"),
    *(
        (option("horizon", x), "horizon of group 1 must be a whole number of steps")
        for x in ("x", 0, 1.5, True, 2**53 + 1)
    ),
    (option("weight_decay", (0.1, 0.2)), "weight_decay of group 1 must be one number"),
    (
        lambda saved: saved.update(state={str(k): v for k, v in saved["state"].items()}),
        "state has the key '0' where its groups have 0: something made text of numbers",
    ),
]
COUNTED: list[tuple[Damage, str]] = [
    *((entry("step", x), "step of parameter 1 must be whole and in") for x in WRONG_COUNTS),
    *((entry("step", x), "step of parameter 1 must be one real number") for x in NO_NUMBERS),
]


def of_slot(name: str) -> list[tuple[Damage, str]]:
    return [(entry(name, x), f"{name} of parameter 1 must be {said}") for x, said in NO_SLOTS]


def missing(*names: str) -> list[tuple[Damage, str]]:
    damages = []
    for name in names:
        for damage in (without("state", 1, name), entry(name, None)):
            damages.append((damage, f"{name} of parameter 1 must be .* got None"))
    return damages


BETAS: list[tuple[Damage, str]] = [
    (option("betas", value), "betas of group 1 must be ") for value in (0.9, (0.9,), (0.9, "x"))
]
UNSOUND: dict[str, list[tuple[Damage, str]]] = {
    "adamw": [
        *(PARTS + COUNTED + BETAS + of_slot("exp_avg") + of_slot("exp_avg_sq")),
        *missing("step", "exp_avg", "exp_avg_sq"),
        *((entry("mu_product", x), "mu_product of parameter 1 must be one") for x in NO_NUMBERS),
        *(
            (entry("mu_product", x), r"mu_product of parameter 1 must be a product .*in \[0, 1")
            for x in WRONG_PRODUCTS
        ),
    ],
    "sgd": [
        *(PARTS + COUNTED + of_slot("momentum_buffer")),
        (option("momentum", 1.5), r"momentum must be in \[0, 1\), got 1.5"),
    ],
    "lion": [*(PARTS + COUNTED + BETAS + of_slot("exp_avg")), *missing("exp_avg")],
}


def grouped(kind: str, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """Two groups, a parameter each, a few steps old."""
    params = parameters((3,), (2, 2))
    groups: Any = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    optimizer = make(kind, groups, **options)
    descend(optimizer, params, 4)
    return optimizer, params


def gone_on(kind: str) -> tuple[Any, list[nn.Parameter], dict[str, Any]]:
    """And two steps more than its checkpoint."""
    optimizer, params = grouped(kind)
    sound = copy.deepcopy(optimizer.state_dict())
    descend(optimizer, params, 2, first=4)
    return optimizer, params, sound


def damaged(
    sound: dict[str, Any], damages: list[tuple[Damage, str]]
) -> Iterator[tuple[dict[str, Any], str]]:
    for damage, message in damages:
        bad = copy.deepcopy(sound)
        damage(bad)
        yield bad, message


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_damaged_checkpoint_is_refused_and_nothing_changes(kind: str) -> None:
    optimizer, params, sound = gone_on(kind)
    before = snapshot(optimizer, params)
    for bad, message in damaged(sound, UNSOUND[kind]):
        with pytest.raises(ValueError, match=message) as error:
            optimizer.load_state_dict(bad)
        assert "nothing was changed" in str(error.value) or "momentum must be" in message
    assert_same(snapshot(optimizer, params), before)
    optimizer.load_state_dict(copy.deepcopy(sound))
    assert_same(copy.deepcopy(optimizer.state_dict()), sound)


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_damaged_count_is_refused_by_torchs_own_function_too(kind: str) -> None:
    """Which wrappers call; what that meets itself it says itself."""
    optimizer, params, sound = gone_on(kind)
    before = snapshot(optimizer, params)
    for bad, _ in damaged(sound, COUNTED):
        with pytest.raises((ValueError, TypeError)):
            torch.optim.Optimizer.load_state_dict(optimizer, bad)
    assert_same(snapshot(optimizer, params), before)


@pytest.mark.parametrize("nothing", [None, [], "x", 3])
def test_what_is_no_checkpoint_is_told_what_is(nothing: Any) -> None:
    optimizer, params = grouped("adamw")
    before = snapshot(optimizer, params)
    with pytest.raises(TypeError, match=r"takes what state_dict\(\) returned, a dictionary, got"):
        optimizer.load_state_dict(nothing)
    with pytest.raises(ValueError, match=r"keys \['model'\]: give load_state_dict\(\) the part"):
        optimizer.load_state_dict({"model": {}})
    assert_same(snapshot(optimizer, params), before)


SOUND: dict[str, tuple[str, Damage]] = {
    "no state": ("adamw", part("state", {})),
    "none of one parameter": ("adamw", without("state", 1)),
    "an empty one": ("adamw", lambda saved: saved["state"][1].clear()),
    "whole numbers": ("adamw", entry("step", int)),
    "a count in a list's shape": ("lion", entry("step", lambda x: x.to(torch.int64).reshape(1))),
    "half precision": ("lion", entry("exp_avg", torch.Tensor.half)),
    "a product that is 0": ("adamw", entry("mu_product", 0.0)),
    "a product that was rounded to 1": ("adamw", entry("mu_product", torch.tensor(1.0))),
    "no product": ("adamw", without("state", 1, "mu_product")),
    "a buffer that was never made": ("sgd", entry("momentum_buffer", None)),
    "a moment that is not finite": ("adamw", entry("exp_avg", lambda x: x * math.inf)),
    "no count where none is needed": ("lion", without("state", 1, "step")),
    "what a parameter that is gone left": ("adamw", lambda saved: saved["state"].update({7: {}})),
    "Adam's groups": ("adamw", option("decoupled_weight_decay", False)),
}


@pytest.mark.parametrize(("kind", "change"), SOUND.values(), ids=SOUND)
def test_what_a_step_can_go_on_from_is_loaded(kind: str, change: Damage) -> None:
    optimizer, params = grouped(kind)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    optimizer.load_state_dict(saved)
    descend(optimizer, params, 1, first=4)


def test_a_checkpoint_of_other_groups_is_refused_and_nothing_changes() -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params)
    descend(optimizer, params, 5)
    before = snapshot(optimizer, params)
    other = busy(parameters(*SHAPES[:2]))
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(other.state_dict())
    assert_same(snapshot(optimizer, params), before)


def _nan_loss(params: list[nn.Parameter]) -> tuple[AdaptiveAdamW, dict[str, Any]]:
    control = Control(every=2, noise_bounds=(0.0, 0.0))
    options: dict[str, Any] = {"betas": (0.0, 0.99), "control": control}
    optimizer = busy(params, **options)
    optimizer.step(loss=math.nan)
    memory = optimizer._controller.memory
    for name in ("log_noise", "logit_momentum"):
        assert memory[layout.SLOT[name]] == -math.inf
    assert memory[layout.SLOT["loss"]].isnan()
    return optimizer, options


def _infinite_sums(params: list[nn.Parameter]) -> tuple[AdaptiveAdamW, dict[str, Any]]:
    options: dict[str, Any] = {"control": Control.climb()}
    optimizer = busy(params, **options)
    descend(optimizer, params, 2)
    for param in params:
        param.grad = torch.full_like(param, math.inf)
    optimizer.step()
    memory = optimizer._controller.memory
    assert memory[layout.ALIGNMENT].isfinite().tolist() == [False, False, True]
    assert memory[layout.SLOT["log_lr_downhill"]] == -math.inf
    return optimizer, options


@pytest.mark.parametrize("begin", [_nan_loss, _infinite_sums])
def test_a_sound_memory_may_hold_what_is_not_finite(begin: Callable[..., Any]) -> None:
    params = parameters(*SHAPES)
    optimizer, options = begin(params)
    other = busy(clones(params), **options)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(other._controller.memory, optimizer._controller.memory)


# Older layouts


def in_layout(version: int, saved: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as an earlier version wrote it.

    Layout 1 had 32 numbers, `version` to `updates`; layout 2 all of the third's but
    `log_lr_doubted`; layout 4 all of today's but `SINCE_4` and what came later, and so on.
    """
    slot = layout.SLOT["log_lr_doubted"]
    assert layout.FIELDS[:32][-1] == "updates"
    assert layout.FIELDS[slot - 1 : slot + 1] == ("log_lr_downhill", "log_lr_doubted")
    saved = copy.deepcopy(saved)
    for group in saved["param_groups"]:
        now = group["adaptive_state"]
        memory = in_layout_3(now)
        if version >= 4:
            newer = sum((SINCE_4, SINCE_5, SINCE_6, SINCE_7)[version - 4 :], ())
            names = layout.FIELDS[: layout.MEMORY_SIZE]
            memory = now[[layout.SLOT[name] for name in names if name not in newer]]
        elif version == 1:
            memory = memory[:32].clone()
        elif version == 2:
            memory = torch.cat([memory[:slot], memory[slot + 1 :]])
        memory[0] = version
        group["adaptive_state"] = memory
    return saved


@pytest.mark.parametrize(
    ("version", "size", "control"),
    [
        (1, 32, BUSY),
        (2, 45, BUSY),
        (2, 45, Control.climb()),
        (3, 46, BUSY),
        (3, 46, Control.climb()),
        (4, 53, BUSY),
        (4, 53, Control.climb()),
        (5, 63, BUSY),
        (6, 91, BUSY),
        (6, 91, Control.climb()),
        (7, 118, Control.climb()),
    ],
    ids="1; 2; 2, searching; 3; 3, searching; 4; 4, searching; 5; 6; 6, searching; 7".split("; "),
)
def test_a_checkpoint_of_an_earlier_layout_goes_on_as_its_own(
    version: int, size: int, control: Control
) -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params, control=control)
    descend(optimizer, params, 20)
    saved = through_a_file(optimizer.state_dict())
    old = in_layout(version, saved)
    resumed = clones(params)
    other = busy(resumed, control=control)
    other.load_state_dict(old)
    memory = other._controller.memory
    # None of them says how large gradients were, and no held rate of theirs is watched.
    new = (*SINCE_6, "watches")
    known = [layout.SLOT[n] for n in layout.FIELDS[: layout.MEMORY_SIZE] if n not in new]
    assert memory[layout.SLOT["watches"]] == 2
    assert_same(memory[known], saved["param_groups"][0]["adaptive_state"][known])
    assert memory[layout.SLOT["version"]] == layout.LAYOUT_VERSION
    assert (memory[layout.SLOT["log_lr_downhill"]] > -math.inf) == (control is not BUSY)
    assert memory[layout.SLOT["log_lr_doubted"]] == -math.inf
    assert memory[layout.SLOT["anneal"]] == 1
    # The checkpoint itself is left alone.
    assert old["param_groups"][0]["adaptive_state"].numel() == size
    assert old["param_groups"][0]["adaptive_state"][0] == version
    descend(optimizer, params, 12, first=20)
    descend(other, resumed, 12, first=20)
    assert_same(values(resumed), values(params))
    states = [list(saved_states(one).values()) for one in (other, optimizer)]
    assert_same(*states)
    assert_same(memory[known], optimizer._controller.memory[known])


def test_the_alignment_law_goes_on_from_a_checkpoint_of_the_first_layout() -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params)
    descend(optimizer, params, 7)
    other = busy(params, control=Control.climb(100))
    other.load_state_dict(in_layout(1, optimizer.state_dict()))
    before = other.knobs()
    assert (before["alpha"], before["held"]) == (optimizer.knobs()["alpha"], 0)
    # Its first step has no sums to act on, its second has.
    descend(other, params, 1, first=7)
    assert other.knobs()["alpha"] == before["alpha"]
    descend(other, params, 1, first=8)
    assert other.knobs()["alpha"] > before["alpha"]


@pytest.mark.parametrize("searching", [0.0, 1.0])
def test_what_a_ramp_in_progress_had_marked_was_no_first_zero(searching: float) -> None:
    memory = torch.arange(118, dtype=torch.float64)
    memory[[0, 44, 57]] = torch.tensor([7.0, -4.0, searching], dtype=torch.float64)
    after = MIGRATIONS[7](memory)
    names = dict(zip(layout.FIELDS, after.tolist(), strict=False))
    assert (names["searching"], names["watches"], names["version"]) == (searching, 2, 8)
    assert names["log_lr_zero"] == (-math.inf if searching else -4.0)
    assert memory[44] == -4.0, "the checkpoint's own is left alone"


def test_every_layout_that_was_has_a_way_to_the_present_one() -> None:
    assert set(MIGRATIONS) == set(range(1, layout.LAYOUT_VERSION))


def test_an_older_layout_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two layouts that never were, each lacking the last number of the one that follows it.
    def grow(memory: Tensor) -> Tensor:
        grown = torch.cat([memory, memory[:1] - oldest])
        grown[0] += 1
        return grown

    oldest = layout.LAYOUT_VERSION - 2
    for version in (oldest, oldest + 1):
        monkeypatch.setitem(MIGRATIONS, version, grow)
    params = parameters(*SHAPES)
    optimizer = busy(params)
    descend(optimizer, params, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    memory = saved["param_groups"][0]["adaptive_state"]
    old = memory[:-2].clone()
    old[0] = oldest
    saved["param_groups"][0]["adaptive_state"] = old
    optimizer.load_state_dict(saved)
    expected = memory.clone()
    expected[-2:] = torch.tensor([0, 1], dtype=torch.float64)
    assert_same(optimizer._controller.memory, expected)
    assert old[0] == oldest
    assert old.numel() == memory.numel() - 2


# Hooks of state_dict and load_state_dict


def test_state_dict_hooks_and_entries_that_are_not_ours() -> None:
    params = parameters(*SHAPES)
    optimizer = busy(params)
    descend(optimizer, params, 3)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))

    def note(_: Any, state_dict: dict[str, Any]) -> None:
        calls.append("post")
        state_dict["state"]["test"] = 1

    optimizer.register_state_dict_post_hook(note)
    saved = optimizer.state_dict()
    assert calls == ["pre", "post"]
    assert saved["state"]["test"] == 1
    optimizer.load_state_dict(saved)
    assert optimizer.state["test"] == 1  # type: ignore[index]
    descend(optimizer, params, 3, first=3)


def test_a_load_hook_may_change_the_checkpoint_or_bring_another() -> None:
    params = parameters(*SHAPES, dtype=torch.bfloat16)
    optimizer = busy(params)
    descend(optimizer, params, 3)
    good = copy.deepcopy(optimizer.state_dict())
    calls: list[str] = []

    def slower(_: Any, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0]["lr"] = 0.002

    def repaired(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return good

    optimizer.register_load_state_dict_pre_hook(slower)
    optimizer.register_load_state_dict_pre_hook(repaired, prepend=True)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("post"))
    foreign = copy.deepcopy(good)
    foreign["param_groups"][0]["adaptive_state"] = "not a memory"
    foreign["state"] = {}
    optimizer.load_state_dict(foreign)
    assert optimizer.param_groups[0]["lr"] == 0.002
    assert_same(optimizer.state_dict()["state"], good["state"])
    assert calls == ["post"]


# Resuming under another control

RESUMED = {
    "frozen": Control.frozen(),
    "modulate": Control(mode="modulate", every=1),
    "the same": Control(every=1),
    "bounds in rates": Control(every=1, lr_bounds=(1e-8, 1.0)),
}


@pairwise(
    by_hand=[None, 1e-3, 1e-7],
    lr=[1e-5, 1e-3, 1e-7],
    second=RESUMED,
    first=["modulate", "the same", "bounds in rates"],
)
def test_the_rate_goes_on_whatever_the_new_control_or_rate(
    first: str, second: str, lr: float, by_hand: float | None
) -> None:
    """From the rate in effect, or from what the user sets after the load, without a jump."""
    saved = AdaptiveAdamW(parameters((4,)), lr=1e-5, control=RESUMED[first])
    train_down(saved, 20)
    factor = saved.knobs()["lr"] / 1e-5
    assert factor > 1.2, "α did not move"
    resumed = AdaptiveAdamW(parameters((4,)), lr=lr, control=RESUMED[second])
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    if by_hand is not None:
        resumed.param_groups[0]["lr"] = by_hand
    expected = factor * (1e-5 if by_hand is None else by_hand)
    assert resumed.knobs()["lr"] == pytest.approx(expected, rel=1e-9), "before it is adopted"
    resumed.observe(1.0)
    assert resumed.knobs()["lr"] == pytest.approx(expected, rel=1e-9)
    state = resumed._controller.read()
    assert state.log_lr == pytest.approx(math.log(state.lr), rel=1e-9), "what it moves is another"
    train_down(resumed, 2)
    low, high = RESUMED[second].lr_change
    moved = resumed.knobs()["lr"] / expected
    assert low**2 * (1 - 1e-9) <= moved <= high**2 * (1 + 1e-9)
    if second == "frozen":
        assert moved == pytest.approx(1, rel=1e-9)


def train_down(optimizer: Any, steps: int) -> None:
    """Steps whose loss falls."""
    for step in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0 / (1 + step))


OURS: dict[str, Any] = {"adamw": AdaptiveAdamW, "sgd": AdaptiveSGD, "lion": AdaptiveLion}
FOREIGN: dict[str, Any] = OURS | {f"torch's {name}": kind for name, kind in TORCHS.items()}


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(a, b) for a in FOREIGN for b in OURS if not a.endswith(b)],
)
def test_another_kind_of_optimizers_checkpoint_is_refused_and_nothing_changes(
    saved: str, loaded: str
) -> None:
    def trained(kind: Any) -> tuple[Any, list[nn.Parameter]]:
        params = parameters((3,))
        options = {"momentum": 0.9} if kind in (AdaptiveSGD, torch.optim.SGD) else {}
        optimizer = kind([{"params": params}, {"params": parameters((2,))}], lr=1e-2, **options)
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        optimizer.step()
        return optimizer, params

    other, _ = trained(FOREIGN[saved])
    optimizer, params = trained(OURS[loaded])
    before = snapshot(optimizer, params)
    message = f"not one that {OURS[loaded].__name__} can load: its (group 0 has no|state has) "
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    assert_same(snapshot(optimizer, params), before)


@pytest.mark.parametrize("kind", [AdaptiveAdamW, AdaptiveSGD, AdaptiveLion])
@pytest.mark.parametrize("law", ["loss", "alignment"])
@pytest.mark.parametrize("bounds", [(1e-2, 1.0), (1e-9, 1e-7)], ids=["above", "below"])
def test_an_alpha_outside_the_new_bounds_moves_there_by_the_change_cap(
    kind: Any, law: Any, bounds: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"momentum": 0.9} if kind is AdaptiveSGD else {}
    saved = kind(parameters((4,)), lr=1e-4, control=Control(law=law, every=1), **options)
    train_down(saved, 20)
    control = Control(law=law, every=1, lr_bounds=bounds, lr_change=(0.5, 3.0))
    resumed = kind(
        parameters((4,)), lr=math.sqrt(bounds[0] * bounds[1]), control=control, **options
    )
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
        rates = [resumed.knobs()["lr"]]
        assert rates[0] == pytest.approx(saved.knobs()["lr"], rel=1e-9)
        for _ in range(16):
            train_down(resumed, 1)
            rates.append(resumed.knobs()["lr"])
            assert resumed.knobs()["alpha"] == pytest.approx(rates[-1], rel=1e-9)
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        f"{kind.__name__} goes on at the α of its checkpoint, {rates[0]:.3g}, which is outside"
        in line
    )
    low, high = bounds[0] * (1 - 1e-9), bounds[1] * (1 + 1e-9)
    outside = [n for n, rate in enumerate(rates) if not low <= rate <= high]
    assert outside == list(range(len(outside)))
    assert 2 < len(outside) < 16, "it came inside, and not at once"
    cap = 3.0 if rates[0] < bounds[0] else 0.5
    for before, after in itertools.pairwise(rates[: len(outside)]):
        assert after / before == pytest.approx(cap, rel=1e-9)


def test_an_alpha_inside_the_new_bounds_is_not_worth_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = AdaptiveAdamW(parameters((4,)), lr=1e-4)
    train_down(saved, 20)
    resumed = AdaptiveAdamW(parameters((4,)), lr=1e-4, control=Control(lr_bounds=(1e-5, 1e-2)))
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
        train_down(resumed, 2)
    assert not caplog.records
