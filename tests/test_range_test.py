"""The range test (method.md#range-test): by hand, against the oracle, and its promises.

Most tests are run on both twins: the Python law and the C++ controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_twin import LR, MOMENTUM, assert_equal, both, break_law, compare, course, make
from streams import (
    RANGE_TEST_COURSES,
    Step,
    Sums,
    alignment_stream,
    assert_same_course,
    cosines,
    course_of,
    oracle_course,
    sums_of,
)
from tolerances import assert_close

from adaptiverl import Control
from adaptiverl.law import range_test
from adaptiverl.layout import State

INF, NAN = math.inf, math.nan
FOOT, FLOOR, R = 1e-6, 1e-4, 0.35
RAMP = Control(law="range_test", every=1, horizon=1000)


def with_cosine(cosine: float) -> Sums:
    """|g| = 4 and |u| = 2."""
    return (8 * cosine, 16.0, 4.0)


def sweeps(cosines: Sequence[float]) -> list[Step]:
    return [Step(sums) for sums in sums_of(cosines)]


def first(states: Sequence[State], name: str) -> int | None:
    return next((i for i, state in enumerate(states) if getattr(state, name)), None)


# --- By hand ----------------------------------------------------------------------------------


@both
def test_the_foot_of_the_ramp_by_hand(twin: str) -> None:
    driven = make(twin, RAMP)
    foot = math.log(FOOT)
    # The first step begins, and what was summed before it is of no rate of this ramp.
    state = driven.step(Step(None))
    assert (state.searching, state.search_steps, state.held, state.anneal) == (1, 0, 0, 1)
    assert_close(state.lr, FOOT, "alignment_law")
    # The second step's sums are the first that there are, of the first step's update.
    state = driven.step(Step(with_cosine(0.5)))
    assert_close(state.log_lr, foot, "alignment_law")
    for n, cosine in enumerate((0.3, -0.1, 0.3), start=1):
        state = driven.step(Step(with_cosine(cosine)))
        assert_close(state.log_lr, foot + n * R, "alignment_law")
        assert_close(state.log_lr_judged, foot + (n - 1) * R, "alignment_law")
    # e after 0.5, 0.3 and −0.1, weighted 0.49, 0.7 and 1; its largest was the first.
    e = (0.49 * 0.5 + 0.7 * 0.3 - 0.1) / (0.49 + 0.7 + 1)
    assert_close(state.alignment_mean, e, "alignment_law")
    assert_close(state.alignment_mean_weight, 1 - 0.7**3, "alignment_law")
    assert_close(state.alignment_peak, 0.5, "alignment_law")
    # S2 with weights 0.81, 0.9 and 1, and z = −0.1/√S2. Below 1e-4 nothing speaks against a rate.
    square = (0.81 * 0.25 + 0.9 * 0.09 + 0.01) / (0.81 + 0.9 + 1)
    assert_close(state.alignment_square / state.alignment_weight, square, "alignment_law")
    assert_close(state.alignment_direction, -0.1 / math.sqrt(square), "alignment_law")
    assert (state.overshoot, state.search_steps, state.active, state.rewind) == (0, 4, 1, 0)
    assert state.log_lr_zero == -INF


def on_the_ramp(twin: str, control: Control = RAMP, at: float = 1e-2, **more: float) -> Any:
    """Where e = 0.2 of a peak of 0.4, at a rate of `at`, and the update before at 1/1.42 of it."""
    driven = make(twin, control)
    driven.step(Step(None))
    log_lr = math.log(at)
    # A history of ±0.3: RMS 0.3, and weights that have come to 1.
    driven.put(alignment_square=0.09, alignment_weight=1.0, alignment_mean_weight=1.0)
    driven.put(alignment_mean=0.2, alignment_peak=0.4, log_lr=log_lr, log_lr_judged=log_lr - R)
    driven.put(**more)
    return driven


@both
@pytest.mark.parametrize(
    ("cosine", "share"),
    [
        (0.3, 0.23 / 0.4),  # e = 0.7·0.2 + 0.3·0.3 = 0.23
        (0.9, 1.0),  # e = 0.41, the new peak
        (-0.3, 0.3),  # e = 0.05, an eighth of the peak: at least 0.3 of the ramp is left
        (-0.9, 0.3),  # e < 0
    ],
)
def test_the_ramp_is_less_steep_where_updates_hardly_point_downhill(
    twin: str, cosine: float, share: float
) -> None:
    driven = on_the_ramp(twin)
    before = driven.step(Step(with_cosine(cosine)))
    state = driven.step(Step(None))
    assert_close(state.log_lr - before.log_lr, R * share, "alignment_law", scale=5.0)
    e = 0.7 * 0.2 + 0.3 * cosine
    assert state.log_lr_zero == (-INF if e > 0 else before.log_lr_judged)
    # z of the new average, of which the newest square is a tenth.
    z = cosine / math.sqrt(0.9 * 0.09 + 0.1 * cosine * cosine)
    evidence = max(-0.3 * max(min(z, 2.0), -2.0) - 0.045, 0.0)
    assert_close(state.overshoot, evidence, "alignment_law", scale=1.0)
    assert state.log_lr_judged == before.log_lr


@both
@pytest.mark.parametrize(("at", "marks"), [(1e-4 * (1 - 1e-9), False), (1e-4 * (1 + 1e-9), True)])
def test_the_mark_is_the_first_rate_from_the_floor_on_where_e_is_not_above_0(
    twin: str, at: float, marks: bool
) -> None:
    driven = on_the_ramp(twin)
    driven.put(log_lr_judged=math.log(at))
    driven.step(Step(with_cosine(-0.9)))
    state = driven.step(Step(with_cosine(0.9)))
    assert_close(state.log_lr_zero, math.log(at) if marks else -INF, "alignment_law", scale=5.0)
    for cosine in (0.9, -0.9, -0.9, 0.9):  # e comes back above 0, and goes again
        state = driven.step(Step(with_cosine(cosine)))
    # The next update that it could mark was at the first rate of this ramp.
    expected = math.log(at) if marks else math.log(1e-2)
    assert state.log_lr_zero == pytest.approx(expected, abs=3 * R)
    assert (state.log_lr_zero > math.log(9e-3)) == (not marks)


HELD: list[tuple[dict[str, Any], float]] = [
    # 0.7, beyond 1,000 steps 0.7·(T/1,000)^(−1/3); half of that where nobody anneals.
    ({"horizon": 1000}, 0.7),
    ({"horizon": 160}, 0.7),
    ({"horizon": 8000}, 0.35),
    ({"horizon": 8000, "mode": "modulate"}, 0.35),
    ({"horizon": 64_000}, 0.175),
    ({"horizon": None}, 0.35),
    ({"horizon": None, "mode": "modulate"}, 0.7),
]


@both
@pytest.mark.parametrize(("arguments", "share"), HELD, ids=str)
def test_held_is_a_share_of_the_mark(twin: str, arguments: dict[str, Any], share: float) -> None:
    at = 1e-2 / LR if "mode" in arguments else 1e-2
    driven = on_the_ramp(twin, replace(RAMP, **arguments), at, overshoot=3.9)
    log_lr = math.log(at)
    driven.put(log_lr_zero=log_lr - 2.0, alignment_mean=-0.2)
    driven.step(Step(with_cosine(-0.3)))
    state = driven.step(Step(with_cosine(0.3)))  # 3.9 + 0.3 − 0.045 > 4
    assert (state.held, state.held_at, state.searching, state.climbing) == (1, 3, 0, 0)
    assert (state.rewind, state.active) == (1, 0)
    assert_close(state.log_lr, log_lr - 2.0 + math.log(share), "alignment_law")
    # What is held does not move while it warms up, and nobody goes back twice. The sums of a step
    # that nothing took are not there; those of the next are the first of the moments' new start.
    assert state.aligned_pending == 0
    for cosine in (-0.9, NAN, 0.5):
        after = driven.step(Step(with_cosine(cosine)))
        assert (after.held, after.log_lr, after.rewind, after.active) == (1, state.log_lr, 0, 1)


@both
@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        # From a tenth up over 150 steps from the one that was held at, t = 2, in equal factors, and
        # down over the last 400. From less, over more, in a longer run; not from more in a shorter.
        (1000, {2: 0.1, 77: 10**-0.5, 152: 1.0, 599: 1.0, 700: 0.75, 1000: 0.0}),
        (4000, {2: 1 / 40, 302: 40**-0.5, 602: 1.0, 2400: 1.0, 2800: 0.75}),
        (400, {2: 0.1, 32: 10**-0.5, 62: 1.0, 240: 1.0, 280: 0.75, 400: 0.0}),
    ],
)
def test_a_warm_up_a_stretch_and_a_cooldown_by_hand(
    twin: str, horizon: int, expected: dict[int, float]
) -> None:
    control = replace(RAMP, horizon=horizon)
    driven = on_the_ramp(twin, control, log_lr_zero=-4.5, log_lr_risen=-4.0)
    states = [driven.step(Step(None)) for _ in range(max(expected))]
    assert first(states, "held") == 0
    for t, share in expected.items():
        assert_close(states[t - 2].anneal, share, "alignment_law", scale=1.0)
        held = math.exp(states[t - 2].log_lr)
        assert_close(states[t - 2].lr, share * held, "alignment_law", scale=held)


@both
@pytest.mark.parametrize(
    ("at", "again"), [(1e-5, True), (1e-2, False)], ids=["below the floor", "above it"]
)
def test_where_h_is_not_finite_it_goes_back_and_begins_again_or_holds(
    twin: str, at: float, again: bool
) -> None:
    driven = on_the_ramp(twin, at=at)
    driven.step(Step(with_cosine(NAN)))
    state = driven.step(Step(None))
    assert (state.rewind, state.active, state.climbing) == (1, 0, not again)
    if again:
        fresh = make(twin, RAMP).step(Step(None))
        names = set(RANGE_TEST_COURSES) - {"anneal"}
        assert [getattr(state, n) for n in names] == [getattr(fresh, n) for n in names]
        assert (state.searching, state.search_steps) == (1, 2)  # which go on being counted
    else:
        # It counts as a rise of the loss; without a mark before it there is none.
        assert_close(state.log_lr, math.log(FLOOR), "alignment_law")


# What a climb starts at: three tenths of what would be held.
FROM_BELOW = math.log(0.3 * 0.7)


@both
@pytest.mark.parametrize(
    ("arguments", "within", "climbs"),
    [
        ({"horizon": 160}, 40, False),
        ({"horizon": 336}, 50, False),
        ({"horizon": 600}, 90, False),
        ({"horizon": 8000}, 1200, False),
        ({"horizon": None}, 150, False),
        ({"horizon": 900, "cooldown": 0.9}, 89, False),  # the cooldown's 90th step comes first
    ],
    ids=str,
)
def test_a_ramp_that_never_overshoots_ends_all_the_same(
    twin: str, arguments: dict[str, Any], within: int, climbs: bool
) -> None:
    # Up and up, and then nothing to read any more: what is to be judged next is the mark.
    steps = [*sweeps([0.5] * 30), *[Step(None)] * (within - 25)]
    states = course(twin, replace(RAMP, **arguments), steps)
    assert first(states, "rewind") == within
    end = states[within]
    assert (end.climbing, end.held, end.active) == (climbs, not climbs, 0)
    share = 0.35 if arguments["horizon"] in (None, 8000) else 0.7
    assert_close(end.log_lr, math.log(FOOT) + 29 * R + math.log(share), "alignment_law", scale=5.0)


@both
@pytest.mark.parametrize(("last", "climbs"), [(0.5, False), (-3.0, True)])
def test_up_to_the_top_it_holds_where_updates_point_downhill(
    twin: str, last: float, climbs: bool
) -> None:
    """A bound of the user's below every rate that overshoots, or just above the first."""
    control = replace(RAMP, lr_bounds=(1e-6, 1e-3))
    states = course(twin, control, sweeps([*[0.5] * 21, last, 0.5]))
    end = states[-1]
    assert (end.rewind, end.step) == (1, 23)  # 20 steps up, and two until one is judged there
    assert (end.climbing, end.held) == (climbs, not climbs)
    assert end.log_lr_zero == math.log(1e-3)  # the bound counts as a mark
    share = FROM_BELOW if climbs else math.log(0.7)
    assert_close(end.log_lr, math.log(1e-3) + share, "alignment_law")


