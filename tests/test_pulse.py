"""The generalisation pulse (method.md#pulse): by hand, against the oracle, and its promises.

Most tests are run on both twins: the Python law and the C++ controller.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from law_twin import assert_equal, both, break_law, make, numbers, start
from oracle_pulse import OraclePulse
from streams import Step, alignment_stream, loss_stream, sums_of
from tolerances import assert_close
from training import Params, assert_same, clones, parameters, snapshot, values

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control, steer
from adaptiverl.law import pulse
from adaptiverl.layout import State

INF, NAN = math.inf, math.nan
LOG_TENTH = math.log(0.1)
PULSES = [f.name for f in fields(State) if f.name.startswith("pulse")] + ["log_lr_ceiling"]
FREE = Control(gain_lr_reward=0.2, gain_lr_loss=0.2, every=1)
CONTROLS: dict[str, Control] = {
    "loss": FREE,
    "modulate": replace(FREE, mode="modulate"),
    "epochs": replace(Control.epochwise(), gain_lr_reward=0.5),
    "bandit": Control.bandit([FREE, replace(FREE, every=3)], window=7),
    "alignment": Control.climb(900),
    "range_test": Control.find_lr(900),
    "open": Control.find_lr(),
    "distilled": Control.distilled(900),
}


def noise(count: int, seed: int = 0, size: float = 0.1) -> list[float]:
    return (size * np.random.default_rng(seed).standard_normal(count)).tolist()


def worsening(count: int, turn: int, seed: int = 0) -> list[float]:
    """A held-out loss that falls from 3 until the turn, and then rises to where it was."""
    fall = np.linspace(3, 1, turn).tolist() + np.linspace(1, 3, count - turn).tolist()
    return [x + y for x, y in zip(fall, noise(count, seed, 0.02), strict=True)]


def drive(
    twin: str, control: Control, steps: Sequence[Step], held_out: Sequence[float], every: int = 1
) -> list[State]:
    """The states after each pulse, one behind every so many steps."""
    driven, states = make(twin, control), []
    for i, step in enumerate(steps, 1):
        driven.step(step)
        if i % every == 0:
            states.append(driven.pulse(held_out[i // every - 1]))
    return states


def falling(count: int) -> list[Step]:
    """Losses that fall evenly."""
    return [Step(None, 5.0 - i / count) for i in range(count)]


# --- By hand ----------------------------------------------------------------------------------


@both
def test_readings_and_a_cut_by_hand(twin: str) -> None:
    driven = make(twin, FREE)
    before = driven.pulse(7.0)
    assert (before.pulse, before.pulse_readings, before.pulses_waiting) == (
        7.0,
        0,
        0,
    )  # nothing trained
    found = []
    for i, held_out in enumerate((4.0, 2.0, 3.0, 2.0, 6.0)):
        driven.step(Step(None, 5.0 - i))
        log_lr = driven.pulse(NAN).log_lr
        found.append(driven.pulse(held_out))
    # ȳ: 4; 4 − .2·2; 3.6 − .2·.6; 3.48 − .2·1.48; 3.184 + .2·2.816
    for state, mean in zip(found, (4, 3.6, 3.48, 3.184, 3.7472), strict=True):
        assert_close(state.pulse_mean, mean, "law")
    # Differences −2, 1, −1, 4, so their differences 3, −2, 5: weights .081, .09 and .1 of 1 − .9³
    sizes = (0.081 * 3 + 0.09 * 2 + 0.1 * 5) / 0.271
    assert_close(found[-1].pulse_roughness / found[-1].pulse_roughness_weight, sizes, "law")
    # The least of ȳ is 3.184, and the mean's error a third of the noise.
    error = sizes / math.sqrt(12 / math.pi) / 3
    assert_close(found[-1].pulse_limit, 3.184 + 3 * math.sqrt(2) * error, "law")
    assert [state.pulse_cuts for state in found] == [0, 0, 0, 0, 0]
    driven.step(Step(None, 0.0))
    for i in range(4):
        driven.step(Step(None, -1.0 - i))
        log_lr = driven.pulse(NAN).log_lr
        state = driven.pulse(9.0)
        if state.pulse_cuts:
            break
    assert state.pulse_mean > state.pulse_limit
    assert_close(state.log_lr, log_lr + LOG_TENTH, "law")
    assert state.log_lr_ceiling == state.log_lr
    assert_close(state.lr, math.exp(state.log_lr), "law")
    assert state.pulse_rest == 5


@both
def test_a_cut_is_followed_by_a_rest_and_goes_no_lower_than_the_bound(twin: str) -> None:
    control = replace(FREE, gain_lr_reward=0.0, lr_bounds=(1e-5, 1e-2), beta_loss=1.0)
    rising = [float(i) for i in range(60)]
    states = drive(twin, control, falling(60), rising)
    cuts = [i for i, (a, b) in enumerate(pairwise(states), 2) if b.pulse_cuts > a.pulse_cuts]
    # Without noise the fifth reading is above the least of the first four; then every fifth.
    assert cuts == [5 * i for i in range(1, 13)]
    assert_close(states[4].lr, 1e-4, "law")
    assert_close(states[9].lr, 1e-5, "law")
    assert states[-1].lr == 1e-5


@both
@pytest.mark.parametrize("name", CONTROLS)
def test_nothing_raises_the_rate_above_what_a_cut_left(twin: str, name: str) -> None:
    control = CONTROLS[name]
    steps = [
        Step(sums, 9.0 - 0.01 * i)
        for i, sums in enumerate(sums_of([0.4] * 120 + [-0.4] * 60 + [0.4] * 700))
    ]
    driven = make(twin, control)
    rates = []
    for i, step in enumerate(steps):
        state = driven.step(step)
        rates.append(state.log_lr)
        if i % 10 == 0:
            state = driven.pulse(1.0 + i)
        assert state.log_lr <= (state.log_lr_ceiling if state.pulse_cuts else INF)
    assert state.pulse_cuts > 10
    free = make(twin, control)
    assert rates[-1] < [free.step(step).log_lr for step in steps][-1] - 1


@both
def test_pulses_within_a_hundredth_of_the_run_are_one_reading(twin: str) -> None:
    driven = make(twin, Control.climb(1000))
    counted = []
    for step in range(31):
        driven.step(Step(None, 1.0))
        counted.append(driven.pulse(float(step)))
    # The first one is a reading, and then the mean of ten.
    assert [s.pulse_readings for s in counted] == [1] * 10 + [2] * 10 + [3] * 10 + [4]
    assert [counted[i].pulse_reading for i in (0, 10, 20, 30)] == [0.0, 5.5, 15.5, 25.5]
    assert counted[14].pulses_waiting == 4


@both
def test_what_is_read_while_a_ramp_goes_on_is_forgotten(twin: str) -> None:
    driven = make(twin, Control.find_lr(1000))
    for sums in sums_of([0.3] * 40):
        state = driven.step(Step(sums))
        assert state.searching == 1
        assert driven.pulse(float(state.step)).pulse_readings == 0
    for sums in sums_of([-0.5] * 60):
        state = driven.step(Step(sums))
        driven.pulse(1.0)
    assert state.searching == 0
    assert 0 < driven.pulse(1.0).pulse_readings < 8


@both
def test_where_the_training_loss_rises_as_well_nothing_moves(twin: str) -> None:
    rising = [float(i) for i in range(40)]
    for slope, cuts in ((-1.0, 8), (0.0, 0), (1.0, 0)):
        steps = [Step(None, 50 + slope * i) for i in range(40)]
        assert drive(twin, FREE, steps, rising)[-1].pulse_cuts == cuts
    # None told: the held-out loss alone decides.
    blind = [Step(sums) for sums in sums_of([0.3] * 40)]
    assert drive(twin, Control.climb(), blind, rising)[-1].pulse_cuts == 8


# --- Against the oracle -----------------------------------------------------------------------


def predicted(states: Sequence[State], pulsed: Sequence[State], held_out: Sequence[float],
              control: Control) -> list[list[float]]:  # fmt: skip
    """What the oracle says of every pulse, told what was known before it."""
    known = numbers(control)
    judge = OraclePulse((control.known_horizon or 0) / 100, known.log_lr_min)
    rows = []
    for state, loss in zip(states, held_out, strict=True):
        told = state.loss_mean if state.loss_count > 0 else None
        log_lr = judge.pulse(loss, state.step, told, state.log_lr, state.searching == 0)
        ceiling = judge.ceiling if judge.cuts else -INF
        rows.append([log_lr, len(judge.readings), judge.mean, judge.limit, judge.cuts, ceiling])
    return rows


READ = ("log_lr", "pulse_readings", "pulse_mean", "pulse_limit", "pulse_cuts", "log_lr_ceiling")


def run(twin: str, name: str, seed: int) -> tuple[list[State], list[State], list[float]]:
    """States before and after each pulse of a stream with everything in it."""
    driven = make(twin, CONTROLS[name])
    losses = [x for x in loss_stream(1600, seed) if not abs(x) > 1e9 or not math.isfinite(x)]
    turn = iter(x + 0.004 * i for i, x in enumerate(losses))
    before, after, told = [], [], []
    for i, step in enumerate(alignment_stream(900, 150, seed)):
        state = driven.step(step)
        for _ in range((0, 1, 1, 2)[i % 4]):
            before.append(state)
            told.append(next(turn))
            state = driven.pulse(told[-1])
            after.append(state)
    return before, after, told


@pytest.mark.parametrize("name", CONTROLS)
def test_both_twins_are_the_oracle_on_random_streams(name: str) -> None:
    before, after, told = run("python", name, len(name))
    assert_equal(run("compiled", name, len(name))[1], after)
    expected = np.array(predicted(before, after, told, CONTROLS[name]))
    found = np.array([[getattr(state, key) for key in READ] for state in after])
    forgotten = found[:, 1] == 0
    for column, key in enumerate(READ):
        held = ~forgotten if key in ("pulse_mean", "pulse_limit") else slice(None)
        assert_close(found[held, column], expected[held, column], "law")
    assert found[-1, 4] > 0
    assert any(not math.isfinite(x) for x in told)


@cache
def compiled_course() -> Any:
    compiled = run("compiled", "loss", 4)[1]
    assert_equal(run("python", "loss", 4)[1], compiled)
    return compiled


@pytest.mark.parametrize(
    ("constant", "wrong"),
    [("READING_BETA", 0.21), ("ROUGHNESS_BETA", 0.11), ("WORSE_BY", 2.9), ("READINGS_ENOUGH", 3.0),
     ("CUT", -1.0), ("REST", 4.0), ("ROUGHNESS_OF_ONE", 2.0),
     ("overfits", lambda state, training: state.pulse_mean > state.pulse_limit),
     ("below_ceiling", lambda state: None)],
)  # fmt: skip
def test_the_comparisons_see_a_mutant(
    constant: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compiled_course()
    break_law(monkeypatch, constant, wrong)
    with pytest.raises(AssertionError):
        assert_equal(run("python", "loss", 4)[1], compiled)


# --- What it promises -------------------------------------------------------------------------


@both
@given(held_out=st.lists(st.floats(-1e3, 1e3, width=32), min_size=20, max_size=40),
       power=st.sampled_from([20, -20, 3]))  # fmt: skip
@settings(max_examples=30)
def test_a_power_of_two_changes_no_bit(twin: str, held_out: list[float], power: int) -> None:
    steps = [Step(None, 30.0 - i / 10) for i in range(len(held_out))]
    plain = drive(twin, FREE, steps, held_out)
    scaled = drive(twin, FREE, steps, [math.ldexp(x, power) for x in held_out])
    for name in ("log_lr", "pulse_readings", "pulse_cuts", "pulse_rest", "pulse_roughness_weight"):
        assert [getattr(s, name) for s in scaled] == [getattr(s, name) for s in plain], name


@both
def test_a_constant_more_changes_no_decision(twin: str) -> None:
    held_out = worsening(120, 40)
    plain, shifted = (
        drive(twin, FREE, falling(120), [x + more for x in held_out]) for more in (0.0, 1000.0)
    )
    assert [s.pulse_cuts for s in shifted] == [s.pulse_cuts for s in plain]
    assert plain[-1].pulse_cuts > 2


@both
@given(held_out=st.lists(st.floats(), min_size=1, max_size=30))
@settings(max_examples=50)
def test_whatever_is_told_the_state_stays_sound(twin: str, held_out: list[float]) -> None:
    for state in drive(twin, FREE, falling(len(held_out)), held_out):
        for name in PULSES:
            odd = name in ("pulse", "pulse_training", "log_lr_ceiling")
            assert odd or math.isfinite(getattr(state, name)), name
        assert 0 <= state.pulse_rest <= 5


def first_cut(held_out: Sequence[float]) -> int | None:
    """After how many pulses a course is cut; None: never."""
    state, control = start(FREE), numbers(FREE)
    for i, loss in enumerate(held_out, 1):
        state.step = float(i)
        pulse.pulse(state, control, loss, -i)
        if state.pulse_cuts:
            return i
    return None


def false_alarms(slope: float) -> float:
    """Share of courses of 60 pulses, falling by `slope` of their noise at each, that are cut."""
    courses = [[x - 0.1 * slope * i for i, x in enumerate(noise(60, seed))] for seed in range(400)]
    return float(np.mean([first_cut(course) is not None for course in courses]))


def test_noise_alone_seldom_cuts_and_hardly_ever_where_the_loss_falls() -> None:
    assert false_alarms(0.0) < 0.65
    assert false_alarms(0.1) < 0.03


def test_it_is_found_within_some_pulses_that_the_loss_worsens() -> None:
    delays = []
    for seed in range(100):
        rising = [
            x - 0.05 * min(i, 30) + 0.1 * max(0, i - 30) for i, x in enumerate(noise(80, seed))
        ]
        found = first_cut(rising)
        assert found is not None
        delays.append(found - 30)
    assert 3 < np.mean(delays) < 10


# --- Optimizers that have it --------------------------------------------------------------------

KINDS: dict[str, Callable[..., Any]] = {
    "adamw": partial(AdaptiveAdamW, lr=1e-2),
    "sgd": partial(AdaptiveSGD, lr=1e-2, momentum=0.9),
    "lion": partial(AdaptiveLion, lr=1e-3),
}
SHAPES = ((4, 3), (5,))
NAMES = [name for name in CONTROLS if name != "epochs"]


def train(
    optimizer: Any,
    params: Params,
    steps: int,
    held_out: Callable[[int], float] | None,
    first: int = 0,
) -> None:
    """Steps that are told a falling loss, each followed by a pulse."""
    for step in range(first, first + steps):
        for param in params:
            param.grad = param.detach() + 0.1 * (step % 3)
        optimizer.step(loss=9.0 - step / 10)
        if held_out is not None:
            optimizer.pulse(held_out(step))


@pytest.mark.filterwarnings("ignore:pulse.. with Control.law='range_test', horizon=None")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_where_it_gets_better_a_run_has_the_bits_of_one_without(kind: str, name: str) -> None:
    found = []
    for held_out in (lambda step: 3.0 - step / 20, None):
        params = parameters(*SHAPES)
        optimizer = KINDS[kind](params, control=CONTROLS[name], seed=3)
        train(optimizer, params, 40, held_out)
        assert ("pulse" in optimizer.knobs()) == (held_out is not None)
        found.append((values(params), optimizer.knobs()["lr"]))
    assert_same(*found)


@pytest.mark.parametrize("name", ["loss", "modulate", "bandit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_between_readings_has_the_bits_of_one_that_was_not(
    kind: str, name: str
) -> None:
    def held_out(step: int) -> float:
        return step / 2 + step % 3

    params = parameters(*SHAPES)
    optimizer = KINDS[kind](params, control=CONTROLS[name], seed=5)
    train(optimizer, params, 14, held_out)
    before = optimizer.knobs()
    assert before["pulse_cuts"] > 0
    saved, copied = pickle.loads(pickle.dumps(optimizer.state_dict())), clones(params)
    resumed = KINDS[kind](copied, control=CONTROLS[name])
    resumed.load_state_dict(saved)
    for one, tensors in ((optimizer, params), (resumed, copied)):
        train(one, tensors, 30, held_out, first=14)
    assert_same(snapshot(resumed, copied), snapshot(optimizer, params))
    assert optimizer.knobs()["pulse_cuts"] > before["pulse_cuts"]


def test_a_rate_that_was_cut_stays_cut_under_another_start() -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=FREE)
    train(optimizer, params, 20, float)
    resumed = AdaptiveAdamW(params, lr=1e-3, control=replace(FREE, mode="modulate"))
    resumed.load_state_dict(optimizer.state_dict())
    state = resumed._controller.read()
    assert state.pulse_cuts > 0
    assert state.log_lr_ceiling == pytest.approx(state.log_lr, abs=1e-12)


def test_each_groups_own_controller_is_told() -> None:
    params = parameters(*SHAPES)
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "lr": 1e-3}]
    optimizer = AdaptiveAdamW(groups, lr=1e-2, control=replace(FREE, groups="own"))
    train(optimizer, params, 20, float)
    first, second = (optimizer.knobs(group=place) for place in range(2))
    assert first["pulse_cuts"] == second["pulse_cuts"] > 2
    assert second["lr"] == pytest.approx(first["lr"] / 10)


def test_knobs_and_trace_show_it() -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=FREE)
    held_out = torch.tensor(0.0)
    assert not any("pulse" in name for name in optimizer.knobs())

    train(optimizer, params, 30, lambda step: held_out + step)  # type: ignore[arg-type,return-value]
    knobs, trace = optimizer.knobs(), optimizer.trace()
    assert (knobs["pulse"], knobs["pulse_readings"]) == (29.0, 30.0)
    assert knobs["pulse_mean"] > knobs["pulse_limit"]
    assert knobs["pulse_cuts"] == 6 == trace["pulse_cuts"][-1] + 1
    assert trace["pulse"][1:].tolist() == [float(step) for step in range(29)]
    assert knobs["lr"] <= 1.001e-4 < 1e-3 < trace["lr"][2]


# --- What is refused ----------------------------------------------------------------------------


REFUSED: list[tuple[Control, Any, type[Exception], str]] = [
    (Control.frozen(), 1.0, ValueError, "all its gains are 0: use Control()"),
    (Control(lr_bounds=(1e-2, 1e-2)), 1.0, ValueError, "lr_bounds = (0.01, 0.01) leave it no room"),
    (Control.climb("auto"), 1.0, ValueError, "nobody has said how many steps the run takes"),
    (FREE, torch.ones(2), ValueError, "validation_loss must have one element, got shape (2,)"),
    (FREE, "low", TypeError, "validation_loss must be a real number"),
    (FREE, None, TypeError, "validation_loss must be a real number"),
]  # fmt: skip


@pytest.mark.parametrize(("control", "loss", "error", "message"), REFUSED)
@pytest.mark.parametrize("steered", [False, True])
def test_what_can_move_nothing_is_refused(
    control: Control, loss: Any, error: type[Exception], message: str, steered: bool
) -> None:
    params = parameters(*SHAPES)
    told: Any = AdaptiveAdamW(params, lr=1e-2, control=control)
    if steered:
        told = steer(torch.optim.AdamW(params, lr=1e-2), control)
    before = told.knobs()
    with pytest.raises(error, match=re.escape(message)):
        told.pulse(loss)
    assert told.knobs() == pytest.approx(before, nan_ok=True)


def test_a_horizon_that_is_missing_is_warned_of_once() -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=Control.climb())
    with pytest.warns(UserWarning, match="Give a horizon, or pulse at most once") as caught:
        optimizer.pulse(1.0)
    optimizer.pulse(1.0)
    assert [w.filename for w in caught] == [__file__]
    for control in (Control.climb(100), Control()):
        AdaptiveAdamW(params, lr=1e-2, control=control).pulse(1.0)
