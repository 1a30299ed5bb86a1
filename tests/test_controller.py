"""The C++ law, through `Controller`: against its Python twin and the oracle; state and trace."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from grids import pairwise
from law_twin import assert_equal, start
from pass_cases import as_kept
from streams import (
    loss_stream,
)
from tolerances import assert_close
from torch import Tensor

from adaptiverl import AdaptiveAdamW, Control, trace
from adaptiverl.controller import Controller
from adaptiverl.law.replay import replay
from adaptiverl.layout import FIELDS, LAWS, MEMORY_SIZE, SLOT, TRACE_COLUMNS, State
from adaptiverl.migrations import current_layout
from adaptiverl.step.entries import COLUMNS
from adaptiverl.trace import TRACE_CAPACITY

INF, NAN = math.inf, math.nan
LR, MOMENTUM = 1e-3, 0.9
# The first group as the controller starts, one with another rate, one with another momentum.
GROUPS = [
    [LR, MOMENTUM, 0.999, 1e-8, 0.0],
    [5e-3, 0.9, 0.99, 1e-8, 0.1],
    [LR, 0.6, 0.95, 1e-6, 0.0],
]


class Driver:
    """A controller beside a group table, as an optimizer would hold them."""

    def __init__(self, control: Control, seed: int = 0) -> None:
        self.controller = Controller(control, LR, MOMENTUM, seed=seed)
        self.groups = torch.tensor(GROUPS, dtype=torch.float64)
        self.effective = torch.zeros(len(GROUPS), 2, dtype=torch.float64)

    def step(self, loss: Any = None, reward: Any = None, found_inf: Tensor | None = None) -> State:
        if loss is not None:
            self.controller.observe(loss, reward)
        self.controller.advance(self.groups, self.effective, (), found_inf)
        return self.read()

    def read(self) -> State:
        return self.controller.read()

    def everything(self) -> list[Tensor]:
        c = self.controller
        # Beyond the rows that were written the ring is whatever memory held.
        ring = c.ring.on(c.device)
        written = ring[: 1 + min(int(ring[0, 0]), TRACE_CAPACITY)]
        return [x.clone() for x in (c.state, c.numbers, c.inbox, written, self.effective)]


def assert_bits(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise unless all bits agree, those of NaNs and signed zeros included."""
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.view(torch.int64), e.view(torch.int64), rtol=0, atol=0)


# --- Groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["replace", "modulate"])
def test_effective_groups(mode: Any) -> None:
    driver = Driver(Control(mode=mode, every=1))
    alpha_start = LR if mode == "replace" else 1.0
    driver.step(3.0)
    # α and μ have not moved: the groups' own numbers to the bit.
    assert driver.effective.tolist() == [group[:2] for group in GROUPS]
    for loss in loss_stream(300, seed=4):
        state = driver.step(loss)
        rates = [oracle.group_lr(g[0], state.lr, alpha_start, mode) for g in GROUPS]
        momenta = [oracle.group_momentum(g[1], state.momentum, MOMENTUM) for g in GROUPS]
        assert_close(driver.effective[:, 0], rates, "law")
        assert_close(driver.effective[:, 1], momenta, "law")
    assert driver.effective[:, 0].tolist() != [group[0] for group in GROUPS]


# --- Observing -------------------------------------------------------------------------------


def test_observations_of_one_step_are_averaged() -> None:
    control = Control(every=1, reward="given")
    many, one = Driver(control), Driver(control)
    for losses, rewards in (([1.0, 2.0, 6.0], [4.0]), ([2.0], []), ([0.5, 1.5], [1.0, 2.0])):
        for i, loss in enumerate(losses):
            many.controller.observe(loss, rewards[i] if i < len(rewards) else None)
        # Each by its own count: a reward that came with one loss of three is not divided by three.
        mean_reward = sum(rewards) / len(rewards) if rewards else None
        assert many.step() == one.step(sum(losses) / len(losses), mean_reward)
    assert many.read().loss == 1.0
    assert many.read().reward == 1.5


def test_a_bad_observation_spoils_its_average() -> None:
    driver = Driver(Control(every=1))
    driver.controller.observe(1.0)
    driver.controller.observe(NAN)
    state = driver.step()
    assert math.isnan(state.loss)
    assert (state.nonfinite, state.loss_count, state.updates) == (1, 0, 1)