@both
@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_bounds": (5e-3, 5e-3)},
        {"lr_bounds": (1e-6, 5e-3), "acquire_from": 5e-3},
        {"lr_bounds": (5e-3, 5e-3), "mode": "modulate"},
    ],
    ids=str,
)
def test_where_nothing_lies_above_the_foot_it_holds_that(
    twin: str, arguments: dict[str, Any]
) -> None:
    states = course(twin, replace(RAMP, **arguments), sweeps([0.5, -0.5] * 40))
    assert all(state.held and not state.rewind and state.active for state in states)
    assert {state.log_lr for state in states} == {math.log(5e-3)}


@both
@pytest.mark.parametrize(
    ("more", "outcome"),
    [
        # By the loss, which rose within a factor of 30 of the mark, and not far below it.
        ({"log_lr_risen": math.log(29.9)}, "held"),
        ({"log_lr_risen": math.log(30.1)}, "goes on"),
        ({"log_lr_risen": -math.log(9.9)}, "held"),
        ({"log_lr_risen": -math.log(10.1)}, "lost"),
        # By h, which is sure within a factor of 100 of it.
        ({"overshoot": 4.1, "log_lr_judged": math.log(99.0)}, "held"),
        ({"overshoot": 4.1, "log_lr_judged": math.log(101.0)}, "climbs"),
        ({"overshoot": 3.9, "log_lr_judged": math.log(99.0)}, "goes on"),
        ({"overshoot": 3.9, "log_lr_judged": math.log(101.0)}, "climbs"),
        ({"log_lr_risen": -math.log(10.1), "overshoot": 4.1}, "lost"),
    ],
    ids=str,
)
def test_what_confirms_a_mark(twin: str, more: dict[str, float], outcome: str) -> None:
    """Logarithms of rates over the mark's."""
    driven = on_the_ramp(twin)
    driven.step(Step(None))
    mark = math.log(2e-2)
    driven.put(log_lr_zero=mark, log_lr_judged=mark)
    driven.put(**{k: v + mark if k.startswith("log_lr") else v for k, v in more.items()})
    state = driven.step(Step(None))
    assert state.rewind == (outcome != "goes on")
    assert (state.held, state.climbing) == (outcome == "held", outcome in ("climbs", "lost"))
    if outcome == "goes on":
        return
    start = {"held": mark + math.log(0.7), "climbs": mark + FROM_BELOW, "lost": math.log(FLOOR)}
    assert_close(state.log_lr, start[outcome], "alignment_law", scale=5.0)
    assert state.log_lr_zero == (-INF if outcome == "lost" else mark)
    sensed = (state.alignment_square, state.alignment_mean, state.overshoot, state.undershoot)
    assert sensed == (0, 0, 0, 0)


