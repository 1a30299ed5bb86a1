"""What an optimizer keeps its state in: options, checkpoints of every kind, memory, warnings."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adaptiverl.kernels.block_tensor import Blocks, shown, stored
from grids import pairwise
from torch import Tensor, nn
from training import through_a_file

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, codecs
from adaptiverl.backends.operators import WHY_PURE
from adaptiverl.codecs import Storage
from adaptiverl.layout import TRACE_COLUMNS
from adaptiverl.trace import TRACE_CAPACITY

HALF = torch.bfloat16
QUIET = Control(every=2, noise_bounds=(0.0, 0.0))
NOISY = Control(every=2, noise_bounds=(0.05, 0.2))
MAKERS: dict[str, Callable[..., Any]] = {
    "adamw": lambda params, **options: AdaptiveAdamW(
        params, 1e-2, **{"amsgrad": options.get("state_dtype") != torch.int8, **options}
    ),
    "sgd": lambda params, **options: AdaptiveSGD(params, 1e-2, momentum=0.9, **options),
    "lion": lambda params, **options: AdaptiveLion(params, 1e-2, **options),
}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(37, 5), (7,), (), (0, 3), (1100,)]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def feed(optimizer: Any, steps: range) -> None:
    params = optimizer.param_groups[0]["params"]
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step(loss=2.0 - 0.01 * step)


def shaped(optimizer: Any) -> list[Tensor]:
    """The state that has a parameter's shape."""
    names = optimizer._algorithm.slots_of(optimizer.param_groups[0])
    return [optimizer.state[p][n] for p in optimizer.param_groups[0]["params"] for n in names]


def everything(optimizer: Any) -> list[Tensor]:
    params = optimizer.param_groups[0]["params"]
    return [*(p.detach().clone() for p in params), *shaped(optimizer), *errors(optimizer)]


def errors(optimizer: Any) -> list[Tensor]:
    """The error terms of those parameters that have some."""
    states = optimizer.state.values()
    return [state["master_error"] for state in states if "master_error" in state]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# --- Options -------------------------------------------------------------------------------------


