"""A search's weights go back to where it began (method.md#going-back), in every way of training."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from adaptiverl.kernels.block_tensor import Blocks
from torch import Tensor, nn
from training import assert_differ, assert_same, clones, saved_states, through_a_file, values

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, codecs, devices
from adaptiverl.announcements import Announcements
from adaptiverl.kernels import reference
from adaptiverl.layout import FIELDS, SLOT
from adaptiverl.step.snapshot import KEY, Snapshot

FIND = Control.find_lr(1000)
KINDS: dict[str, Callable[..., Any]] = {
    "AdamW": lambda params, **kw: AdaptiveAdamW(params, None, amsgrad=True, **kw),
    "SGD": lambda params, **kw: AdaptiveSGD(params, None, 0.9, nesterov=True, **kw),
    "Lion": lambda params, **kw: AdaptiveLion(params, None, **kw),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A row, a number, a matrix laid out by columns, and nothing."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((5,), (), (7, 3), (0,))
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    drawn[2] = drawn[2].t().contiguous().t()
    return [nn.Parameter(x) for x in drawn]


def put_gradients(params: Sequence[nn.Parameter], step: int, absent: Sequence[int] = ()) -> None:
    """Of a quadratic with noisy batches."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        pull = param.detach() + (0.5 * noise).to(param.dtype)
        param.grad = None if i in absent else pull


def steps(
    optimizer: Any, params: Sequence[nn.Parameter], first: int, last: int, **more: Any
) -> Iterator[int]:
    """Train from a step to another, and stop after each."""
    for step in range(first, last):
        put_gradients(params, step, **more)
        optimizer.step()
        yield step


def train(optimizer: Any, params: Sequence[nn.Parameter], first: int, last: int) -> None:
    for _ in steps(optimizer, params, first, last):
        pass


def number(optimizer: Any, name: str) -> float:
    return float(optimizer._controller.state[SLOT[name]])


def train_until_it_went_back(optimizer: Any, params: Sequence[nn.Parameter], **more: Any) -> int:
    """The number of the step that did."""
    for step in steps(optimizer, params, 0, 160, **more):
        if number(optimizer, "rewind"):
            return step
    raise AssertionError("the search did not end")


def everything(optimizer: Any, params: Sequence[nn.Parameter]) -> Any:
    states = [list(s.values()) for s in saved_states(optimizer).values()]
    return copy.deepcopy((values(params), states, optimizer._controller.state))


def assert_where_it_began(optimizer: Any, params: Sequence[Tensor], began: list[Tensor]) -> None:
    assert_same(values(params), began)
    for state in optimizer.state.values():
        assert all(not value.any() for value in state.values())


# --- The step that goes back ------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
)
def test_a_search_ends_where_it_began(kind: str, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    began = values(params)
    optimizer = KINDS[kind](params, control=FIND)
    train(optimizer, params, 0, 30)
    assert_differ(values(params), began)
    assert number(optimizer, "searching") == 1
    optimizer = KINDS[kind](params := clones(began), control=FIND)
    went_back = train_until_it_went_back(optimizer, params)
    assert 30 < went_back < 150
    assert_where_it_began(optimizer, params, began)
    # From there on it is a run that begins at these weights and with this memory.
    fresh = KINDS[kind](twins := clones(began), control=FIND)
    fresh.param_groups[0]["adaptive_state"] = optimizer._controller.memory.clone()
    for one, ours in ((optimizer, params), (fresh, twins)):
        train(one, ours, went_back + 1, went_back + 40)
    assert_same(everything(optimizer, params), everything(fresh, twins))
    assert_differ(values(params), began)


@kinds
def test_state_in_blocks_starts_anew_with_its_scales_and_so_do_error_terms(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "SMALL", 0)
    make = partial(AdaptiveAdamW, lr=None) if kind == "AdamW" else KINDS[kind]
    options: dict[str, Any] = {"state_dtype": torch.int8, "master_bits": 8}
    optimizer = make(params := parameters(torch.bfloat16), control=FIND, **options)
    began = values(params)
    train_until_it_went_back(optimizer, params)
    assert_where_it_began(optimizer, params, began)
    kept = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, Blocks)]
    assert kept
    assert not any(x.buffer.any() for x in kept)
    assert not any(s["master_error"].any() for s in optimizer.state.values())