@pytest.mark.parametrize("reward", [0.5, torch.tensor(0.5, dtype=torch.bfloat16)], ids=repr)
@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (2.5, 2.5),
        (3, 3.0),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([[2.5]], dtype=torch.float64), 2.5),
        (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (torch.tensor(2.5, dtype=torch.float16), 2.5),
        (np.float32(2.5), 2.5),
        (np.int16(3), 3.0),
        (np.array(2.5), 2.5),
        (np.array(3, np.int8), 3.0),
        (Fraction(5, 2), 2.5),
        (torch.tensor(2.5, requires_grad=True) * 1, 2.5),
        (torch.tensor(2**53 - 1), 2**53 - 1),  # which needs all of float64
    ],
    ids=repr,
)
def test_every_kind_of_number_is_observed(given: Any, loss: float, reward: Any) -> None:
    assert Driver(Control()).step(given).loss == loss
    state = Driver(Control(reward="given")).step(given, reward)
    assert (state.loss, state.reward) == (loss, 0.5)


def test_a_decision_is_made_anew_only_where_it_is_another() -> None:
    driver = Driver(Control())
    controller, flag = driver.controller, torch.zeros(())
    first = controller.advance(driver.groups, driver.effective)
    assert controller.advance(driver.groups, driver.effective) is first
    assert controller.advance(driver.groups, driver.effective, (), flag).skippable
    controller.advance(driver.groups, driver.effective)
    others = driver.groups.clone(), driver.effective.clone()
    assert controller.advance(others[0], driver.effective).groups is others[0]
    assert controller.advance(*others).effective is others[1]
    assert controller.advance(driver.groups, driver.effective) == first


def quantised(number: float) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop them
        return torch.quantize_per_tensor(torch.tensor(number), 0.1, 0, torch.quint8)


NESTED = torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged)
BAD_LOSSES: list[tuple[Any, type[Exception], str]] = [
    (torch.tensor([1.0, 2.0]), ValueError, r"one element, got shape \(2,\): reduce it first.*mean"),
    (torch.tensor([]), ValueError, r"one element, got shape \(0,\)"),
    (torch.tensor(1j), TypeError, r"real number, got dtype torch\.complex64"),
    (torch.tensor(True), TypeError, r"real number, got dtype torch\.bool"),
    (torch.tensor(1.0, device="meta"), TypeError, "no value: .* meta device"),
    (torch.ones(1).to_sparse(), TypeError, r"layout torch.sparse_coo: give \w+.to_dense\(\)"),
    (torch.ones(1).to_mkldnn(), TypeError, "layout torch._mkldnn: give"),
    (NESTED, TypeError, "a nested tensor: give"),
    (quantised(1.0), TypeError, r"quantised, torch.quint8: give \w+.dequantize\(\)"),
    (10**400, ValueError, r"float64 holds, got one beyond 1.8e308: give float\('inf'\)"),
    (np.ones(2), TypeError, r"got array\(\[1., 1.\]\) of type ndarray"),
    (np.array(True), TypeError, "got np.True_ of type bool"),
    ("1.0", TypeError, r"tensor with one element, got '1\.0' of type str"),
    (None, TypeError, "got None of type NoneType"),
    (True, TypeError, "got True of type bool"),
    (1j, TypeError, "got 1j of type complex"),
    ([1.0], TypeError, r"got \[1\.0\] of type list"),
]


@pytest.mark.parametrize("every", [10, None])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_LOSSES, ids=lambda x: repr(x)[:25])
def test_a_loss_is_refused_and_nothing_changes(
    bad: Any, error: type[Exception], message: str, every: int | None
) -> None:
    driver = Driver(Control(reward="given", every=every))
    tell = driver.controller.observe if every else driver.controller.update
    driver.step(3.0, 1.0)
    if every:  # an update begins by emptying the inbox
        driver.controller.observe(2.0)
    before = driver.everything()
    for name, told in (("loss", (bad,)), ("reward", (2.0, bad))):
        if name == "loss" or bad is not None:
            with pytest.raises(error, match=f"^{name} .*{message}"):
                tell(*told)
    assert_bits(driver.everything(), before)
    assert driver.controller.observed == (1 if every else 0)