@both
def test_the_rise_of_a_loss_by_hand(twin: str) -> None:
    driven = make(twin, RAMP)
    driven.step(Step(None))
    losses = [2.0, 4.0] * 6  # the half square of every difference is 2
    mean = 2.0
    for loss in losses[1:]:
        mean += 0.3 * (loss - mean)
    for n, told in enumerate([*losses, NAN, None]):  # the last two are not heard
        state = driven.step(Step(None, told))
        assert state.ramp_losses == min(n, 12)  # a step late
    assert (state.ramp_losses, state.ramp_loss) == (12, 4.0)
    assert_close(state.ramp_loss_square, 2.0, "alignment_law")
    assert_close(state.ramp_loss_least, mean, "alignment_law")
    limit = mean + 9 * math.sqrt(2 * 2.0 * 0.3 / 1.7)
    assert_close(state.ramp_loss_limit, limit, "alignment_law")
    # From below the limit to above it: the mean takes 0.3 of what is new.
    for above, before, risen in ((-1e-6, 1.0, False), (1e-6, -1e-6, False), (1e-6, 1e-6, True)):
        driven.put(ramp_loss_mean=mean, ramp_loss=limit + before, log_lr_judged=-3.0)
        driven.step(Step(None, mean + (limit + above - mean) / 0.3))
        state = driven.step(Step(None))
        assert state.log_lr_risen == (-3.0 if risen else -INF)
    # Once it has risen, that rate stays.
    driven.put(log_lr_judged=-2.0)
    driven.step(Step(None, 1e6))
    assert driven.step(Step(None)).log_lr_risen == -3.0


