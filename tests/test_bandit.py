"""The bandit (method.md#bandit): by hand, against the oracle, and its promises.

Most tests are run on both twins: the Python law and the C++ controller.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from law_twin import LR, MOMENTUM, assert_equal, both, break_law, compare, course, make, numbers
from streams import (
    ARM_COURSES,
    BANDIT_COURSES,
    Step,
    assert_same_course,
    course_of,
    loss_stream,
    observed,
    oracle_course,
    reward_stream,
)
from tolerances import assert_close
from training import assert_same, clones, descend, parameters, snapshot

from adaptiverl import AdaptiveAdamW, AdaptiveLion, AdaptiveSGD, Control
from adaptiverl.arms import ARM_FIELDS, DISCOUNT, GAINS, key_of, window_of
from adaptiverl.law import bandit, draws
from adaptiverl.law.replay import replay
from adaptiverl.layout import ARM_COUNTS, ARM_MEANS, ControlNumbers, State

INF, NAN = math.inf, math.nan
CALM: dict[str, Any] = {"every": 2, "gain_lr_loss": 0.01}
BOLD: dict[str, Any] = {
    "every": 1,
    "gain_lr_reward": 0.2,
    "gain_lr_loss": 0.2,
    "lr_change": (0.8, 1.4),
}
STILL: dict[str, Any] = dict.fromkeys(GAINS, 0.0) | {"every": 3}
ARMS: list[dict[str, Any]] = [CALM, BOLD, STILL]
PLAYED: dict[str, Any] = {"law": "bandit", "arms": ARMS, "window": 4}
SEED = (3 << 32) + 5


def playing(*arms: dict[str, Any], **more: Any) -> Control:
    """A bandit over these arms."""
    return Control(**({"law": "bandit", "arms": arms or ARMS, "window": 4} | more))


def known(state: State, names: tuple[str, ...], count: int) -> list[float]:
    return [getattr(state, name) for name in names[:count]]


# --- By hand ----------------------------------------------------------------------------------


@both
def test_two_windows_by_hand(twin: str) -> None:
    control = playing(CALM, window=3, discount=0.5, beta_loss=0.5, spike_clip=INF)
    driven = make(twin, control)
    state = driven.step(Step(None, 8.0))
    # The first loss begins a window, of which it is no part.
    assert (state.arm, state.arm_draws, state.window_left, state.window_start) == (0, 1, 3, 8)
    assert (state.window_path, state.played_count, state.played_mean) == (0, 0, 0)
    for loss in (6.0, 9.0):  # ℓ̄ = 7, 8
        state = driven.step(Step(None, loss))
    assert (state.window_left, state.window_path, state.window_reward) == (1, 2, 0)
    state = driven.step(Step(None, 2.0))  # ℓ̄ = 5
    # d = 8 − 5, and m is this first window's own path, 1 + 1 + 3.
    assert (state.window_scale, state.window_reward, state.arm_count0) == (5, 3 / 8, 1)
    assert (state.arm_mean0, state.played_count, state.played_mean) == (3 / 8, 1, 3 / 8)
    assert (state.window_left, state.window_start, state.window_path) == (3, 5, 0)
    for loss in (7.0, 6.0, 6.0):  # ℓ̄ = 6, 6, 6
        state = driven.step(Step(None, loss))
    # N = 0.5 + 1; m = 5 + (1 − 5)/1.5; d = −1.
    m = 5 - 4 / 1.5
    assert_close(state.window_scale, m, "law")
    assert_close(state.window_reward, -1 / (1 + m), "law")
    assert (state.arm_count0, state.arm_draws) == (1.5, 3)
    mean = (0.5 * 3 / 8 - 1 / (1 + m)) / 1.5
    assert_close(state.arm_mean0, mean, "law")
    # The first reward is as far from the mean as nothing; the second from the old and the new one.
    assert_close(state.reward_square, (1 / (1 + m) + 3 / 8) * (1 / (1 + m) + mean), "law")


@both
def test_a_window_with_a_loss_that_is_not_finite_is_the_worst(twin: str) -> None:
    driven = make(twin, playing(CALM, window=3))
    driven.step(Step(None, 3.0))
    for where, bad in enumerate((NAN, INF, -INF)):
        losses = [2.0, 1.0, 0.0]
        for loss in losses:
            state = driven.step(Step(None, loss))
        assert (state.window_left, state.window_broken) == (3, 0)
        assert state.window_reward != -1
        scale, losses[where] = state.window_scale, bad
        for loss in losses:
            state = driven.step(Step(None, loss))
        assert (state.window_left, state.window_reward, state.window_scale) == (3, -1, scale)
    assert math.isfinite(sum(known(state, ARM_COUNTS + ARM_MEANS, 16)))


@both
def test_no_window_begins_before_a_finite_loss_and_none_counts_a_step_without(twin: str) -> None:
    driven = make(twin, playing(CALM, BOLD, window=3))
    for loss in (None, NAN, INF, None):
        state = driven.step(Step(None, loss))
        assert (state.arm, state.arm_draws, state.window_left) == (0, 0, 0)
    driven.step(Step(None, 3.0))
    for step in (Step(None, None), Step(None, 2.0, skipped=True), Step(None, None)):
        assert driven.step(step).window_left == 3
    assert driven.step(Step(None, 2.0)).window_left == 2


@both
def test_constant_losses_say_nothing_of_any_arm(twin: str) -> None:
    states = course(twin, playing(), observed([3.0] * 60), LR, MOMENTUM, SEED)
    assert {state.window_reward for state in states} == {0.0}
    assert len({state.arm for state in states}) == 3


DRAWS = [(0, 0), (SEED, 1), (2**64 - 1, 2**32 + 7), (SEED, 2**53 - 1)]


@pytest.mark.parametrize(("seed", "draw"), DRAWS)
def test_the_words_are_the_generators(seed: int, draw: int) -> None:
    counter = (5, draws.STREAM, draw % 2**32, draw // 2**32)
    key = (seed % 2**32, seed // 2**32)
    expected = oracle.philox4x32(*counter, *key)
    assert draws.philox4x32(*counter, *key) == tuple(int(word) for word in expected)
    words = torch.zeros(1, 4, dtype=torch.int32)
    # The compiled noise's own generator at the same counter: index and step are its upper words.
    quad = (draws.STREAM << 32) + 5
    torch.ops.adaptiverl.philox_words_(*key, counter[2], counter[3], quad, words)
    assert [int(word) % 2**32 for word in words[0]] == [int(word) for word in expected]


def test_the_draws_are_standard_normal_numbers_of_their_own() -> None:
    drawn = np.array([draws.normal(5.0, 3.0, float(n), k) for n in range(1000) for k in range(4)])
    n = len(drawn)
    # Four standard errors of the mean, of the variance, and of both tails.
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    beyond = 0.31731050786  # of |x| > 1
    assert abs((abs(drawn) > 1).mean() - beyond) < 4 * math.sqrt(beyond * (1 - beyond) / n)
    assert len(set(drawn.tolist())) == n
    pairs = drawn.reshape(-1, 4)
    assert abs(np.corrcoef(pairs.T) - np.eye(4)).max() < 4 / math.sqrt(len(pairs))


# --- The oracle, and both twins -----------------------------------------------------------------

SWEEP: list[dict[str, Any]] = [
    {"arms": ARMS, "window": 7},
    {"arms": ARMS[:1], "window": 3, "discount": 0.5},
    {"arms": [CALM | {"gain_lr_loss": i / 100} for i in range(8)], "window": 5, "discount": 1.0},
    {"arms": ARMS[:2], "window": 40, "mode": "modulate", "reward": "given", "beta_loss": 0.2},
    {"arms": ARMS, "window": 3, "reward": "none", "noise_bounds": (0.01, 0.2), "discount": 0.7},
    {
        "arms": [{"every": None}, {"every": None, "gain_lr_loss": 0.2}],
        "window": 6,
        "reward": "given",
        "beta_loss": 0.3,
    },
]


@pytest.mark.parametrize("arguments", SWEEP, ids=str)
def test_oracle_sweep(arguments: dict[str, Any]) -> None:
    n = 800
    losses = loss_stream(n, seed=len(str(arguments)))
    rewards = reward_stream(n, 1) if arguments.get("reward") == "given" else None
    found = compare(observed(losses, rewards), LR, MOMENTUM, SEED, law="bandit", **arguments)
    windows = (n - 1) // arguments["window"]
    assert found["arm_draws"][-1] >= windows - 1
    assert set(found["arm"]) == set(range(len(arguments["arms"])))
    assert np.unique(found["window_reward"]).size > windows / 2
    assert (found["window_reward"] == -1).any()


@pytest.mark.parametrize("factor", [1e-300, 1e-150, 1e150, 1e299])
def test_oracle_where_squares_and_sums_saturate(factor: float) -> None:
    losses = [factor * x for x in loss_stream(400, seed=7) if abs(x) < 1e9]
    compare(observed(losses), LR, MOMENTUM, SEED, law="bandit", arms=ARMS, window=4)


@pytest.mark.parametrize("odd", [[1e300], [1.0, -1e300], [NAN, INF, 1e-300], [0.0] * 60])
def test_oracle_on_an_odd_beginning(odd: list[float]) -> None:
    losses = odd + loss_stream(200, seed=9)
    compare(observed(losses), LR, MOMENTUM, SEED, law="bandit", arms=ARMS, window=4)


@cache
def expected_course() -> tuple[list[Step], dict[str, np.ndarray]]:
    steps = observed(loss_stream(400, 11))
    return steps, oracle_course(steps, lr=LR, momentum=MOMENTUM, seed=SEED, **PLAYED)


def python_against_oracle() -> None:
    steps, expected = expected_course()
    actual = course_of(course("python", Control(**PLAYED), steps, LR, MOMENTUM, SEED), "bandit")
    assert_same_course(actual, expected)


def test_the_comparison_passes_without_a_mutant() -> None:
    python_against_oracle()


def no_discount(state: State, control: ControlNumbers) -> float:
    return bandit.__dict__["_discounted"](state, replace(control, discount=1.0))


def no_exploration(state: State, arm: int, square: float) -> float:
    return getattr(state, ARM_MEANS[arm])


def turned_round(state: State, reward: float) -> None:
    bandit.__dict__["_learn"](state, -reward)


MUTANTS: dict[str, Callable[..., Any]] = {
    "discounted": no_discount,
    "drawn_mean": no_exploration,
    "learn": turned_round,
}


def mutate(monkeypatch: pytest.MonkeyPatch, name: str, substitute: Any) -> None:
    """The broken function in the right one's place, which it finds under a name of its own."""
    if hasattr(bandit, name):
        monkeypatch.setattr(bandit, f"_{name}", getattr(bandit, name), raising=False)
    break_law(monkeypatch, name, substitute)