@pytest.fixture
def all_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is too small for 8 bits."""
    monkeypatch.setattr(codecs, "SMALL", 0)


@each_maker
@pytest.mark.usefixtures("all_in_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16])
@pytest.mark.parametrize("state_dtype", [torch.float32, HALF, torch.int8])
def test_state_is_kept_in_what_was_asked_for(
    make: Callable[..., Any], dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    optimizer = make(parameters(dtype), control=NOISY, state_dtype=state_dtype)
    feed(optimizer, range(3))
    squares = {torch.uint8} if state_dtype == torch.int8 and make is MAKERS["adamw"] else set()
    assert {codecs.dtype_of(x) for x in shaped(optimizer)} == {state_dtype, *squares}


@each_maker
def test_tensors_below_4096_elements_keep_float32_beside_blocks(make: Callable[..., Any]) -> None:
    params = [nn.Parameter(torch.ones(4095)), nn.Parameter(torch.ones(64, 64))]
    optimizer = make(params, control=QUIET, state_dtype=torch.int8)
    feed(optimizer, range(2))
    assert [isinstance(optimizer.state[p]["step"], Tensor) for p in params] == [True, True]
    kinds = [{isinstance(x, Blocks) for x in shaped(optimizer)[i::2]} for i in (0, 1)]
    if len(shaped(optimizer)) == 4:
        kinds = [{isinstance(x, Blocks) for x in shaped(optimizer)[i : i + 2]} for i in (0, 2)]
    assert kinds == [{False}, {True}]


def test_amsgrad_is_refused_beside_8_bits_and_nothing_is_changed() -> None:
    said = "AdaptiveAdamW keeps no maximum .* amsgrad=True and state_dtype=torch.int8: leave"
    with pytest.raises(ValueError, match=said):
        AdaptiveAdamW(parameters(), amsgrad=True, state_dtype=torch.int8)
    optimizer = AdaptiveAdamW(parameters(), control=QUIET, state_dtype=torch.int8)
    with pytest.raises(ValueError, match=said):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "amsgrad": True})
    assert len(optimizer.param_groups) == 1
    feed(optimizer, range(2))
    before = [x.clone() for x in everything(optimizer)]
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=said):
        feed(optimizer, range(1))
    optimizer.param_groups[0]["amsgrad"] = False
    assert_same(everything(optimizer), before)
    torchs = torch.optim.AdamW(parameters(), amsgrad=True)
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(torchs.state_dict())
    assert_same(everything(optimizer), before)
    assert not optimizer.param_groups[0]["amsgrad"]


@each_maker
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_parameters_of_more_bits_keep_state_of_their_own(
    make: Callable[..., Any], dtype: torch.dtype
) -> None:
    optimizer = make(parameters(dtype), control=QUIET, state_dtype=HALF)
    feed(optimizer, range(2))
    assert {x.dtype for x in shaped(optimizer)} == {dtype}


@each_maker
@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"state_dtype": torch.uint8}, ValueError, "got torch.uint8"),
        ({"state_dtype": torch.float16}, ValueError, "got torch.float16"),
        ({"state_dtype": "bfloat16"}, TypeError, "got 'bfloat16' of type str"),
        ({"state_dtype": None}, TypeError, "got None of type NoneType"),
        ({"stochastic_rounding": 1}, TypeError, "must be True or False, got 1"),
        ({"master_bits": 16}, ValueError, "master_bits must be 8, .* or None, got 16"),
        ({"master_bits": True}, ValueError, "master_bits must be 8, .* or None, got True"),
        ({"master_bits": "8"}, ValueError, "master_bits must be 8, .* or None, got '8'"),
        (
            {"master_bits": 8},
            ValueError,
            r"was given none: parameter 0, of shape \(37, 5\), is torch.float32. Leave master_bits",
        ),
    ],
)
def test_wrong_options_are_refused(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make(parameters(), **options)


def test_float32_runs_are_not_rounded_by_chance() -> None:
    """The option is on by default, and changes no bit where nothing has 16."""
    ends = []
    for by_chance in (True, False):
        optimizer = AdaptiveAdamW(parameters(), control=NOISY, stochastic_rounding=by_chance)
        feed(optimizer, range(12))
        ends.append(everything(optimizer))
    assert_same(*ends)


# --- Checkpoints ---------------------------------------------------------------------------------


def saved_and_loaded(optimizer: Any, make: Callable[..., Any]) -> Any:
    """Through a file that holds nothing but tensors and plain values."""
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    other = make(params)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    return other


def pickled(optimizer: Any, make: Callable[..., Any]) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def copied(optimizer: Any, make: Callable[..., Any]) -> Any:
    return copy.deepcopy(optimizer)


@pytest.mark.usefixtures("all_in_blocks")
@pairwise(
    kind=MAKERS,
    weights=[(torch.float32, None), (HALF, None), (HALF, 8)],
    state_dtype=[HALF, torch.int8],
    by_chance=[True, False],
    travel=[saved_and_loaded, pickled, copied],
)
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    kind: str,
    weights: tuple[torch.dtype, int | None],
    state_dtype: torch.dtype,
    by_chance: bool,
    travel: Callable[..., Any],
) -> None:
    make, (dtype, master_bits) = MAKERS[kind], weights
    storage = Storage(state_dtype, by_chance, master_bits)

    def made(params: Any) -> Any:
        return make(params, control=NOISY, seed=2**40 + 3, **vars(storage))

    optimizer = made(parameters(dtype))
    feed(optimizer, range(4))
    other = travel(optimizer, made)
    for each in (optimizer, other):
        feed(each, range(4, 9))
    assert_same(everything(optimizer), everything(other))
    assert other._storage == storage
    assert len(errors(other)) == (len(parameters()) if master_bits else 0)
    assert [type(x) for x in shaped(other)] == [type(x) for x in shaped(optimizer)]


@each_maker
@pytest.mark.usefixtures("all_in_blocks")
def test_a_checkpoint_of_blocks_is_plain_float32(make: Callable[..., Any]) -> None:
    optimizer = make(parameters(), control=NOISY, state_dtype=torch.int8)
    feed(optimizer, range(3))
    for param, state in zip(parameters(), optimizer.state_dict()["state"].values(), strict=True):
        for name, value in state.items():
            assert type(value) is Tensor
            if name in optimizer._algorithm.slots:
                assert (value.dtype, value.shape) == (torch.float32, param.shape)


@pytest.mark.usefixtures("all_in_blocks")
def test_blocks_are_torchs_entries_there_and_back_within_a_code(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was encoded stays as it is, and is not told of; what was not is rounded, and is."""
    torchs = torch.optim.AdamW(parameters(), lr=1e-2)
    ours = AdaptiveAdamW(parameters(), 1e-2, control=Control.frozen(), state_dtype=torch.int8)
    for optimizer in (torchs, ours):
        for step in range(4):
            for param in optimizer.param_groups[0]["params"]:
                generator = torch.Generator().manual_seed(100 + step)
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
    other = AdaptiveAdamW(parameters(), 1e-2, control=QUIET, state_dtype=torch.int8)
    with caplog.at_level(logging.INFO, "adaptiverl"):
        other.load_state_dict(torchs.state_dict())
    told = sorted(record.getMessage().partition(", which")[0] for record in caplog.records)
    assert told == [
        "AdaptiveAdamW converted the checkpoint's state from torch.float32 to torch.int8"
    ]
    for state, theirs in zip(other.state.values(), torchs.state.values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            if theirs[name].numel():
                off = (state[name] - theirs[name]).abs().max()
                assert off <= 0.035 * theirs[name].abs().max()
    caplog.clear()
    back = torch.optim.AdamW(parameters())
    back.load_state_dict(ours.state_dict())
    again = AdaptiveAdamW(parameters(), 1e-2, control=QUIET, state_dtype=torch.int8)
    with caplog.at_level(logging.INFO, "adaptiverl"):
        again.load_state_dict(back.state_dict())
    assert not caplog.records
    assert_same(shaped(again), shaped(ours))
    assert all(
        torch.equal(stored(a), stored(b)) for a, b in zip(shaped(again), shaped(ours), strict=True)
    )


@each_maker
@pytest.mark.usefixtures("all_in_blocks")
@pytest.mark.parametrize("state_dtype", [torch.float32, HALF])
def test_a_run_goes_on_from_blocks_in_another_dtype(
    make: Callable[..., Any], state_dtype: torch.dtype
) -> None:
    first = make(parameters(), control=QUIET, state_dtype=torch.int8)
    feed(first, range(4))
    second = (
        make(parameters(), control=QUIET, state_dtype=state_dtype, amsgrad=False)
        if (make is MAKERS["adamw"])
        else make(parameters(), control=QUIET, state_dtype=state_dtype)
    )
    second.load_state_dict(first.state_dict())
    assert_same(shaped(second), [shown(x).to(state_dtype) for x in shaped(first)])
    feed(second, range(4, 6))
    assert {x.dtype for x in shaped(second)} == {state_dtype}


EDITS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros in place": lambda x: x.zero_(),
    "zeros for it": torch.zeros_like,
    "moved away and back": lambda x: x.to("cpu", copy=True).to("cpu"),
    "a float32 copy": lambda x: x + 0,
    "another dtype": lambda x: x.to(HALF),
    "scaled": lambda x: x.mul_(0.5),
}