def test_tensors_with_gaps_and_tensors_in_one_memory_go_back() -> None:
    whole = torch.randn(12, generator=torch.Generator().manual_seed(2))
    params = [nn.Parameter(whole[::2]), nn.Parameter(whole[1:4])]  # which share whole[2]
    began = values(params)
    optimizer = AdaptiveAdamW(params, None, control=FIND)
    went_back = train_until_it_went_back(optimizer, params)
    assert went_back > 30
    assert_where_it_began(optimizer, params, began)


@kinds
def test_what_had_no_gradient_in_that_step_goes_back_too(kind: str) -> None:
    whole = parameters()
    began = values(whole)
    optimizer = KINDS[kind](whole, control=FIND)
    # The third joins late, the first is gone from step 20 on.
    train(optimizer, whole[:2], 0, 10)
    for step in range(10, 160):
        put_gradients(whole, step, absent=(0,) if step >= 20 else ())
        optimizer.step()
        if number(optimizer, "rewind"):
            break
        assert step < 159
    assert_where_it_began(optimizer, whole, began)


def test_it_is_the_first_step_that_moves_from_which_it_went() -> None:
    """A checkpoint library makes state by a step at a rate of 0; then the weights are loaded."""
    params = parameters()
    optimizer = AdaptiveAdamW([{"params": params, "lr": 0.0}], control=FIND_FACTOR)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    with torch.no_grad():
        for param in params:
            param.add_(1)
    began = values(params)
    train_until_it_went_back(optimizer, params)
    assert_where_it_began(optimizer, params, began)


FIND_FACTOR = Control(law="range_test", mode="modulate", horizon=1000, noise_bounds=(0.0, 0.0))


@kinds
def test_the_copy_is_let_go_when_the_search_is_over(kind: str) -> None:
    params = parameters()
    optimizer = KINDS[kind](params, control=FIND)
    went_back = train_until_it_went_back(optimizer, params)
    workspace = optimizer._round.workspace
    kept = [name for name in workspace._pieces if "search start" in name or "rewind" in name]
    assert len(kept) == 2
    train(optimizer, params, went_back + 1, went_back + 3)
    left = [name for name in workspace._pieces if name in kept]
    assert (left, optimizer._round.snapshot._copies) == ([], {})
    assert all(KEY not in state for state in saved_states(optimizer).values())