MORE_MUTANTS: dict[str, Any] = {
    "count": lambda state: setattr(state, "window_left", state.window_left - 1),
    "normal": lambda low, high, draw, place: 0.0,
    "reward_of": lambda state, windows: state.window_start - state.loss_mean,
    "STREAM": 0,
    "SPREAD": 0.5,
    "PRIOR_SPREAD": 0.1,
    "SPREAD_COUNT": 8.0,
    "WORST": 0.0,
}


@pytest.mark.parametrize("name", MUTANTS | MORE_MUTANTS)
def test_the_comparisons_see_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = observed(loss_stream(400, 11))
    compiled = course("compiled", playing(), steps, LR, MOMENTUM, SEED)
    mutate(monkeypatch, name, (MUTANTS | MORE_MUTANTS)[name])
    with pytest.raises(AssertionError):
        python_against_oracle()
    with pytest.raises(AssertionError):
        assert_equal(compiled, course("python", playing(), steps, LR, MOMENTUM, SEED))


@pytest.mark.parametrize("name", [*BANDIT_COURSES[-6:], ARM_COURSES[0], ARM_COURSES[8]])
def test_the_comparison_sees_a_millionth(name: str) -> None:
    right = oracle_course(observed(loss_stream(200, 3)), lr=LR, momentum=MOMENTUM, **PLAYED)
    assert_same_course(right, right)
    wrong = right | {name: right[name] * (1 + 1e-6)}
    with pytest.raises(AssertionError, match=f"^{name}: law: "):
        assert_same_course(wrong, right)