@each_maker
@pytest.mark.usefixtures("all_in_blocks")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_state_that_is_edited_by_hand_is_taken_as_it_is(
    make: Callable[..., Any], edit: Callable[[Tensor], Tensor]
) -> None:
    """As a run that keeps float32 does: the same edit of the same numbers, encoded."""
    runs = []
    for edited in (edit, lambda x: Blocks.of(edit(x.decode()).float(), x.kind)):
        optimizer = make(parameters(), control=QUIET, state_dtype=torch.int8)
        feed(optimizer, range(3))
        for state in optimizer.state.values():
            for name in optimizer._algorithm.slots[:2]:
                state[name] = edited(state[name])
        feed(optimizer, range(3, 5))
        assert all(isinstance(x, Blocks) for x in shaped(optimizer))
        runs.append(everything(optimizer))
    assert_same(*runs)


@each_maker
@pytest.mark.usefixtures("all_in_blocks")
def test_rows_can_be_cut_from_a_parameter_and_its_state(make: Callable[..., Any]) -> None:
    """As Gaussian splatting prunes: a new parameter has the kept rows of the old one's state."""
    optimizer = make(parameters(), control=QUIET, state_dtype=torch.int8)
    feed(optimizer, range(3))
    group = optimizer.param_groups[0]
    old, kept = group["params"][0], torch.arange(37) % 3 != 0
    state = optimizer.state.pop(old)
    group["params"][0] = new = nn.Parameter(old[kept].detach())
    cut = {n: x[kept] if x.shape == old.shape else x for n, x in state.items()}
    optimizer.state[new] = dict(cut)
    names = optimizer._algorithm.slots[: 1 + ("exp_avg_sq" in cut)]
    wanted = [Blocks.of(cut[name], state[name].kind) for name in names]
    new.grad = None
    for param in group["params"][1:]:
        param.grad = None
    new.grad = torch.zeros_like(new)
    optimizer.step()
    for name, before in zip(names, wanted, strict=True):
        assert optimizer.state[new][name].shape == new.shape
        assert (optimizer.state[new][name] - before).abs().max() <= 0.15 * before.abs().max()