@pytest.mark.parametrize("mode", ["neg_loss", "none"])
def test_a_reward_in_the_wrong_mode(mode: Any) -> None:
    driver = Driver(Control(reward=mode))
    before = driver.everything()
    message = rf"got a reward, but Control\.reward is '{mode}': use Control\(reward='given'\)"
    with pytest.raises(ValueError, match=message):
        driver.controller.observe(1.0, 1.0)
    assert_bits(driver.everything(), before)
    assert (driver.controller.observed, driver.controller.ever_observed) == (0, False)


# --- Steps that are none ---------------------------------------------------------------------


def test_found_inf_skips_everything() -> None:
    skipping, plain = Driver(Control(every=2)), Driver(Control(every=2))
    for loss in (3.0, 2.0, 2.5):
        skipping.step(loss)
        plain.step(loss)
    before = skipping.everything()
    skipped = skipping.step(1e6, found_inf=torch.tensor([1.0]))
    after = skipping.everything()
    assert skipped.active == 0.0
    after[0][SLOT["active"]] = 1.0
    assert_bits(after, before)
    assert skipping.controller.observed == 0
    # Its observation went with it, and it is no step: the next is t = 4 as if nothing had been.
    assert skipping.step(2.0, found_inf=torch.tensor([0.0])) == plain.step(2.0)
    assert_bits(skipping.everything(), plain.everything())


def test_found_inf_leaves_the_parameters_counters() -> None:
    driver = Driver(Control())
    step, product = torch.tensor(5.0), as_kept(0.5, 5)
    row = torch.zeros(1, len(COLUMNS), dtype=torch.int64)
    for name, value in (
        ("step", step.data_ptr()),
        ("mu_product", product.data_ptr()),
        ("group", 2),
    ):
        row[0, COLUMNS.index(name)] = value

    def after(found_inf: float | None) -> tuple[float, float]:
        flag = None if found_inf is None else torch.tensor(found_inf)
        driver.controller.advance(driver.groups, driver.effective, [row], flag)
        return step.item(), product[0].item()

    assert after(1.0) == (5.0, 0.5)
    assert after(0.0) == (6.0, 0.5 * 0.6)
    assert after(None) == (7.0, 0.5 * 0.6 * 0.6)
    step.zero_()  # by who resets the parameter, who may not know of the product
    assert after(1.0) == (0.0, 0.5 * 0.6 * 0.6)
    assert after(None) == (1.0, 0.6)


@pytest.mark.parametrize("every", [1, 10, None])
def test_nothing_observed_at_a_rate_of_zero_changes_nothing(every: int | None) -> None:
    driver = Driver(Control(every=every))
    driver.groups[:, 0] = 0.0
    before = driver.everything()[:4]
    driver.step()
    assert_bits(driver.everything()[:4], before)
    # One group that does move, or one loss, makes it a step.
    driver.groups[2, 0] = 1e-3
    assert driver.step().step == 1
    driver.groups[:, 0] = 0.0
    assert driver.step(1.0).step == 2