# --- What it learns, on rewards that are made up ------------------------------------------------

GOOD, BAD = 0.4, 0.1


def plays(
    windows: int, discount: float, means: Callable[[int], list[float]], seeds: int = 12
) -> Any:
    """The arm of each window, for each seed: rewards are normal, of standard deviation 1/4."""
    given_arms = [CALM | {"gain_lr_loss": i / 100} for i in range(len(means(0)))]
    read = numbers(playing(*given_arms, discount=discount))
    played = np.zeros((seeds, windows), int)
    for seed in range(seeds):
        state, rng = State(seed_low=float(seed)), np.random.default_rng(seed)
        bandit.begin(state, read)
        bandit.choose(state, read)
        for window in range(windows):
            played[seed, window] = arm = int(state.arm)
            reward = float(np.clip(rng.normal(means(window)[arm], 0.25), -1, 1))
            bandit.discounted(state, read)
            bandit.learn(state, reward)
            bandit.choose(state, read)
    return played


def information(gap: float) -> float:
    """Nats that one window says of the difference: the Kullback-Leibler divergence."""
    return gap * gap / (2 * 0.25**2)


def finds_the_best() -> None:
    """Lai and Robbins' rate, which Thompson sampling attains: ln T windows' worth of each other.

    Raises:
        AssertionError: Other arms are played more often by three standard errors, taking what the
            law predicts for a run as its standard deviation; what was measured would forgive luck.
    """
    windows = 240
    bad = plays(windows, 1.0, lambda _: [BAD, GOOD, BAD]) != 1
    half = bad[:, windows // 2 :]  # in which the logarithm grows by ln 2
    for played, logarithm in ((bad, math.log(windows)), (half, math.log(2))):
        wasted = 2 * logarithm / information(GOOD - BAD)
        assert played.sum(axis=1).mean() <= wasted * (1 + 3 / math.sqrt(len(bad)))


def recovers() -> None:
    """After the arms have swapped, within three memories of 1/(1 − γ); and before, all is well.

    With a memory of n windows the other arm is played for some ln n of each n
    (`information`): that is the share that is never saved.

    Raises:
        AssertionError: It does not.
    """
    discount = 0.9
    memory = round(1 / (1 - discount))
    swap, end = 8 * memory, 14 * memory
    best = plays(end, discount, lambda w: [GOOD, BAD] if w < swap else [BAD, GOOD]) == np.where(
        np.arange(end) < swap, 0, 1
    )
    wasted = math.log(memory) / memory / information(GOOD - BAD)
    assert 1 - best[:, 3 * memory : swap].mean() <= wasted
    assert 1 - best[:, swap + 3 * memory :].mean() <= wasted
    # It did swap, and could not know it at once.
    assert best[:, swap : swap + memory // 2].mean() < 0.5


def test_it_finds_the_best_arm_at_the_rate_that_theory_gives() -> None:
    finds_the_best()


def test_it_recovers_from_a_swap_within_what_the_discount_implies() -> None:
    recovers()


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("discounted", recovers),
        ("drawn_mean", finds_the_best),
        ("learn", finds_the_best),
        ("learn", recovers),
    ],
)
def test_the_promises_see_a_mutant(
    name: str, promise: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, name, MUTANTS[name])
    with pytest.raises(AssertionError):
        promise()