@pytest.mark.usefixtures("all_in_blocks")
@pytest.mark.parametrize("pure", [False, True])
def test_where_a_step_is_walked_by_address_and_where_not(pure: bool) -> None:
    """Channels-last tensors are stepped in plain torch; the others' fingerprint is followed."""
    image = torch.randn(8, 3, 5, 5)
    if pure:
        image = image.to(memory_format=torch.channels_last)
    params = [nn.Parameter(image)]
    optimizer = AdaptiveAdamW(params, 1e-2, control=QUIET, state_dtype=torch.int8)
    for _ in range(3):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step(loss=1.0)
    (bucket,) = optimizer._round.plan._sorted
    assert bucket.backend.name == ("reference" if pure or WHY_PURE else "cpu")
    assert optimizer._round.plan.followed == (bucket.backend.name == "cpu")
    replaced = optimizer.state[params[0]]["exp_avg"].clone()
    optimizer.state[params[0]]["exp_avg"] = replaced
    optimizer.step(loss=1.0)
    assert not optimizer._round.plan.followed
    assert not torch.equal(replaced, torch.zeros_like(replaced))


@pytest.mark.parametrize("old", [torch.float32, HALF])
@pytest.mark.parametrize("new", [torch.float32, HALF])
def test_another_state_dtype_converts_and_says_so(
    old: torch.dtype, new: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    first = AdaptiveAdamW(parameters(), control=QUIET, state_dtype=old)
    feed(first, range(4))
    second = AdaptiveAdamW(parameters(), control=QUIET, state_dtype=new)
    with caplog.at_level(logging.INFO, "adaptiverl"):
        second.load_state_dict(first.state_dict())
    assert_same(shaped(second), [x.to(new) for x in shaped(first)])
    told = [record.getMessage() for record in caplog.records]
    if old == new:
        assert told == []
    else:
        said = f"AdaptiveAdamW converted the checkpoint's state from {old} to {new}"
        assert [text.startswith(said) for text in told] == [True]
    feed(second, range(4, 6))
    assert {x.dtype for x in shaped(second)} == {new}


def test_torchs_checkpoint_goes_on_here_and_ours_there() -> None:
    torchs = torch.optim.AdamW(parameters())
    for param in torchs.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    torchs.step()
    ours = AdaptiveAdamW(parameters(), control=QUIET, state_dtype=HALF)
    ours.load_state_dict(torchs.state_dict())
    kept = [s[n] for s in torchs.state.values() for n in ("exp_avg", "exp_avg_sq")]
    assert_same(shaped(ours), [x.to(HALF) for x in kept])
    back = torch.optim.AdamW(parameters())
    back.load_state_dict(ours.state_dict())
    there = [s[n] for s in back.state.values() for n in ("exp_avg", "exp_avg_sq")]
    assert_same(there, [x.float() for x in shaped(ours)])
    for param in back.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    back.step()


def test_a_pickle_from_before_there_was_a_choice_rounds_as_it_did() -> None:
    optimizer = AdaptiveAdamW(parameters(), control=QUIET)
    state = optimizer.__getstate__()
    state["_adaptive"] = state["_adaptive"][:5]
    old = AdaptiveAdamW.__new__(AdaptiveAdamW)
    old.__setstate__(state)
    assert old._storage == Storage(torch.float32, stochastic_rounding=False)


# --- Error terms ---------------------------------------------------------------------------------


def mixed() -> list[nn.Parameter]:
    """Weights in bfloat16, and norms in float32 among them."""
    params = parameters(HALF)
    return [nn.Parameter(p.float()) if i in (1, 2) else p for i, p in enumerate(params)]


@each_maker
def test_only_parameters_in_bfloat16_have_error_terms(make: Callable[..., Any]) -> None:
    """The others take the step that they would take without, and all are followed at a glance."""
    ends = []
    for master_bits in (8, None):
        optimizer = make(mixed(), control=QUIET, seed=5, master_bits=master_bits)
        feed(optimizer, range(6))
        params = optimizer.param_groups[0]["params"]
        assert optimizer._round.plan.followed == (WHY_PURE is None)
        ends.append([params[1], params[2]])
        for param in params:
            error = optimizer.state[param].get("master_error")
            assert (error is not None) == (master_bits == 8 and param.dtype == HALF)
            if error is not None:
                assert (error.dtype, error.shape) == (torch.int8, param.shape)
    assert_same(*ends)


@each_maker
@pytest.mark.filterwarnings("ignore:.*of the updates of parameters")  # of those without
def test_error_terms_keep_what_bfloat16_loses(make: Callable[..., Any]) -> None:
    """A run stays at its own in float32: the parameters are what theirs round to, mostly."""
    runs: dict[str, Any] = {}
    for name, by_chance in (("nearest", False), ("chance", True)):
        runs[name] = make(
            parameters(HALF), control=QUIET, master_bits=8, stochastic_rounding=by_chance
        )
    single = [nn.Parameter(p.detach().float()) for p in parameters(HALF)]
    runs["float32"] = make(single, control=QUIET)
    runs["alone"] = make(parameters(HALF), control=QUIET, stochastic_rounding=False)
    for optimizer in runs.values():
        optimizer.param_groups[0]["lr"] = 1e-4
        for step in range(30):
            for param in optimizer.param_groups[0]["params"]:
                generator = torch.Generator().manual_seed(100 + step)
                drawn = torch.randn(param.shape, generator=generator).to(HALF)
                param.grad = drawn.to(param.dtype)
            optimizer.step(loss=1.0)

    def off(name: str) -> float:
        """The share that is not what the run in float32 rounds to."""
        ours = torch.cat([p.flatten() for p in runs[name].param_groups[0]["params"]])
        wanted = torch.cat([p.flatten() for p in single]).to(HALF)
        return float((ours != wanted).float().mean())

    assert off("nearest") < 0.03
    assert off("chance") < 0.03
    assert off("alone") > 0.1


@each_maker
@pytest.mark.parametrize("old", [None, 8])
@pytest.mark.parametrize("new", [None, 8])
def test_another_master_bits_converts_and_says_so(
    make: Callable[..., Any], old: int | None, new: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(mixed(), control=QUIET, master_bits=old)
    feed(first, range(4))
    second = make(mixed(), control=QUIET, master_bits=new)
    with caplog.at_level(logging.INFO, "adaptiverl"):
        second.load_state_dict(first.state_dict())
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    name = type(first).__name__
    wanted = []
    if old and not new:
        wanted = [
            f"{name} dropped the error terms of 3 parameters, which master_bits does not ask for "
            "here, or the parameters' dtype"
        ]
    elif new and not old:
        wanted = [f"{name} found no error terms of 3 parameters in the checkpoint"]
    assert told == wanted
    if old == new:
        assert_same(errors(second), errors(first))
    feed(second, range(4, 6))
    assert len(errors(second)) == (3 if new else 0)


def test_error_terms_and_torchs_own_checkpoints(caplog: pytest.LogCaptureFixture) -> None:
    """torch.optim.AdamW goes on from the bfloat16s; what comes from it begins without."""
    ours = AdaptiveAdamW(parameters(HALF), control=QUIET, master_bits=8)
    feed(ours, range(3))
    theirs = torch.optim.AdamW(parameters(HALF))
    theirs.load_state_dict(ours.state_dict())
    for param in theirs.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    theirs.step()
    plain = torch.optim.AdamW(parameters(HALF))
    for param in plain.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    plain.step()
    for saved, kept in ((theirs, errors(ours)), (plain, [])):
        again = AdaptiveAdamW(parameters(HALF), control=QUIET, master_bits=8)
        with caplog.at_level(logging.INFO, "adaptiverl"):
            again.load_state_dict(saved.state_dict())
        assert_same(errors(again), kept)
        feed(again, range(3, 5))
        assert {x.dtype for x in errors(again)} == {torch.int8}


@each_maker
@pytest.mark.parametrize(
    ("option", "value"),
    [("state_dtype", torch.int8), ("stochastic_rounding", False), ("master_bits", 8)],
)
def test_no_group_is_stored_in_a_way_of_its_own(
    make: Callable[..., Any], option: str, value: Any
) -> None:
    """It would be passed over; what says the same as the optimizer is no other way."""
    said = f"stores all groups in one way, got a group with {option}={re.escape(repr(value))}"
    first, second = parameters(HALF), parameters(HALF)
    group = {"params": second, option: value}
    with pytest.raises(ValueError, match=said):
        make([{"params": first}, group])
    optimizer = make(first, control=QUIET)
    with pytest.raises(ValueError, match=said):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    make([{"params": first}, group], **{option: value})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3), "master_error of parameter 0 must be of the parameter's shape"),
        (torch.zeros(37, 5, dtype=torch.complex64), "of a dtype that can be cast to"),
        ("x", "must be a dense tensor"),
    ],
)
def test_damaged_error_terms_are_refused_and_nothing_changes(value: Any, said: str) -> None:
    optimizer = AdaptiveAdamW(parameters(HALF), control=QUIET, master_bits=8)
    feed(optimizer, range(3))
    before = [x.clone() for x in everything(optimizer)]
    damaged = copy.deepcopy(optimizer.state_dict())
    damaged["state"][0]["master_error"] = value
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(damaged)
    assert_same(everything(optimizer), before)