# --- The trace -------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [0, 1, 7, 15, 16, 17, 23, 32, 35])
def test_the_trace_keeps_the_last_updates(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = 16
    monkeypatch.setattr(trace, "TRACE_CAPACITY", capacity)
    controller = Controller(Control(every=None), LR, MOMENTUM)
    assert controller.ring.rows is None
    losses = [3.0 + math.sin(i) for i in range(updates)]
    states = replay(losses, controller.control, lr=LR)[-capacity:]
    for loss in losses:
        controller.update(loss)
    found = controller.trace()
    assert list(found) == list(TRACE_COLUMNS)
    for column in TRACE_COLUMNS:
        assert found[column].dtype == torch.float64
        assert_close(found[column], [getattr(s, column) for s in states], "law")
    assert found["loss"].tolist() == losses[-capacity:]


def test_trace_records_updates_not_steps() -> None:
    driver = Driver(Control(every=3))
    for t in range(1, 11):
        driver.step(float(t))
    assert driver.controller.trace()["step"].tolist() == [3, 6, 9]
    assert driver.controller.trace()["loss"].tolist() == [3, 6, 9]


def test_trace_is_a_copy_and_names_its_columns() -> None:
    driver = Driver(Control(every=1))
    driver.step(3.0)
    found = driver.controller.trace()
    driver.step(2.0)
    assert found["loss"].tolist() == [3.0]
    assert repr(found).startswith("Trace(1 updates: step, loss")
    with pytest.raises(KeyError, match="no column 'alpha'; it has step, loss"):
        found["alpha"]


# --- Adopting a state ------------------------------------------------------------------------


def test_adopt_goes_on_where_the_other_was() -> None:
    control = Control(every=1)
    first, second = Driver(control), Driver(control, seed=9)
    for loss in loss_stream(40, seed=2):
        first.step(loss)
        second.step(3.0)
    second.controller.observe(100.0)
    memory, address = second.controller.memory, second.controller.state.data_ptr()
    second.controller.adopt(first.controller.memory.clone())
    # At its own address, and seen by whoever holds the old view.
    assert second.controller.state.data_ptr() == address
    assert second.controller.memory is memory
    assert memory.data_ptr() == address
    assert second.controller.observed == 0
    # The trace is of this process; it starts empty.
    assert second.controller.trace()["lr"].numel() == 0
    for loss in loss_stream(40, seed=3):
        assert repr(second.step(loss)) == repr(first.step(loss))
    assert second.controller.trace()["lr"].numel() == 40


def test_reset_goes_back_to_the_start() -> None:
    driver, fresh = Driver(Control(every=1), seed=5), Driver(Control(every=1), seed=5)
    for loss in (3.0, 2.0, NAN):
        driver.step(loss)
    driver.controller.reset()
    assert_bits(driver.everything()[:4], fresh.everything()[:4])


def test_adopt_refuses_what_is_no_memory_and_changes_nothing() -> None:
    """Every kind of damage is in test_checkpoints.py."""
    driver = Driver(Control(every=1))
    for loss in (3.0, 2.0):
        driver.step(loss)
    before = driver.everything()
    said = (
        "^'adaptive_state' must be a float64 tensor of 124 numbers whose first is 8, got "
        r"torch\.float16 of shape \(124,\).*nothing was changed$"
    )
    with pytest.raises(ValueError, match=said):
        driver.controller.adopt(Controller(Control(), LR, MOMENTUM).memory.half())
    assert_bits(driver.everything(), before)
    current_layout(driver.controller.memory)


@pairwise(
    law=LAWS,
    mode=["replace", "modulate"],
    momentum=[0.0, 0.5, 0.9, 0.999],
    noise_bounds=[(0.0, 0.1), (0.0, 0.0), (0.02, 0.3)],
)
def test_state_starts_as_the_law_does(
    law: Any, mode: Any, momentum: float, noise_bounds: Any
) -> None:
    told: Any = {"horizon": 100} if law == "distilled" else {}
    control = Control(law=law, mode=mode, noise_bounds=noise_bounds, **told)
    controller = Controller(control, 0.3, momentum, seed=2**64 - 2)
    # All but the flags of the step in progress is what checkpoints keep.
    assert (controller.state.shape, controller.memory.shape) == ((len(SLOT),), (MEMORY_SIZE,))
    assert FIELDS[MEMORY_SIZE:] == ("active", "rewind")
    assert_equal([controller.read()], [start(control, 0.3, momentum, 2**64 - 2)])


# --- The operators ---------------------------------------------------------------------------


def test_read_groups_is_what_the_step_used() -> None:
    d = Driver(Control(every=1))
    for loss in (3.0, 2.0, 1.0):
        d.step(loss)
    state, effective = d.controller.state.clone(), torch.zeros_like(d.effective)
    d.controller.read_groups(d.groups, effective)
    assert_bits([effective, d.controller.state], [d.effective, state])


FLOATS: dict[str, Any] = {"dtype": torch.float64}


def opcheck_arguments() -> list[tuple[str, Callable[[Driver], tuple[Any, ...]]]]:
    """An operator's name, and what makes arguments for it."""
    sums = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, 0.125]], dtype=torch.float64)
    rows = torch.empty(0, len(COLUMNS), dtype=torch.int64)
    one = torch.tensor(1.0)

    def advance(found_inf: Tensor | None) -> Callable[[Driver], tuple[Any, ...]]:
        return lambda d: (*memory(d), d.groups, d.effective, [rows], found_inf)

    def reduce(tables: list[Tensor]) -> Callable[[Driver], tuple[Any, ...]]:
        return lambda d: (d.controller.state, tables)

    def memory(d: Driver) -> tuple[Any, ...]:
        c = d.controller
        return c.state, c.numbers, c.inbox, c.ring.on(c.device)

    return [
        ("observe_", lambda d: (d.controller.inbox, one, None)),
        ("observe_", lambda d: (d.controller.inbox, one, one)),
        ("observe_numbers_", lambda d: (d.controller.inbox, 1.0, None)),
        ("observe_numbers_", lambda d: (d.controller.inbox, 1.0, 2.0)),
        ("update_", memory),
        ("pulse_", lambda d: (d.controller.state, d.controller.numbers, torch.ones(4, **FLOATS))),
        *[("reduce_alignment_", reduce(t)) for t in ([], [sums], [sums[:1], sums])],
        ("start_", lambda d: (d.controller.state, d.controller.numbers, LR, MOMENTUM, 1.0, 2.0)),
        ("read_groups_", lambda d: (d.controller.state, d.groups, d.effective)),
        *[("advance_", advance(flag)) for flag in (None, torch.tensor(0.0), one)],
    ]