# --- Its promises -------------------------------------------------------------------------------

KNOBS = ("lr", "momentum", "noise", "log_lr", "logit_momentum", "log_noise", "updates")


@both
@pytest.mark.parametrize(
    "arm",
    [Control(), Control.production(), Control(every=3, reward="given"), Control.epochwise()],
    ids=["default", "production", "given", "epochwise"],
)
def test_one_arm_is_that_arms_law_to_the_bit(twin: str, arm: Control) -> None:
    rewards = reward_stream(600, 2) if arm.reward == "given" else None
    steps = observed(loss_stream(600, 2), rewards)
    alone = course(twin, arm, steps)
    of_one = course(twin, Control.bandit([arm], window=10), steps)
    for name in KNOBS:
        assert [getattr(s, name) for s in of_one] == [getattr(s, name) for s in alone]
    assert of_one[-1].arm_draws > 50
    assert alone[-1].arm_draws == 0


@both
@given(
    losses=st.lists(st.floats(-1e3, 1e3, width=32), min_size=20, max_size=60),
    power=st.sampled_from([20, -20, 3]),
)
@settings(max_examples=30)
def test_a_power_of_two_changes_no_bit(twin: str, losses: list[float], power: int) -> None:
    control = playing(window=3)
    plain = course(twin, control, observed(losses))
    scaled = course(twin, control, observed([math.ldexp(x, power) for x in losses]))
    of_arms = ("arm", "window_reward", "played_mean", *ARM_COUNTS, *ARM_MEANS)
    for name in (*KNOBS, *of_arms):
        assert [getattr(s, name) for s in scaled] == [getattr(s, name) for s in plain], name