def held(twin: str, control: Control = RAMP, risen: float = -4.0) -> Any:
    """Held at e^−5 from step 2 on, and warm."""
    driven = on_the_ramp(twin, control, overshoot=4.1, log_lr_zero=-4.5, log_lr_risen=risen)
    driven.step(Step(with_cosine(-0.9)))
    driven.step(Step(None))
    for _ in range(math.ceil(0.15 * (control.known_horizon or 1000))):
        driven.step(Step(None))
    driven.step(Step(with_cosine(0.9)))
    driven.put(log_lr=-5.0)
    return driven


@both
@pytest.mark.parametrize(
    ("fallen", "risen", "climbs"),
    [
        (0.0, -INF, True),
        (0.99, -INF, True),
        (1.01, -INF, False),  # by one standard error of the difference
        (-0.9, -INF, True),
        (-1.1, -INF, True),  # it rose
        (0.0, -4.0, False),  # the loss confirmed the mark on the ramp
        (0.0, -1.0, True),  # it rose, too late to confirm it
    ],
)
def test_what_h_alone_confirmed_is_watched(
    twin: str, fallen: float, risen: float, climbs: bool
) -> None:
    driven, watched = held(twin, risen=risen), risen != -4.0
    # Two windows of 50, of ±1 around their means: each mean's variance is 1/50.
    rest = fallen * math.sqrt(2 / 50)
    told = [*[3.0, 1.0] * 25, *[3.0 - rest, 1.0 - rest] * 25]
    for n, loss in enumerate([*told[:7], NAN, None, *told[7:]]):
        state = driven.step(Step(None, loss))
        assert (state.held, state.climbing) == (1, 0)
        if n == 50 and watched:
            assert (state.watches, state.watched) == (0, 48)  # a step late, and two were none
    assert state.watched == (49 if watched else 0)
    state = driven.step(Step(None, 2.0))
    assert (state.climbing, state.held, state.rewind) == (climbs, not climbs, 0)
    assert state.watches == (2 + climbs if watched else 0)
    assert_close(state.log_lr, -5.0 + (math.log(0.3) if climbs else 0.0), "alignment_law")
    if climbs:  # what it may come back to: less, where the loss had risen there
        assert_close(state.log_lr_judged, -5.0 + (fallen < -1) * math.log(0.3), "alignment_law")
    if watched:
        assert_close(state.watched_before, 2.0 - rest, "alignment_law")
        assert_close(state.watched_error, 1 / 50, "alignment_law")


@both
@pytest.mark.parametrize(
    ("heard", "mean", "learned"), [(12, 1.4, True), (12, 1.6, False), (11, 1.4, False)]
)
def test_a_model_whose_loss_fell_far_below_the_ramps_is_at_its_floor(
    twin: str, heard: float, mean: float, learned: bool
) -> None:
    """The least mean of the ramp's losses was 2; a rise by 0.5 would have been one."""
    driven = held(twin, risen=-INF)
    driven.put(ramp_losses=heard, ramp_loss_least=2.0, ramp_loss_limit=2.5)
    for _ in range(101):
        state = driven.step(Step(None, mean))
    assert (state.watches, state.climbing, state.held) == (2 + (not learned), not learned, learned)