@pytest.mark.parametrize(("operator", "arguments"), opcheck_arguments())
def test_opcheck(operator: str, arguments: Callable[[Driver], tuple[Any, ...]]) -> None:
    driver = Driver(Control(every=1))
    driver.controller.observe(2.0)
    torch.library.opcheck(getattr(torch.ops.adaptiverl, operator).default, arguments(driver))


IN_ADVANCE = "state numbers inbox trace groups effective rows found_inf".split()
WRONG: list[tuple[str, Any, str]] = [
    ("state", torch.zeros(118, **FLOATS), "state must hold 126 numbers, got 118"),
    ("state", torch.zeros(126), "state must be float64"),
    ("numbers", torch.zeros(7, **FLOATS), "numbers must hold at least 1 records of 124"),
    ("inbox", torch.zeros(4), "inbox must be float64"),
    ("trace", torch.zeros(20, **FLOATS), "trace must hold at least 2 records of 30"),
    ("groups", torch.zeros(2, 4, **FLOATS), "groups must hold at least 1 records of 5"),
    ("effective", torch.zeros(1, 2, **FLOATS), "effective must hold at least 3 records of 2"),
    ("rows", [torch.zeros(1, 12, dtype=torch.int64)], r"rows must be of shape \[tensors, 14\]"),
    ("rows", [torch.zeros(1, 14)], "rows must be int64"),
    ("found_inf", torch.zeros((), **FLOATS), "found_inf must be float32"),
    ("sums", [torch.zeros(2, 3)], "sums must be float64"),
    ("sums", [torch.zeros(2, 4, **FLOATS)], "sums must hold .* records of 3 numbers"),
    ("sums", [torch.zeros(4, **FLOATS)], "sums must hold"),
    ("sums", [torch.zeros(3, 2, **FLOATS).t()], "sums must be contiguous"),
]


@pytest.mark.parametrize(("place", "wrong", "message"), WRONG)
def test_operator_checks_what_it_is_given(place: str, wrong: Any, message: str) -> None:
    d = Driver(Control(every=1))
    d.controller.observe(2.0)
    c, ops = d.controller, torch.ops.adaptiverl
    advanced: Any = (
        c.state,
        c.numbers,
        c.inbox,
        c.ring.on(c.device),
        d.groups,
        d.effective,
        [],
        None,
    )
    advance = dict(zip(IN_ADVANCE, advanced, strict=True))
    reduce = {"state": c.state, "sums": [torch.ones(1, 3, **FLOATS)]}
    before = d.everything()
    for operator, given in ((ops.advance_, advance), (ops.reduce_alignment_, reduce)):
        if place in given:
            with pytest.raises(RuntimeError, match=message):
                operator(*(given | {place: wrong}).values())
            assert_bits(d.everything(), before)


def test_observe_mutates_the_inbox_it_is_given() -> None:
    """Wrappers call `observe` with another self: the inbox must be the same object throughout."""
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = AdaptiveAdamW([param], lr=LR)
    inbox = optimizer._controller.inbox
    optimizer.observe(torch.tensor(2.0))
    assert optimizer._controller.inbox is inbox
    assert inbox.tolist() == [2.0, 1.0, 0.0, 0.0]