@both
@given(losses=st.lists(st.floats(), min_size=1, max_size=40), window=st.integers(3, 5))
@settings(max_examples=50)
def test_whatever_the_losses_are_the_state_stays_sound(
    twin: str, losses: list[float], window: int
) -> None:
    for state in course(twin, playing(window=window), observed(losses)):
        assert -1 <= state.window_reward <= 1
        assert all(-1 <= mean <= 1 for mean in known(state, ARM_MEANS, 8))
        assert all(0 <= count <= 20 for count in known(state, ARM_COUNTS, 8))
        assert 0 <= state.window_path <= state.window_scale + 2.0**1001
        assert math.isfinite(state.window_start)
        assert state.arm in (0, 1, 2)


@both
def test_the_seed_decides_which_arms_are_tried(twin: str) -> None:
    steps = observed(loss_stream(300, 4))
    first, again, other = (
        [s.arm for s in course(twin, playing(), steps, LR, MOMENTUM, seed)]
        for seed in (SEED, SEED, SEED + 1)
    )
    assert first == again
    assert first != other


def test_replay_is_the_loop() -> None:
    losses = loss_stream(200, 5)
    expected = course("python", playing(), observed(losses))
    assert repr(replay(losses, playing(), lr=LR)) == repr(expected)


# --- Optimizers that have it --------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "adamw": partial(AdaptiveAdamW, lr=1e-2),
    "sgd": partial(AdaptiveSGD, lr=1e-2, momentum=0.9),
    "lion": partial(AdaptiveLion, lr=1e-3),
}
SHAPES = ((4, 3), (5,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_within_a_window_has_the_bits_of_one_that_was_not(kind: str) -> None:
    params = parameters(*SHAPES)
    control = playing(window=7, noise_bounds=(0.0, 0.1))
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 2e-3}]
    optimizer = KINDS[kind](groups, control=control, seed=SEED)
    descend(optimizer, params, 25)
    assert 0 < optimizer.knobs()["window_left"] < 7
    saved, copied = pickle.loads(pickle.dumps(optimizer.state_dict())), clones(params)
    resumed = KINDS[kind](
        [{"params": copied[:1]}, {"params": copied[1:], "lr": 2e-3}], control=control
    )
    resumed.load_state_dict(saved)
    for one, tensors in ((optimizer, params), (resumed, copied)):
        descend(one, tensors, 40, first=25)
    assert_same(snapshot(resumed, copied), snapshot(optimizer, params))
    assert optimizer.knobs()["arm_draws"] > 8


def test_knobs_show_what_is_known_of_each_arm_and_the_trace_who_made_each_update() -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=playing(window=5), seed=SEED)
    descend(optimizer, params, 120)
    knobs, trace = optimizer.knobs(), optimizer.trace()
    counts, means = (known(optimizer._controller.read(), n, 3) for n in (ARM_COUNTS, ARM_MEANS))
    assert [knobs[f"arm_count{arm}"] for arm in range(3)] == counts
    assert [knobs[f"arm_mean{arm}"] for arm in range(3)] == means
    assert "arm_count3" not in knobs
    # (120 − 1) div 5 windows are over: Σ γ^age of them.
    assert sum(counts) == pytest.approx((1 - DISCOUNT**23) / (1 - DISCOUNT))
    played = trace["arm"].long().tolist()
    assert set(played) == {0, 1, 2}
    every = [2, 1, 3]
    steps = trace["step"].long().tolist()
    assert all(step % every[arm] == 0 for arm, step in zip(played, steps, strict=True))
    assert knobs["arm"] == trace["arm"][-1] or knobs["window_left"] > 3
    # What was known of an arm when it was chosen changes with the window alone.
    for name in ("played_count", "played_mean", "window_reward"):
        assert 10 < len(set(trace[name].tolist())) <= 24
    plain = AdaptiveAdamW(parameters(*SHAPES), lr=1e-2)
    assert not any(name.startswith(("arm", "window")) for name in plain.knobs())