@both
def test_the_climb_that_a_watch_began_turns_back_where_the_loss_rises(twin: str) -> None:
    driven = held(twin, risen=-1.0)
    for _ in range(101):
        state = driven.step(Step(None, 2.0))
    assert (state.climbing, state.held, state.ramp_losses, state.log_lr_risen) == (1, 0, 0, -INF)
    # Of constant losses the limit is the mean itself, from the twelfth on; two must be above it.
    states = [driven.step(Step(with_cosine(0.9), 2.0 if n < 14 else 2.1)) for n in range(17)]
    assert [state.climbing for state in states] == [1] * 16 + [0]
    climbed, back = states[-2:]
    assert climbed.log_lr > -5.0 + math.log(0.3)
    assert (back.held, back.log_lr, back.log_lr_risen, back.anneal) == (1, -5.0, -5.0, 1)
    # And that is for good.
    for _ in range(200):
        state = driven.step(Step(None, 2.0))
    assert (state.watches, state.held, state.log_lr) == (3, 1, -5.0)


@both
def test_a_climb_that_no_watch_began_does_not_turn_back(twin: str) -> None:
    """As one of a checkpoint from before the watch: what it would come back to is not known."""
    driven = held(twin)
    driven.put(climbing=1.0, held=0.0, watches=2.0, log_lr_risen=-1.0, log_lr_judged=-0.5)
    for n in range(40):
        state = driven.step(Step(with_cosine(0.9), 2.0 + n))
    assert (state.climbing, state.held) == (1, 0)


@both
@pytest.mark.parametrize(
    "more", [{"log_lr_zero": math.log(3.0)}, {"log_lr": math.log(3.0)}], ids=["mark", "rate"]
)
def test_nothing_is_watched_where_nothing_lies_above(twin: str, more: dict[str, float]) -> None:
    driven = held(twin, risen=-1.0)
    driven.put(**more)
    for _ in range(120):
        state = driven.step(Step(None, 1.0))
    assert (state.watches, state.climbing, state.held) == (0, 0, 1)


@both
def test_nothing_is_watched_where_a_climb_would_have_no_room(twin: str) -> None:
    driven = held(twin, replace(RAMP, horizon=400), risen=-INF)  # warm at 63, room until 140
    for _ in range(90):
        state = driven.step(Step(None, 1.0))
    assert (state.watches, state.climbing, state.held) == (3, 1, 0)
    driven = held(twin, replace(RAMP, horizon=320), risen=-INF)  # 51, and 92
    for _ in range(90):
        state = driven.step(Step(None, 1.0))
    assert (state.watches, state.climbing, state.held) == (1, 0, 1)