def test_error_terms_of_another_size_are_refused_before_anything_moves() -> None:
    optimizer = AdaptiveAdamW(params := parameters(HALF), control=QUIET, master_bits=8)
    feed(optimizer, range(3))
    before = [p.detach().clone() for p in params]
    optimizer.state[params[0]]["master_error"] = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="size of master_error of parameter 0 must match"):
        feed(optimizer, range(3, 4))
    assert_same([p.detach() for p in params], before)


def test_a_parameter_that_was_cast_goes_on_without_error_terms() -> None:
    model = nn.Linear(4, 3).to(HALF)
    optimizer = AdaptiveAdamW(model.parameters(), control=QUIET, master_bits=8)
    for dtype in (HALF, torch.float32, HALF):
        model.to(dtype)
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step(loss=1.0)
        assert len(errors(optimizer)) == (2 if dtype == HALF else 0)


@each_maker
def test_a_skipped_step_leaves_error_terms(make: Callable[..., Any]) -> None:
    """On either backend: the last parameter's are stepped in plain torch."""
    params = [*parameters(HALF), nn.Parameter(torch.ones(6, 8, dtype=HALF)[:, ::2])]
    optimizer = make(params, control=QUIET, master_bits=8)
    feed(optimizer, range(3))
    before = [x.clone() for x in everything(optimizer)]
    optimizer.found_inf, optimizer.grad_scale = torch.ones(1), torch.ones(1)
    feed(optimizer, range(3, 4))
    assert_same(everything(optimizer), before)


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "state_dtype", "per_parameter", "master_bits"),
    [
        (torch.float32, torch.float32, 16, None),
        (HALF, torch.float32, 12, None),
        (HALF, HALF, 8, None),
        (torch.float32, torch.int8, 8 + 2 * 1.016, None),
        (HALF, torch.int8, 4 + 2 * 1.016, None),
        (HALF, torch.int8, 4 + 2 * 1.016, 8),
    ],
)
def test_memory_is_counted_by_part(
    dtype: torch.dtype, state_dtype: torch.dtype, per_parameter: int, master_bits: int | None
) -> None:
    count = 16_000 if state_dtype == torch.int8 else 1000
    params = [nn.Parameter(torch.ones(count, dtype=dtype)) for _ in range(3)]
    options: dict[str, Any] = {"state_dtype": state_dtype, "master_bits": master_bits}
    optimizer = AdaptiveAdamW(params, control=QUIET, **options)
    before = optimizer.memory()
    assert before["parameters"] == 3 * count * dtype.itemsize
    assert before["gradients"] == 0
    assert "exp_avg" not in before
    feed(optimizer, range(2))
    parts = optimizer.memory()
    assert parts.pop("master_error", 0) == (3 * count if master_bits else 0)
    kinds = {"parameters", "gradients", "exp_avg", "exp_avg_sq", "controller", "trace"}
    assert set(parts) == kinds
    assert before["trace"] == 0
    assert parts.pop("trace") == 8 * (1 + TRACE_CAPACITY) * len(TRACE_COLUMNS)
    if state_dtype == torch.int8:  # a code for each element, and two bytes for 128
        assert parts["exp_avg"] == parts["exp_avg_sq"] == 3 * (count + 2 * count // 128)
    else:
        assert parts["exp_avg"] == parts["exp_avg_sq"] == 3 * count * state_dtype.itemsize
    own = parts.pop("controller")
    assert sum(parts.values()) == pytest.approx(3 * count * per_parameter, rel=1e-3)
    # The controller's memory, and for each tensor a row of addresses, a count, a product, a sum;
    # plain torch reads nothing by address.
    memory = optimizer._controller.state
    row = 14 * 8 if WHY_PURE is None else 0
    assert own >= memory.nbytes + 3 * (row + 4 + 8 + 8)
    assert own < 8192


def test_memory_that_tensors_share_counts_once() -> None:
    whole = torch.ones(100)
    params = [nn.Parameter(whole[:60]), nn.Parameter(whole[60:]), nn.Parameter(torch.empty(0))]
    tied = AdaptiveAdamW([*params, nn.Parameter(whole[:60])])
    assert tied.memory()["parameters"] == 400


# --- Lost updates --------------------------------------------------------------------------------


def lost(by_chance: bool, lr: float, dtype: torch.dtype = HALF) -> list[float]:
    """Percent of the updates that a warning says were lost, if any does."""
    param = nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = AdaptiveSGD([param], lr, control=QUIET, stochastic_rounding=by_chance)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(20):
            # On one half of the elements the update is ten times the rate.
            param.grad = torch.ones_like(param)
            param.grad[:500] = 10.0
            optimizer.step(loss=1.0 - 0.001 * step)
    said = [re.match(r"(\d+)% of the updates", str(w.message)) for w in caught]
    return [float(found[1]) for found in said if found]


def test_a_warning_says_which_share_of_updates_is_lost() -> None:
    # Below 1, numbers of bfloat16 are 2^-8 apart: an update of under half of that is lost.
    assert lost(False, 1e-3) == [50]
    assert lost(False, 1e-4) == [100]
    assert lost(False, 1e-2) == []


def test_nothing_is_said_where_nothing_is_lost_for_good() -> None:
    assert lost(True, 1e-4) == []
    assert lost(False, 1e-4, torch.float32) == []