@pytest.mark.parametrize(
    ("control", "anew"),
    [
        (playing(window=5), False),
        (playing(window=5, discount=0.5), False),
        (playing(window=5, mode="modulate"), False),
        (playing(CALM, BOLD, window=5), True),
        (playing(CALM, BOLD, STILL | {"every": 1}, window=5), True),
        (playing(BOLD, CALM, STILL, window=5), True),
        (playing(window=6), True),
        (playing(BOLD, window=5), True),
    ],
    ids=["same", "discount", "mode", "fewer", "another", "order", "window", "one"],
)
def test_what_is_known_of_other_arms_is_forgotten(
    control: Control, anew: bool, caplog: pytest.LogCaptureFixture
) -> None:
    params = parameters(*SHAPES)
    optimizer = AdaptiveAdamW(params, lr=1e-2, control=playing(window=5), seed=SEED)
    descend(optimizer, params, 60)
    resumed = AdaptiveAdamW(params, lr=1e-2, control=control)
    with caplog.at_level(logging.INFO, logger="adaptiverl"):
        resumed.load_state_dict(optimizer.state_dict())
    rate = resumed.knobs()["lr"]
    assert rate == pytest.approx(optimizer.knobs()["lr"], rel=1e-12)
    descend(resumed, params, 1, first=60)
    told = [r.getMessage() for r in caplog.records if "learns anew which of its" in r.getMessage()]
    assert len(told) == anew
    total = sum(known(resumed._controller.read(), ARM_COUNTS, 8))
    if anew:
        assert (total, resumed.knobs()["window_left"]) == (0, window_of(control))
        descend(resumed, params, 40, first=61)
        assert resumed.knobs()["arm"] < len(control.arms or ())
    else:
        assert total > 5


# --- Control ------------------------------------------------------------------------------------


def test_the_default_arms_are_the_presets() -> None:
    control = Control.bandit()
    assert control.arms is not None
    own, smooth, still = control.arms
    for arm, preset in (
        (own, Control()),
        (smooth, Control.production()),
        (still, replace(Control.frozen(), lr_change=(0.9, 1.2))),
    ):
        assert vars(arm) == {name: getattr(preset, name) for name in ARM_FIELDS}
    assert (control.window, control.discount) == (None, None)
    assert replace(control, law="loss", arms=None) == Control()
    # The presets' arms of another control are like it.
    epochs = replace(Control.epochwise(), law="bandit")
    assert [arm.every for arm in epochs.arms or ()] == [None] * 3
    assert (window_of(control), window_of(epochs)) == (100, 7)
    assert window_of(Control.bandit([Control(every=500)])) == 500


def test_arms_may_be_controls_records_or_dictionaries() -> None:
    controls = [Control(**arm, noise_bounds=(0.0, 0.2)) for arm in ARMS]
    control = Control.bandit(controls, window=9, discount=0.8)
    assert control.noise_bounds == (0.0, 0.2)
    more: dict[str, Any] = {"window": 9, "discount": 0.8}
    for arms in (control.arms, ARMS, tuple(controls)):
        same = replace(Control.bandit(arms, **more), noise_bounds=(0.0, 0.2))  # type: ignore[arg-type]
        assert (same, hash(same)) == (control, hash(control))
    assert pickle.loads(pickle.dumps(control)) == control
    assert Control(**json.loads(json.dumps(dataclasses.asdict(control)))) == control
    assert replace(control, mode="modulate").arms == control.arms
    assert len({key_of(c) for c in (control, playing(), playing(window=9), playing(CALM))}) == 3
    assert not control.rests
    assert Control.bandit([Control(**STILL)]).is_frozen


def of_arms(*arms: Any) -> dict[str, Any]:
    return {"law": "bandit", "arms": arms}