@both
def test_the_held_rate_creeps_up_while_updates_are_sure_to_point_downhill(twin: str) -> None:
    driven = held(twin)
    # z = 1 throughout: 0.3 − 0.045 in each step, above 5 in the twentieth. The mark is at −4.5.
    for n in range(1, 61):
        state = driven.step(Step(with_cosine(0.9)))
        assert_close(state.undershoot, 0.255 * (n % 20), "alignment_law", scale=5.0)
        expected = (-5.0, -4.7, -4.5, -4.5)[n // 20]
        assert_close(state.log_lr, expected, "alignment_law", scale=5.0)
    # What points uphill takes away from it, and what is not finite says nothing.
    before = driven.step(Step(with_cosine(0.9))).undershoot
    assert driven.step(Step(with_cosine(NAN))).undershoot > before
    assert driven.step(Step(None)).undershoot > before
    for _ in range(9):
        state = driven.step(Step(with_cosine(-0.9)))
    assert state.undershoot == 0


@both
@pytest.mark.parametrize(("mark", "expected"), [(-INF, -4.7), (-5.2, -5.0)])
def test_it_creeps_freely_without_a_mark_and_never_down_to_one(
    twin: str, mark: float, expected: float
) -> None:
    driven = held(twin)
    driven.put(log_lr_zero=mark)
    for _ in range(20):
        state = driven.step(Step(with_cosine(0.9)))
    assert_close(state.log_lr, expected, "alignment_law", scale=5.0)


@both
def test_it_creeps_up_to_the_bound_and_not_in_the_cooldown(twin: str) -> None:
    driven = held(twin, replace(RAMP, lr_bounds=(1e-6, math.exp(-4.9)), horizon=200))
    states = [driven.step(Step(with_cosine(0.9))) for _ in range(130)]
    top = max(state.log_lr for state in states)
    assert top == math.log(math.exp(-4.9)) or math.isclose(top, -4.9)
    # T = 200: the cooldown begins at step 120, and S stays what it was.
    cooling = [state for state in states if state.step >= 120]
    assert len({state.undershoot for state in cooling}) == 1


@both
@pytest.mark.parametrize("arguments", [{"horizon": 159}, {"horizon": 40}, {"cooldown": 0.97}])
def test_a_run_too_short_for_the_search_holds_what_it_was_given(
    twin: str, arguments: dict[str, Any]
) -> None:
    control = replace(RAMP, **arguments)
    states = course(twin, control, sweeps([0.5, -0.5] * 40))
    assert control.is_too_short
    assert all(state.held and not state.rewind and state.active for state in states)
    assert_close(states[-1].log_lr, math.log(LR), "alignment_law")
    horizon = control.known_horizon or 0
    risen = 1 / (0.15 * horizon)
    assert_close(states[0].anneal, 10 ** (risen - 1), "alignment_law")
    if horizon <= 80:
        assert states[horizon - 1].lr == 0


@both
@pytest.mark.parametrize(("outside", "step"), [(2.0, math.log(0.5)), (-3.0, math.log(3.0))])
@pytest.mark.parametrize("where", ["on the ramp", "held", "climbing"])
def test_a_loaded_rate_outside_the_bounds_moves_to_them_by_the_cap(
    twin: str, where: str, outside: float, step: float
) -> None:
    control = replace(RAMP, lr_change=(0.5, 3.0))
    driven = held(twin, control) if where == "held" else on_the_ramp(twin, control)
    driven.put(climbing=float(where == "climbing"), undershoot=0.0, log_lr_downhill=-INF)
    at = math.log(3.0 if outside > 0 else 1e-6) + outside
    driven.step(Step(with_cosine(0.01)))
    driven.put(log_lr=at)
    state = driven.step(Step(with_cosine(0.01)))
    assert_close(state.log_lr, at + step, "alignment_law", scale=20.0)


@both
def test_where_no_update_ever_pointed_downhill_the_floor_is_the_mark(twin: str) -> None:
    states = course(twin, RAMP, sweeps([-0.5] * 120))
    end = states[first(states, "rewind") or 0]
    assert end.held == 1
    assert FLOOR <= math.exp(end.log_lr_zero) <= FLOOR * math.exp(R)
    assert_close(end.log_lr, end.log_lr_zero + math.log(0.7), "alignment_law")


@both
def test_where_nothing_was_read_the_given_rate_counts_as_the_share(twin: str) -> None:
    states = course(twin, RAMP, [Step(None)] * 160)
    end = first(states, "climbing")
    assert end == 150
    assert_close(states[end].log_lr, math.log(0.3 * LR), "alignment_law")


@both
@pytest.mark.parametrize("nothing", [None, (0.0, 0.0, 0.0), (0.0, 0.0, 4.0), (0.0, 16.0, 0.0)])
def test_nothing_to_read_is_a_step_on_the_spot(twin: str, nothing: Sums | None) -> None:
    driven = on_the_ramp(twin)
    before = driven.step(Step(nothing))
    after = driven.step(Step(nothing))
    assert (after.log_lr, after.overshoot) == (before.log_lr, before.overshoot)
    assert after.search_steps == before.search_steps + 1


# --- The oracle, and both twins ---------------------------------------------------------------

SWEEP: list[dict[str, Any]] = [
    {"horizon": 1000},
    {"horizon": None, "acquire_from": 1e-3, "every": 7},
    {"horizon": 1500, "acquire_from": 1e-4, "lr_bounds": (5e-5, 3e-3), "noise_bounds": (0.01, 0.2)},
    {"horizon": 900, "gain_lr_reward": 3.0, "lr_change": (0.5, 2.0), "every": 1},
    {"horizon": 900, "mode": "modulate", "acquire_from": 3e-2, "reward": "none"},
    {"horizon": 400, "cooldown": 0.0, "mode": "modulate"},
    {"horizon": 250, "cooldown": 0.9, "every": None},
]


@pytest.mark.parametrize("arguments", SWEEP, ids=str)
@pytest.mark.parametrize("turn", [30, 60])
def test_oracle_sweep(arguments: dict[str, Any], turn: int) -> None:
    for seed in range(2):
        steps = alignment_stream(500, turn, seed=seed + turn)
        found = compare(steps, law="range_test", **arguments)
        assert found["held"][-1] or found["climbing"][-1]
        if arguments.get("cooldown") != 0.9:
            assert np.unique(found["log_lr"]).size > 10
            assert found["rewind"].sum() >= 1


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_oracle_on_streams_that_turn(momentum: float) -> None:
    overshoots, ends = set(), set()
    for seed, mean in enumerate((0.3, 0.5, 1.0, 2.0) * 3):
        steps = sweeps(cosines(200, 30 + 3 * seed, seed, size=0.1, mean=mean).tolist())
        found = compare(steps, momentum=momentum, law="range_test", horizon=1000)
        ends.add((found["held"][-1], found["climbing"][-1]))
        overshoots |= set(found["overshoot"].tolist())
    assert len(overshoots) > 100
    assert ends == {(1, 0), (0, 1)}


def rising(at: int, seed: int, n: int = 300, fallen: float = 0.0) -> list[Step]:
    """Updates overshoot from step 45 on, and the loss rises from `at` on.

    From step 150 on h is above 0 again, and from 240 on below it. At 150 the loss falls.
    """
    rng = np.random.default_rng(seed)
    turned = cosines(n, 45, seed, size=0.1)
    turned[150:] = cosines(n - 150, 90, seed + 1, size=0.1)
    losses = 2.0 + 0.1 * rng.standard_normal(n) + 0.5 * np.maximum(np.arange(n) - at, 0)
    losses[150:] -= fallen
    sums = sums_of(turned.tolist(), seed)
    return [Step(s, loss) for s, loss in zip(sums, losses.tolist(), strict=True)]


@pytest.mark.parametrize(("at", "held"), [(40, True), (55, True), (1000, False)])
def test_oracle_on_losses_that_rise(at: int, held: bool) -> None:
    for seed in range(3):
        found = compare(rising(at, seed), law="range_test", horizon=600)
        assert (found["log_lr_risen"][-1] > -INF) == held
        assert found["climbing"][-1] == (not held)
        crept = np.unique(found["log_lr"][np.flatnonzero(found["rewind"])[0] + 1 :]).size
        assert crept > 2, "nothing moved after the ramp"


EDGES: list[tuple[str, list[Step]]] = [
    ("noise", sweeps((0.1 * np.random.default_rng(5).standard_normal(400)).tolist())),
    ("three values", sweeps(np.random.default_rng(6).choice([-0.3, 0.0, 0.3], 400).tolist())),
    ("late", [Step(None)] * 50 + sweeps([0.9] * 110)),
    ("nothing at all", [Step(None)] * 300),
    ("nothing finite", [Step((NAN, 1.0, 1.0))] * 300),
    ("zeros", sweeps([0.0] * 300)),
]


@pytest.mark.parametrize(("name", "steps"), EDGES, ids=[name for name, _ in EDGES])
def test_oracle_at_the_edges(name: str, steps: list[Step]) -> None:
    found = compare(steps, law="range_test", horizon=1000)
    assert found["held"][-1] or found["climbing"][-1]


@cache
def expected_courses() -> list[tuple[list[Step], dict[str, np.ndarray]]]:
    noise = 0.3 * np.random.default_rng(7).standard_normal(300)
    streams = [alignment_stream(300, 40, seed) for seed in (3, 4)] + [sweeps(noise.tolist())]
    streams += [
        sweeps(cosines(200, 40, seed, size=0.1, mean=m).tolist())
        for seed in range(6)
        for m in (0.3, 1.0)
    ]
    streams += [rising(at, seed=1) for at in (30, 40, 55)] + [rising(1000, seed=1, n=420)]
    # The loss rises on the climb that a watch began; and a loss that fell before begins none.
    streams += [rising(340, seed=1, n=420), rising(1000, seed=1, n=420, fallen=1.5)]
    options: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "every": 1, "horizon": 1000}
    return [(steps, oracle_course(steps, "range_test", **options)) for steps in streams]