@pytest.mark.parametrize("late", [1, 7])
def test_a_host_that_hears_of_it_late_goes_back_no_second_time(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, others = parameters(), parameters()
    usual, deaf = (KINDS["AdamW"](p, control=FIND) for p in (params, others))
    went_back = train_until_it_went_back(usual, params)
    train(usual, params, went_back + 1, went_back + 20)
    with monkeypatch.context() as patch:
        patch.setattr(Announcements, "went_back", False)
        train(deaf, others, 0, went_back + 1 + late)
        assert deaf._round.snapshot._copies
    train(deaf, others, went_back + 1 + late, went_back + 20)
    assert_same(everything(deaf, others), everything(usual, params))


MUTANTS: dict[str, tuple[str, Any]] = {
    "no way back": ("keep_and_put_back", lambda *_: None),
    "moments kept": (
        "_pairs",
        lambda self, index, param, state: iter([(param.detach(), self._copies[index])]),
    ),
    "counts kept": (
        "_pairs",
        lambda self, index, param, state: iter(
            [(param.detach(), self._copies[index])]
            + [(state[name], None) for name in state if name != "step"]
        ),
    ),
    "a copy of every step": ("_has", lambda *_: False),
}


@kinds
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_seen(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshot, *MUTANTS[name])
    with pytest.raises(AssertionError):
        test_a_search_ends_where_it_began(kind, torch.float32)


# --- Killed and resumed -----------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("cut", [0, 1, 20, -1, "went back", 1000], ids=str)
def test_a_killed_and_resumed_search_has_the_bits_of_one_that_was_not(kind: str, cut: Any) -> None:
    params = parameters()
    unbroken = KINDS[kind](params, control=FIND)
    went_back = train_until_it_went_back(unbroken, params)
    end = went_back + 30
    train(unbroken, params, went_back + 1, end)
    at = {-1: went_back, "went back": went_back + 1, 1000: went_back + 5}.get(cut, cut)
    before = parameters()
    first = KINDS[kind](before, control=FIND)
    train(first, before, 0, at)
    # Saved, loaded, saved and loaded: the second optimizer takes no step between.
    saved = through_a_file((values(before), first.state_dict()))
    between = KINDS[kind](clones(saved[0]), control=FIND)
    between.load_state_dict(saved[1])
    saved = through_a_file((saved[0], between.state_dict()))
    searching = 0 < at <= went_back
    assert all((KEY in state) == searching for state in saved[1]["state"].values())
    resumed = KINDS[kind](after := clones(saved[0]), control=FIND)
    resumed.load_state_dict(saved[1])
    train(resumed, after, at, end)
    assert_same(everything(resumed, after), everything(unbroken, params))
    assert all(KEY not in state for state in resumed.state.values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_search_goes_on_as_its_own(copied: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = AdaptiveAdamW(params, None, control=FIND)
    train(optimizer, params, 0, 20)
    other = copied(optimizer)
    others = other.param_groups[0]["params"]
    went_back = {
        train_until_it_went_back_from(20, *pair) for pair in ((optimizer, params), (other, others))
    }
    assert len(went_back) == 1
    assert_same(everything(other, others), everything(optimizer, params))


def train_until_it_went_back_from(first: int, optimizer: Any, params: Any) -> int:
    for step in steps(optimizer, params, first, 160):
        if number(optimizer, "rewind"):
            return step
    raise AssertionError("the search did not end")


def test_a_search_whose_start_is_lost_begins_anew_from_the_weights_that_are_there() -> None:
    params = parameters()
    optimizer = AdaptiveAdamW(params, None, control=FIND)
    train(optimizer, params, 0, 30)
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state.pop(KEY)
    resumed = AdaptiveAdamW(after := clones(params), None, control=FIND)
    resumed.load_state_dict(saved)
    began = values(after)
    train(resumed, after, 30, 31)
    assert (number(resumed, "search_steps"), number(resumed, "lr")) == (0, pytest.approx(1e-6))
    train_until_it_went_back_from(31, resumed, after)
    assert_where_it_began(resumed, after, began)


@kinds
def test_a_search_that_another_law_took_over_leaves_no_weights_to_go_back_to(kind: str) -> None:
    """They would be kept and saved for nothing, and a search that comes later would go there."""
    params = parameters()
    searching = KINDS[kind](params, control=FIND)
    train(searching, params, 0, 20)
    saved = through_a_file(searching.state_dict())
    assert all(KEY in state for state in saved["state"].values())
    other = KINDS[kind](params, control=Control.climb(2000))
    other.load_state_dict(saved)
    assert all(KEY not in state for state in other.state.values())
    train(other, params, 20, 25)
    saved = through_a_file(other.state_dict())
    assert all(KEY not in state for state in saved["state"].values())
    resumed = KINDS[kind](params, control=FIND)
    resumed.load_state_dict(saved)
    began = values(params)
    train_until_it_went_back_from(25, resumed, params)
    assert_where_it_began(resumed, params, began)


@kinds
@pytest.mark.parametrize("step", [0, 1, 20])
def test_a_saved_search_has_its_entries_in_one_order(kind: str, step: int) -> None:
    params = parameters()
    optimizer = KINDS[kind](params, control=FIND)
    train(optimizer, params, 0, step)
    saved = through_a_file(optimizer.state_dict())
    orders = {i: list(entries) for i, entries in saved["state"].items()}
    other = KINDS[kind](params, control=FIND)
    turned = copy.deepcopy(saved)
    turned["state"] = {i: dict(reversed(entries.items())) for i, entries in saved["state"].items()}
    for given in (saved, turned):
        other.load_state_dict(given)
        assert {i: list(e) for i, e in other.state_dict()["state"].items()} == orders
    train(other, params, step, step + 1)
    if step:
        assert {i: list(e) for i, e in other.state_dict()["state"].items()} == orders


@pytest.mark.parametrize("steps_before", [30, 900])
def test_a_climbing_run_goes_on_under_the_range_test(steps_before: int) -> None:
    """What it held is held; where it was still climbing, a ramp begins."""
    params = parameters()
    climbing = AdaptiveAdamW(params, 1e-3, control=Control.climb(2000))
    train(climbing, params, 0, steps_before)
    held = climbing.knobs()
    other = AdaptiveAdamW(params, 1e-3, control=Control.find_lr(2000))
    other.load_state_dict(climbing.state_dict())
    train(other, params, steps_before, steps_before + 2)
    if held["held"]:
        assert other.knobs()["lr"] == held["lr"]
    else:
        # Its first step's sums are there, because the moments are: one step up the ramp.
        assert other.knobs()["lr"] == pytest.approx(1e-6 * math.exp(0.35))
    assert bool(held["held"]) == (steps_before == 900)


# --- Ways of training -------------------------------------------------------------------------


@kinds
def test_an_overflow_in_the_search_is_skipped_and_stops_nothing(kind: str) -> None:
    params, others = parameters()[:2], parameters()[:2]
    usual, scaled = (KINDS[kind](p, control=FIND, fused=True) for p in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**6)
    ended = []
    for step in range(160):
        put_gradients(params, step)
        usual.step()
        for overflows in (False, True) if step % 7 == 3 else (False,):
            put_gradients(others, step)
            if overflows:
                others[0].grad = torch.full_like(others[0], torch.inf)
            scaler.scale(torch.ones(()))  # which makes its numbers
            scaler.step(scaled)
            scaler.update(new_scale=1.0)
        assert_same(values(others), values(params))
        ended.append((number(usual, "rewind"), number(scaled, "held")))
    assert any(rewind for rewind, _ in ended)
    assert number(scaled, "held_at") == number(usual, "held_at") > 30


@kinds
def test_clipping_and_micro_batches_change_nothing_of_it(kind: str) -> None:
    params = parameters()
    began = values(params)
    optimizer = KINDS[kind](params, control=FIND, max_grad_norm=0.5)
    for step in range(160):
        optimizer.zero_grad()
        for micro in range(2):
            generator = torch.Generator().manual_seed(10 * step + micro)
            noise = [0.5 * torch.randn(p.shape, generator=generator) for p in params]
            pulls = [(p + n).square().sum() for p, n in zip(params, noise, strict=True)]
            loss = torch.stack(pulls).sum()
            optimizer.observe(loss / 2)
            (loss / 2).backward()
        optimizer.step()
        if number(optimizer, "rewind"):
            break
    assert 30 < step < 159
    assert_where_it_began(optimizer, params, began)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:Profiler record_function")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_training_step_goes_back_as_a_plain_one() -> None:
    torch._dynamo.reset()
    courses = []
    for compiled in (False, True):
        params = parameters()[:3]
        optimizer = KINDS["AdamW"](params, control=FIND)
        noise = [torch.zeros_like(p) for p in params]

        def step(params: Any = params, optimizer: Any = optimizer, noise: Any = noise) -> None:
            pulls = [(p + n).square().sum() for p, n in zip(params, noise, strict=True)]
            loss = torch.stack(pulls).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for number_of_step in range(160):
            generator = torch.Generator().manual_seed(number_of_step)
            for n in noise:
                n.copy_(0.5 * torch.randn(n.shape, generator=generator))
            run()
            if number(optimizer, "rewind"):
                break
        courses.append((number_of_step, everything(optimizer, params)))
    assert 30 < courses[0][0] < 159
    assert_same(*courses)


def test_a_step_of_the_search_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = AdaptiveAdamW(params, None, control=FIND)
    train(optimizer, params, 0, 3)
    before = everything(optimizer, params)
    put_gradients(params, 3)
    with monkeypatch.context() as patch:
        patch.setattr(devices, "is_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph while"):
            optimizer.step()
    assert_same(everything(optimizer, params), before)


@pytest.mark.parametrize(
    ("told", "turns"),
    [(True, True), (False, True), (False, False), (True, False)],
    ids=["losses told", "none told", "up to the top", "weights lost"],
)
def test_the_log_says_when_at_what_rate_and_that_the_weights_went_back(
    told: bool, turns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    params = parameters()
    optimizer = AdaptiveAdamW(params, None, control=FIND)
    with caplog.at_level("INFO", logger="adaptiverl"):
        for step in range(160):
            put_gradients(params, step)
            if step > 35:  # from a rate of 0.2 on: against the update before, or along with it
                for param in params:
                    param.grad = optimizer.state[param]["exp_avg"] * (-1 if turns else 1)
            if told:
                optimizer.observe(3 + step % 2 + max(step - 38, 0))
            optimizer.step()
            if number(optimizer, "rewind"):
                break
    assert [record.levelname for record in caplog.records] == ["INFO"]
    rate, step = math.exp(number(optimizer, "log_lr")), step + 1
    lost = told and not turns
    assert optimizer.knobs()["held"] == (not lost)
    if not lost:
        expected = (
            f"holds the learning rate it found: {rate:.3g}, by step {step}; its weights are back "
            "where the search began, its moments at 0"
        )
    else:
        why = "no learning rate could be marked, so that it climbs slowly"
        expected = (
            "put its weights back where the search began, and its moments to 0, by step "
            f"{step}; {why}: {rate:.3g} now"
        )
    assert caplog.messages == [f"AdaptiveAdamW {expected}"]


# --- Memory that is put back ------------------------------------------------------------------


def rewinding(on: float) -> Tensor:
    state = torch.zeros(len(FIELDS), dtype=torch.float64)
    state[SLOT["rewind"]] = on
    return state


SIZES = (0, 1, 3, 4, 5, 64, 4099)


@pytest.mark.parametrize("on", [0.0, 1.0])
@pytest.mark.parametrize("walker", ["compiled", "reference"])
def test_memory_goes_back_where_the_state_says_so(walker: str, on: float) -> None:
    targets = [torch.arange(n, dtype=torch.uint8) + 1 for n in SIZES]
    sources = [torch.full_like(t, 200 + i) if i % 2 else None for i, t in enumerate(targets)]
    before = [t.clone() for t in targets]
    state = rewinding(on)
    if walker == "compiled":
        rows = [
            [t.data_ptr(), 0 if s is None else s.data_ptr(), t.nbytes]
            for t, s in zip(targets, sources, strict=True)
        ]
        torch.ops.adaptiverl.rewind_(torch.tensor(rows), state)
    else:
        for target, source in zip(targets, sources, strict=True):
            reference.rewind(target, source, state[SLOT["rewind"]])
    back = [torch.zeros_like(t) if s is None else s for t, s in zip(targets, sources, strict=True)]
    assert_same(targets, back if on else before)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (torch.zeros(2, 3), "regions must be int64"),
        (torch.zeros(2, 2, dtype=torch.int64), r"regions must be of shape \[regions, 3\]"),
        (torch.tensor([[0, 0, -1]]), "region 0 must not have a negative size, got -1"),
    ],
)
def test_the_operator_checks_what_it_can(regions: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adaptiverl.rewind_(regions, rewinding(1.0))