REFUSED: list[tuple[type[Exception], dict[str, Any], str]] = [
    (ValueError, of_arms(), "Control.arms must be from 1 to 8 Controls, got 0"),
    (ValueError, of_arms(*[CALM] * 9), "Control.arms must be from 1 to 8 Controls, got 9"),
    (ValueError, of_arms(CALM, BOLD, CALM), "Control.arms[2] is equal to arms[0]: no window could"),
    (TypeError, {"law": "bandit", "arms": 3}, "Control.arms must be a list of Controls, got 3"),
    (
        TypeError,
        {"law": "bandit", "arms": Control()},
        "Control.arms must be a list of Controls, got one alone",
    ),
    (TypeError, of_arms("bold"), "Control.arms[0] must be a Control, got 'bold' of type str"),
    (
        ValueError,
        of_arms(Control(), Control.climb()),
        "Control.arms[1] must be of law='loss', got law='alignment'",
    ),
    (
        ValueError,
        of_arms(Control(), Control(beta_loss=0.1)),
        "Control.arms[1] has beta_loss=0.1, and the others have 0.02: arms differ in every",
    ),
    (
        ValueError,
        of_arms({"gain_lr_loss": -1}),
        "Control.arms[0]: Control.gain_lr_loss must be finite and >= 0, got -1",
    ),
    (
        TypeError,
        of_arms({"lr_change": 0.5}),
        "Control.arms[0]: Control.lr_change must be a pair of numbers, got 0.5",
    ),
    (ValueError, of_arms({"gain": 1}), "Control.arms[0] has 'gain'; an arm has every, gain_lr"),
    (
        ValueError,
        of_arms(CALM, {"every": None}),
        "Control.arms[1] has every=None, and arms[0] every=2: either all arms are epoch-wise",
    ),
    (
        ValueError,
        of_arms(CALM, BOLD) | {"gain_lr_loss": 0.3},
        "Control.gain_lr_loss is each arm's own with law='bandit', got 0.3 beside arms of which "
        "the first has 0.01: give it to the arms, as in Control.bandit([Control(gain_lr_loss=0.3)",
    ),
    *[
        (
            ValueError,
            of_arms(STILL, CALM) | {"window": window},
            f"Control.window must be from 3 to 2**53 losses, or None, got {window}: an arm that",
        )
        for window in (0, -1, 2)
    ],
    (
        TypeError,
        of_arms(CALM) | {"window": 2.5},
        "Control.window must be a whole number of losses or None, got 2.5",
    ),
    *[
        (
            ValueError,
            of_arms(CALM) | {"discount": discount},
            f"Control.discount must be in (0, 1], or None, got {discount}",
        )
        for discount in (0, -0.5, 1.5, NAN)
    ],
    (
        TypeError,
        of_arms(CALM) | {"discount": "0.9"},
        "Control.discount must be a number, got '0.9'",
    ),
    (
        ValueError,
        {"window": 10},
        "Control.window is the bandit law's, got 10 beside law='loss': use Control(law='bandit'",
    ),
]


@pytest.mark.parametrize(("error", "arguments", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_arms_windows_and_discounts_are_refused(
    error: type[Exception], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Control(**arguments)


def test_a_lost_arm_is_none_that_is_read() -> None:
    """A memory of more arms, before the first loss that would begin anew."""
    for twin in ("python", "compiled"):
        driven = make(twin, playing(CALM, BOLD, window=5))
        driven.put(arm=7.0, arms_key=5.0, observed_pending=1.0, window_left=2.0)
        state = driven.step(Step(None, None))
        assert (state.arm, state.updates) == (7, 1)
        assert driven.step(Step(None, 3.0)).arm in (0, 1)


@pytest.mark.parametrize(
    ("arm", "law"),
    [
        (Control.distilled(100), "distilled"),
        (Control.climb(100, reuse=(4, 3)), "alignment"),
        (Control.bandit(), "bandit"),
    ],
)
def test_an_arm_of_another_law_is_told_its_law(arm: Control, law: str) -> None:
    """Not that something which only that law has is beside law="bandit"."""
    message = rf"^Control.arms\[0\] must be of law='loss', got law='{law}'"
    with pytest.raises(ValueError, match=message):
        Control.bandit([arm, Control()])