def python_against_oracle() -> None:
    for steps, expected in expected_courses():
        assert_same_course(course_of(course("python", RAMP, steps), "range_test"), expected)


def test_the_comparison_passes_without_a_mutant() -> None:
    python_against_oracle()


CONSTANTS = (
    *("SQUARE_BETA", "MEAN_BETA", "RAMP", "LEAST_RAMP", "RISEN_BY", "CLIMB_FROM", "CREEP"),
)
COARSE = [
    *(("SURE", 0.9), ("LOSSES_ENOUGH", 1.5), ("UNDERSHOOT_ENOUGH", 0.8), ("SURE_WITHIN", 0.8)),
    *(("RISEN_WITHIN", 0.2), ("WATCHED_SHARE", 0.9)),
]


@pytest.mark.parametrize(
    ("name", "factor"), [(n, f) for n in CONSTANTS for f in (0.99, 1.01)] + COARSE
)
def test_the_comparison_sees_another_constant(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_law(monkeypatch, name, factor * getattr(range_test, name))
    with pytest.raises(AssertionError):
        python_against_oracle()


def last_zero(state: State, control: Any, score: float) -> None:
    state.overshoot = range_test.next_overshoot(state.overshoot, score)
    if state.alignment_mean <= 0:
        state.log_lr_zero = state.log_lr_judged


MUTANTS: dict[str, Callable[..., Any]] = {
    "go_back": lambda state: None,
    "next_overshoot": lambda s, z: s - 0.3 * z - 0.045,
    "warming": lambda step, held_at, control: 1.0,
    "end": lambda state, *_: setattr(state, "held", 1.0),
    "hear_loss": lambda state: None,
    "creep": lambda *_: None,
    "is_confirmed": lambda state: True,
    "is_lost": lambda *_: False,
    "climb": lambda *_: None,
    "watch": lambda *_: None,
    "has_learned": lambda *_: False,
    "turn_back": lambda *_: None,
    "mark": last_zero,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparisons_see_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"creep": 55, "warming": 55, "is_lost": 30, "turn_back": 340}.get(name, 1000)
    steps = rising(at, seed=1, n=420, fallen=1.5 * (name == "has_learned"))
    compiled = course("compiled", RAMP, steps)
    assert_equal(compiled, course("python", RAMP, steps))
    break_law(monkeypatch, name, MUTANTS[name])
    with pytest.raises(AssertionError):
        python_against_oracle()
    with pytest.raises(AssertionError):
        assert_equal(compiled, course("python", RAMP, steps))


@pytest.mark.parametrize("name", RANGE_TEST_COURSES)
def test_the_comparison_sees_a_millionth(name: str) -> None:
    rises = {
        **dict.fromkeys(("log_lr_risen", "undershoot"), 40),
        **dict.fromkeys(("log_lr_downhill", "log_lr_doubted"), 30),  # lost, so that it climbs
        **dict.fromkeys(("watched_before", "watched_error"), 1000),
    }.get(name)
    steps = rising(rises, seed=1, n=420) if rises else alignment_stream(400, 50, seed=3)
    right = oracle_course(steps, "range_test", lr=LR, momentum=MOMENTUM, horizon=500)
    assert_same_course(right, right)
    with pytest.raises(AssertionError, match=f"^{name}: alignment_law: "):
        assert_same_course(right | {name: right[name] * (1 + 1e-6)}, right)


# --- Promises ---------------------------------------------------------------------------------

COSINES = st.one_of(st.sampled_from([NAN, INF, -INF, 0.0]), st.floats(-1.0, 1.0))
SQUARES = st.one_of(st.sampled_from([NAN, INF, 0.0]), st.floats(min_value=0.0))
WILD = st.builds(
    Step,
    st.one_of(
        st.none(),
        st.tuples(COSINES, SQUARES, SQUARES).map(
            lambda d: (d[0] * math.sqrt(d[1]) * math.sqrt(d[2]), d[1], d[2])
        ),
    ),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    st.none(),
    st.booleans(),
)
CALM = st.floats(-1.0, 1.0).map(lambda h: Step(with_cosine(h)))
STREAMS = st.lists(st.one_of(CALM, CALM, CALM, WILD), min_size=1, max_size=60)
CONTROLS = st.builds(
    Control,
    law=st.just("range_test"),
    mode=st.sampled_from(["replace", "modulate"]),
    every=st.sampled_from([1, 3, None]),
    horizon=st.sampled_from([None, 1, 90, 200, 5000]),
    cooldown=st.sampled_from([0.0, 0.4, 0.7]),
    acquire_from=st.sampled_from([None, 1e-3]),
    gain_momentum_loss=st.sampled_from([0.0, 5.0]),
)


@both
@given(CONTROLS, STREAMS)
@settings(max_examples=100)
def test_promises_of_every_course(twin: str, control: Control, steps: list[Step]) -> None:
    """Bounds; a course that ends, once and for good; who goes back takes no step."""
    limits = control.limits(LR, MOMENTUM)
    low, high = math.log(limits.lr_min), math.log(limits.lr_max)
    before: State | None = None
    for step, state in zip(steps, course(twin, control, steps), strict=True):
        assert low <= state.log_lr <= high
        assert limits.lr_min * state.anneal <= state.lr <= limits.lr_max * state.anneal
        assert 0 <= state.anneal <= 1
        assert 0 <= state.overshoot <= (5 if state.climbing else 3) + 0.555
        assert 0 <= state.undershoot <= 5
        assert -1 <= state.alignment_mean <= state.alignment_peak or state.alignment_mean <= 1
        for name in RANGE_TEST_COURSES:
            value = getattr(state, name)
            assert math.isfinite(value) or (name.startswith("log_") and value == -INF), name
        if not step.skipped:
            assert state.active == 1 - state.rewind
        if before is not None and not step.skipped and (before.held or before.climbing):
            assert (state.rewind, state.searching, state.climbing) == (0, 0, before.climbing)
            assert state.held >= before.held
            assert state.held_at == before.held_at
            if before.held:  # until another one is found
                assert before.log_lr <= state.log_lr <= before.log_lr + 0.3 + 1e-12
                assert before.log_lr == state.log_lr or not state.climbing
        before = state
    assert state.held or not control.is_too_short or state.step == 0


@both
@given(
    st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=20, max_size=80),
    st.integers(-100, 100),
    st.integers(-100, 100),
)
@settings(max_examples=50)
def test_powers_of_two_of_gradient_and_update_change_no_bit(
    twin: str, stream: list[float], of_gradient: int, of_update: int
) -> None:
    c, d = 2.0**of_gradient, 2.0**of_update
    plain = sums_of(stream)
    scaled = [(gu * c * d, gg * c * c, uu * d * d) for gu, gg, uu in plain]
    courses = [
        course_of(course(twin, RAMP, [Step(s) for s in sums]), "range_test")
        for sums in (plain, scaled)
    ]
    for name in RANGE_TEST_COURSES:
        np.testing.assert_array_equal(courses[0][name], courses[1][name])


@both
@pytest.mark.parametrize("lr", [1e-7, 1e-3, 10.0])
def test_the_rate_that_was_given_plays_no_part(twin: str, lr: float) -> None:
    steps = sweeps(cosines(200, 40, 1).tolist())
    usual, other = (course_of(course(twin, RAMP, steps, rate), "range_test") for rate in (LR, lr))
    np.testing.assert_array_equal(usual["log_lr"], other["log_lr"])
    np.testing.assert_array_equal(usual["lr"], other["lr"])
