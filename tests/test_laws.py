"""The law of losses: each equation by hand; whole courses of both twins against the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_twin import assert_equal, both, break_law, compare, course, make, numbers, start
from streams import Step, assert_alive, loss_stream, observed, reward_stream
from tolerances import assert_close

from adaptiverl import Control
from adaptiverl.law import arithmetic, knobs, loop, sensors
from adaptiverl.law.loss import next_log_lr
from adaptiverl.law.replay import replay
from adaptiverl.layout import LAYOUT_VERSION, ControlNumbers, State

INF, NAN = math.inf, math.nan

# Every average at 1/2 and every gain a round number, so that a person can follow.
BY_HAND = Control(
    every=1,
    beta_loss=0.5,
    beta_reward=0.5,
    beta_variance=0.5,
    gain_lr_reward=0.02,
    gain_lr_loss=0.04,
    gain_momentum_reward=0.1,
    gain_momentum_loss=0.3,
    gain_noise_plateau=0.5,
    gain_noise_reward=0.2,
    plateau_trend=(0.1, 0.05),
    plateau_variance=(1.0, 0.2),
)
NUMBERS = numbers(BY_HAND)


def fresh(control: Control = BY_HAND, lr: float = 1e-3, momentum: float = 0.9) -> State:
    return start(control, lr, momentum)


# --- By hand ----------------------------------------------------------------------------------


STRONG = numbers(replace(BY_HAND, gain_lr_reward=0.3, gain_lr_loss=0.3))
OFF = numbers(replace(BY_HAND, noise_bounds=(0.0, 0.0)))
LOG3, AT, NINE, LOW = math.log(3), math.log(1e-3), math.log(9), math.log(0.01)
EXACT: list[tuple[Callable[..., float], tuple[Any, ...], float]] = [
    (arithmetic.ema, (2.0, 6.0, 0.25), 3.0),  # 0.75·2 + 0.25·6
    (arithmetic.sigmoid, (0.0,), 0.5),
    (arithmetic.sigmoid, (-1e4,), 0.0),
    (arithmetic.sigmoid, (1e4,), 1.0),
    (arithmetic.logit, (0.0,), -INF),
    (arithmetic.ratio, (3.0, 4.0), 0.75),
    (arithmetic.ratio, (3.0, 0.0), 0.0),
    (arithmetic.ratio, (5e-324, 5e-324), 1.0),  # ε is no scale: the smallest number there is counts
    *[
        (arithmetic.clip, (x, -1.0, 1.0), clipped)
        for x, clipped in ((-2.0, -1.0), (-0.5, -0.5), (0.25, 0.25), (7.0, 1.0), (INF, 1.0))
    ],
    # Sample, mean, S, count, β, c: 8 is beyond c·S/β = 5·0.5/0.5 = 5.
    (sensors.innovation, (10.0, 2.0, 0.5, 2, 0.5, 5.0), 5.0),
    (sensors.innovation, (-10.0, 2.0, 0.5, 2, 0.5, 5.0), -5.0),
    (sensors.innovation, (4.0, 2.0, 0.5, 2, 0.5, 5.0), 2.0),  # within
    (sensors.innovation, (10.0, 2.0, 0.5, 1, 0.5, 5.0), 8.0),  # the second sample is never clipped
    (sensors.innovation, (10.0, 2.0, 0.0, 2, 0.5, 5.0), 8.0),  # nor is anything where S = 0
    (sensors.innovation, (10.0, 2.0, 0.5, 2, 0.5, INF), 8.0),  # the specification to the letter
    (sensors.innovation, (1.7e308, -1.7e308, 0.0, 2, 0.5, 5.0), 2.0**1000),  # overflows: saturates
    (sensors.scale_of, (9.0, -3.0, 1, 0.5), 3.0),  # a scale starts at its first sample
    (sensors.scale_of, (9.0, -3.0, 2, 0.5), 6.0),  # 0.5·9 + 0.5·3
    (sensors.direction, (-1.0, 2.0), -0.5),
    (sensors.direction, (5.0, 2.0), 1.0),
    (sensors.direction, (-5.0, 2.0), -1.0),
    (sensors.direction, (1.0, 0.0), 0.0),
    (knobs.next_log_noise, (-INF, 1.0, 0.0, OFF), -INF),
]
CLOSE: list[tuple[Callable[..., float], tuple[Any, ...], float]] = [
    (arithmetic.sigmoid, (LOG3,), 0.75),  # 1/(1 + 1/3)
    (arithmetic.sigmoid, (-LOG3,), 0.25),  # (1/3)/(1 + 1/3)
    (arithmetic.logit, (0.75,), LOG3),  # log(0.75/0.25)
    (sensors.plateau_score, (0.1, 1.0, NUMBERS), 0.25),  # both factors at their centre: sig(0)²
    # sig((0.1−0.15)/0.05 = −1) · sig((1−0.8)/0.2 = 1); sig(2)·sig(5) = 0.880797 · 0.993307
    (sensors.plateau_score, (-0.15, 0.8, NUMBERS), 0.19661193324148185),
    (sensors.plateau_score, (0.0, 0.0, NUMBERS), 0.8749020344404308),
    (next_log_lr, (AT, 1.0, 0.0, NUMBERS), AT + 0.02),
    (next_log_lr, (AT, -0.5, 0.25, NUMBERS), AT - 0.02),  # −0.5·0.02 − 0.25·0.04
    (next_log_lr, (AT, 1.0, 0.0, STRONG), AT + math.log(1.2)),  # capped at c↑
    (next_log_lr, (AT, -1.0, 1.0, STRONG), AT + math.log(0.9)),  # −0.6 capped at c↓
    (next_log_lr, (math.log(1e-2) - 0.01, 1.0, 0.0, NUMBERS), math.log(1e-2)),  # 10·1e-3
    (next_log_lr, (math.log(1e-5) + 0.01, -1.0, 1.0, NUMBERS), math.log(1e-5)),  # 1e-3/100
    # From outside [1e-5, 1e-2] by the cap, whatever the law says; the last bit of it arrives.
    (next_log_lr, (0.0, 1.0, 0.0, NUMBERS), math.log(0.9)),
    (next_log_lr, (math.log(1e-7), -1.0, 1.0, NUMBERS), math.log(1.2e-7)),
    (next_log_lr, (math.log(1e-2) + 0.1, 1.0, 0.0, NUMBERS), math.log(1e-2)),
    (next_log_lr, (math.log(1e-5) - 0.1, -1.0, 1.0, NUMBERS), math.log(1e-5)),
    (knobs.next_logit_momentum, (NINE, 1.0, 0.0, NUMBERS), NINE + 0.1),  # logit 0.9
    (knobs.next_logit_momentum, (NINE, -1.0, 0.5, NUMBERS), NINE - 0.25),  # −0.1 − 0.5·0.3
    (knobs.next_logit_momentum, (4.59, 1.0, 0.0, NUMBERS), math.log(99)),  # logit 0.99
    (knobs.next_logit_momentum, (1.74, -1.0, 1.0, NUMBERS), math.log(0.85 / 0.15)),
    (knobs.next_log_noise, (LOW, 1.0, 0.0, NUMBERS), LOW + 0.5),
    (knobs.next_log_noise, (LOW, 0.2, 1.0, NUMBERS), LOW - 0.1),  # 0.2·0.5 − 0.2
    (knobs.next_log_noise, (math.log(0.09), 1.0, 0.0, NUMBERS), math.log(0.1)),
    (knobs.next_log_noise, (math.log(1.1e-4), 0.0, 1.0, NUMBERS), math.log(1e-4)),
]


@pytest.mark.parametrize(("law", "arguments", "expected"), EXACT + CLOSE)
def test_equation_by_hand(
    law: Callable[..., float], arguments: tuple[Any, ...], expected: float
) -> None:
    found = law(*arguments)
    if (law, arguments, expected) in EXACT:
        assert found == expected
    else:
        assert_close(found, expected, "law")


def test_sensors_over_four_losses() -> None:
    state = fresh()
    sensors.sense(state, NUMBERS, 8.0)
    # The first sample: ℓ̄ = 8, all else 0; P is computed as always: sig(2)·sig(5).
    assert loss_sensors(state) == (8.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert_close(state.plateau, 0.8749020344404308, "law")

    sensors.sense(state, NUMBERS, 4.0)
    # Δ = 0.5·(4−8) = −2; ℓ̄ = 6; S = |Δ| = 2; Δ̃ = −1; v = (4−6)² = 4; S_v = v.
    assert loss_sensors(state) == (6.0, -2.0, 2.0, -1.0, 4.0, 4.0)
    assert_close(state.plateau, 7.614989756380175e-09, "law")  # sig((0.1−1)/0.05 = −18) · sig(0)

    sensors.sense(state, NUMBERS, 6.0)
    # Δ = 0; S = (2+0)/2 = 1; v = (4+0)/2 = 2; S_v = (4+2)/2 = 3; P = sig(2)·sig((1−2/3)/0.2).
    assert loss_sensors(state) == (6.0, 0.0, 1.0, 0.0, 2.0, 3.0)
    assert_close(state.plateau, 0.7408656346178105, "law")

    sensors.sense(state, NUMBERS, 100.0)
    # 94 is clipped to 5·1/0.5 = 10, so ℓ counts as 16: Δ = 5; ℓ̄ = 11; S = (1+5)/2 = 3; Δ̃ = 5/3 → 1;
    # v = (2 + (16−11)²)/2 = 13.5; S_v = (3+13.5)/2 = 8.25.
    assert loss_sensors(state) == (11.0, 5.0, 3.0, 1.0, 13.5, 8.25)
    # r = −ℓ mirrors it.
    reward = (state.reward_mean, state.reward_trend, state.reward_scale, state.reward_direction)
    assert reward == (-11.0, -5.0, 3.0, -1.0)
    assert (state.loss, state.reward, state.loss_count, state.reward_count) == (100, -100, 4, 4)


def loss_sensors(s: State) -> tuple[float, ...]:
    return (s.loss_mean, s.loss_trend, s.loss_scale, s.loss_direction, s.variance, s.variance_scale)


def test_constant_loss_has_no_direction() -> None:
    state = fresh()
    for _ in range(1000):
        sensors.sense(state, NUMBERS, 1 / 3)
    assert loss_sensors(state) == (1 / 3, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_one_update_of_all_knobs() -> None:
    state = fresh()
    state.loss_direction, state.reward_direction, state.plateau = -1.0, 1.0, 0.8
    loop.act(state, NUMBERS)
    knobs.read_knobs(state, NUMBERS)
    # α: e^0.02·1e-3. μ: sig(log 9 + 0.1). σ: e^(0.8·0.5 − 0.2)·1e-4.
    assert_close(state.lr, 1.02020134002675581e-3, "law")
    assert_close(state.momentum, 9 * 1.10517091807564762 / (1 + 9 * 1.10517091807564762), "law")
    assert_close(state.noise, 1.22140275816016983e-4, "law")
    assert state.updates == 1


@pytest.mark.parametrize(
    ("reward", "lr_step", "momentum_step"),
    # −k_r − k_ℓ and −k_μr − k_μℓ; without a reward Δ̃r is 0, not −1.
    [("neg_loss", -0.06, -0.4), ("given", -0.06, -0.4), ("none", -0.04, -0.3)],
)
def test_regression_reflex(reward: Any, lr_step: float, momentum_step: float) -> None:
    control = replace(BY_HAND, reward=reward)
    state = fresh(control)
    state.loss_direction, state.reward_direction, state.plateau = -1.0, 1.0, 0.5
    sensors.sense(state, numbers(control), NAN)
    loop.act(state, numbers(control))
    assert_close(state.log_lr - math.log(1e-3), lr_step, "law", scale=7.0)
    assert_close(state.logit_momentum - math.log(9), momentum_step, "law", scale=3.0)
    # P is unchanged: 0.5·0.5, and nothing of the reward's term since max(−1, 0) = 0.
    assert_close(state.log_noise - math.log(1e-4), 0.25, "law", scale=10.0)
    # Once: the pending flags are down.
    assert (state.nonfinite_pending, state.observed_pending, state.nonfinite) == (0, 0, 1)


def test_reward_that_did_not_come_counts_as_zero() -> None:
    control = replace(BY_HAND, reward="given")
    state = fresh(control)
    for loss, reward in ((3.0, 1.0), (3.0, 2.0)):
        sensors.sense(state, numbers(control), loss, reward)
    loop.act(state, numbers(control))
    assert state.reward_direction == 1.0
    assert_close(state.log_lr - math.log(1e-3), 0.02, "law", scale=7.0)
    before = state.log_lr
    sensors.sense(state, numbers(control), 3.0)
    loop.act(state, numbers(control))
    assert state.log_lr == before
    assert state.reward_direction == 1.0  # the sensor rests


@both
def test_without_a_reward_a_resumed_direction_counts_as_zero(twin: str) -> None:
    driven = make(twin, replace(BY_HAND, reward="none"))
    driven.put(reward_direction=1.0, rewarded_pending=1.0)
    states = [driven.step(Step(None, 3.0)) for _ in range(3)]
    # α and μ stay, and σ has P alone: sig(2)·sig(5), since Δ̃ = v = 0.
    assert [(state.log_lr, state.updates) for state in states] == [
        (math.log(1e-3), n) for n in (1, 2, 3)
    ]
    assert len({state.logit_momentum for state in states}) == 1
    assert_close(states[0].log_noise, math.log(1e-4) + 0.8749020344404308 / 2, "law")
    assert states[-1].reward_direction == 1.0


@pytest.mark.parametrize(
    ("bounds", "floor", "log_noise", "expected"),
    [
        ((0.0, 0.1), 1e-3, math.log(1e-3), 0.0),  # at the floor: exactly σ_min, no noise
        ((0.0, 0.1), 1e-3, math.log(2e-3), 2e-3),
        ((0.01, 0.1), None, math.log(0.01), 0.01),
        ((0.01, 0.1), None, math.log(0.05), 0.05),
        ((0.0, 0.0), None, 3.0, 0.0),  # σ_max = 0: off, whatever log σ says
    ],
)
def test_noise_in_effect(
    bounds: tuple[float, float], floor: float | None, log_noise: float, expected: float
) -> None:
    control = Control(noise_bounds=bounds, noise_floor=floor)
    state = fresh(control)
    state.log_noise = log_noise
    knobs.read_knobs(state, numbers(control))
    if expected in bounds:
        assert state.noise == expected
    assert_close(state.noise, expected, "law")


def test_groups_see_ratios() -> None:
    state = fresh()
    assert knobs.group_lr(0.3, state) == 0.3  # to the bit while nothing moved
    assert knobs.group_momentum(0.7, state) == 0.7
    state.log_lr += math.log(2)
    state.logit_momentum += math.log(3)
    assert_close(knobs.group_lr(0.3, state), 0.6, "law")
    # The odds of 0.9 are 9, three times that 27; those of 0.7 are 7/3, three times that 7.
    assert_close(knobs.group_momentum(0.9, state), 27 / 28, "law")
    assert_close(knobs.group_momentum(0.7, state), 7 / 8, "law")


@pytest.mark.parametrize(("mode", "alpha"), [("replace", 0.5), ("modulate", 1.0)])
@pytest.mark.parametrize(
    ("law", "from_share", "acquire_from"),
    [("loss", 1.0, None), ("alignment", 0.01, None), ("alignment", 1.0, 0.125)],
)
def test_start(
    law: Any, from_share: float, acquire_from: float | None, mode: Any, alpha: float
) -> None:
    control = Control(law=law, mode=mode, acquire_from=acquire_from)
    state = start(control, 0.5, 0.9, seed=(7 << 32) + 5)
    begins = acquire_from or from_share * alpha
    assert_close(state.lr, begins, "law")
    assert (state.noise, state.step, state.updates) == (0.0, 0.0, 0.0)
    assert_close(state.momentum, 0.9, "law")
    assert_close(state.log_noise, math.log(1e-4), "law")
    assert (state.seed_low, state.seed_high, state.version) == (5.0, 7.0, LAYOUT_VERSION)
    # Groups multiply what is theirs by α over where the user put it.
    assert_close(state.log_lr_start, math.log(alpha), "law", scale=1.0)
    assert_close(knobs.group_lr(2.0, state), 2.0 * begins / alpha, "law")


# --- The loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "acted"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (None, [])])
def test_laws_act_at_multiples(every: int | None, acted: list[int]) -> None:
    control = replace(BY_HAND, every=every)
    state = fresh(control)
    steps = [t for t in range(1, 8) if loop.advance(state, numbers(control), loss=float(t))]
    assert steps == acted
    assert (state.step, state.updates) == (7, len(acted))


def test_nothing_observed_nothing_moves() -> None:
    control = replace(BY_HAND, every=2)
    state = fresh(control)
    for loss in (3.0, 2.0, 1.0):
        loop.advance(state, numbers(control), loss)
    before = replace(state)
    assert loop.advance(state, numbers(control))  # t = 4: the loss of t = 3 is still to be acted on
    assert state.updates == before.updates + 1
    before = replace(state)
    for _ in range(4):
        assert not loop.advance(state, numbers(control))
    assert astuple(replace(before, step=8.0)) == astuple(state)


@pytest.mark.parametrize("every", [1, None])
def test_replay_is_the_loop(every: int | None) -> None:
    losses, control, state = loss_stream(200, seed=3), replace(BY_HAND, every=every), fresh()
    move = loop.advance if every else loop.update
    for n, (loss, replayed) in enumerate(
        zip(losses, replay(losses, control, lr=1e-3), strict=True)
    ):
        move(state, numbers(control), loss)
        assert repr(state) == repr(replayed)
        assert (state.updates, state.step) == (n + 1, n + 1 if every else 0)


ALIGNED = r"law='alignment'\): that law reads the gradients, .* Use law='loss', or train$"


@pytest.mark.parametrize(
    ("control", "losses", "rewards", "message"),
    [
        (Control(), [1.0], [1.0], r"Control\.reward is 'neg_loss': use Control\(reward='given'"),
        (Control(reward="given"), [1.0, 2.0], [1.0], "zip"),
        (Control(lr_bounds=(1.0, 2.0)), [1.0], None, "must start inside"),
        (Control.climb(100), [3.0, 2.0], [1.0, 2.0], ALIGNED),
        (Control(law="alignment", every=None, reward="given"), [3.0, 2.0], [1.0, 2.0], ALIGNED),
    ],
    ids=["reward", "lengths", "start", "climb", "aligned"],
)
def test_replay_refuses(
    control: Control, losses: list[float], rewards: list[float | None] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replay(losses, control, lr=1e-3, rewards=rewards)


# --- With a horizon ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("law", ["loss", "bandit"])
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        # T = 100: 1 − p, or 1 − √p, with p = (t − 60)/40 from 60 on.
        ({}, {59: 1.0, 60: 1.0, 61: 0.975, 80: 0.5, 99: 0.025, 100: 0.0, 120: 0.0}),
        ({"cooldown_shape": "1-sqrt"}, {60: 1.0, 70: 0.5, 96: 1 - 0.9**0.5, 100: 0.0, 120: 0.0}),
        # A scheduler anneals; losses rest all the same.
        ({"mode": "modulate"}, {1: 1.0, 61: 1.0, 100: 1.0, 120: 1.0}),
    ],
    ids=str,
)
def test_losses_steer_until_the_cooldown_which_only_a_lost_loss_lowers(
    twin: str, law: Any, arguments: dict[str, Any], left: dict[int, float]
) -> None:
    control = Control(every=1, gain_lr_reward=0.01, horizon=100, **arguments)
    if law == "bandit":
        control = Control.bandit([control], window=7)
    falling = [9.0 - 0.05 * t for t in range(120)]
    falling[89] = NAN
    states = course(twin, control, observed(falling))
    unsaid = course(twin, replace(control, horizon=None), observed(falling))
    rates = [state.log_lr for state in states]
    assert rates[:59] == [state.log_lr for state in unsaid[:59]]
    assert rates[0] < rates[58] < unsaid[-1].log_lr
    assert set(rates[59:89]) == {rates[58]}
    # The reflex, 0.01 + 0.05, and again nothing.
    assert_close(rates[89], rates[58] - 0.06, "law")
    assert set(rates[89:]) == {rates[89]}
    # The other knobs keep their laws.
    assert states[-1].logit_momentum == unsaid[-1].logit_momentum > states[58].logit_momentum
    for t, share in left.items():
        assert_close(states[t - 1].anneal, share, "law")
        assert_close(states[t - 1].lr, share * math.exp(rates[t - 1]), "law")


# --- Against the oracle -----------------------------------------------------------------------


def compared(
    arguments: dict[str, Any], losses: list[float], lr: float = 1e-3, mu: float = 0.9
) -> Any:
    """Both twins and the oracle over these losses, with rewards where the user gives them."""
    rewards = reward_stream(len(losses), 1) if arguments.get("reward") == "given" else None
    return compare(observed(losses, rewards), lr, mu, (3 << 32) + 5, **arguments)


SWEEP: list[dict[str, Any]] = [
    {},
    {"every": 1, "mode": "modulate", "reward": "given"},
    # Without a reward α and μ only ever fall: gains that take the whole course to reach a bound.
    {
        "every": 3,
        "reward": "none",
        "noise_bounds": (0.01, 0.2),
        "beta_loss": 0.05,
        "gain_lr_loss": 2e-3,
        "gain_momentum_loss": 3e-4,
    },
    {
        "every": 10,
        "mode": "modulate",
        "reward": "given",
        "noise_bounds": (0.01, 0.2),
        "lr_change": (0.99, 1.01),
        "beta_loss": 0.05,
        "beta_reward": 0.01,
        "plateau_trend": (0.3, 0.1),
    },
    {
        "every": None,
        "reward": "given",
        "beta_loss": 0.3,
        "beta_reward": 0.2,
        "beta_variance": 0.4,
        "lr_bounds": (9e-4, 1.2e-3),
        "momentum_bounds": (0.88, 0.93),
    },
    {
        "every": None,
        "mode": "modulate",
        "reward": "none",
        "plateau_trend": (0.3, 0.1),
        "gain_lr_loss": 5e-4,
        "gain_momentum_loss": 1e-4,
    },
    {"every": 1, "noise_bounds": (0.0, 0.0), "spike_clip": 2.0, "momentum_bounds": (0.8, 0.95)},
    {"every": 3, "noise_floor": 0.02, "plateau_variance": (0.5, 0.4), "beta_variance": 0.01},
    {"every": 7, "horizon": 2400, "cooldown": 0.3},
    {"every": 3, "horizon": 2300, "reward": "given", "cooldown_shape": "1-sqrt"},
    {"every": None, "mode": "modulate", "horizon": 2000},
]


@pytest.mark.parametrize("arguments", SWEEP, ids=str)
def test_oracle_sweep(arguments: dict[str, Any]) -> None:
    actual = compared(arguments, loss_stream(2500, seed=len(str(arguments))))
    assert_alive(actual)
    assert actual["nonfinite"][-1] > 12


CALM = [x for x in loss_stream(3000, seed=7) if not abs(x) > 1e9]
EDGES: list[tuple[dict[str, Any], list[float], float, float]] = [
    *(
        ({"mode": mode, "reward": reward, "every": every}, loss_stream(600, seed=5), 0.3, 0.95)
        for mode in ("replace", "modulate")
        for reward in ("neg_loss", "given", "none")
        for every in (1, 3, 10, None)
    ),
    # Where squares under- or overflow, and innovations saturate.
    *(({}, [factor * x for x in CALM], 1e-3, 0.9) for factor in (1e-300, 1e-150, 1e150, 3e299)),
    *(
        ({}, odd + loss_stream(300, seed=9), 1e-3, 0.9)
        for odd in ([1e300], [1.0, -1e300], [NAN, INF, 1e-300], [0.0] * 60)
    ),
    *(({}, loss_stream(2000, seed=10), 1e-3, momentum) for momentum in (0.999, 0.1)),
]


@pytest.mark.parametrize(("arguments", "losses", "lr", "momentum"), EDGES)
def test_oracle_at_the_edges(
    arguments: dict[str, Any], losses: list[float], lr: float, momentum: float
) -> None:
    compared({"every": 1} | arguments, losses, lr, momentum)


def test_oracle_without_spike_clipping() -> None:
    losses = [x for x in loss_stream(3000, seed=8) if not 1e5 < abs(x) < INF]
    clipped = compared({"every": 1}, losses)
    unclipped = compared({"every": 1, "spike_clip": INF}, losses)
    assert (clipped["loss_mean"] != unclipped["loss_mean"]).any()


MUTANTS: dict[str, Callable[..., Any]] = {
    "ema": lambda average, sample, beta: beta * average + (1 - beta) * sample,
    "ratio": lambda x, scale: x / (scale + 1e-8),
    "innovation": lambda sample, mean, *_: sample - mean,
    "scale_of": lambda scale, trend, count, beta: (1 - beta) * scale + beta * abs(trend),
    "direction": lambda trend, scale: trend / scale if scale else 0.0,
    "plateau_score": lambda d, r, c: arithmetic.sigmoid((c.trend_center - d) / c.trend_slope),
    "next_log_lr": lambda x, r, w, c: x - c.gain_lr_reward * r - c.gain_lr_loss * w,
    "next_logit_momentum": lambda x, r, w, c: x + c.gain_momentum_reward * r,
    "next_log_noise": lambda x, p, i, c: x + c.gain_noise_plateau * p,
    "sigmoid": lambda x: 1 / (1 + math.exp(-1.001 * x)),
    "annealing": lambda step, control: 1.0,
    "is_cooling": lambda state, control: False,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_sweep_sees_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in any one equation makes both comparisons above raise."""
    losses = [x for x in loss_stream(400, seed=11) if not abs(x) > 1e9]
    arguments = {"every": 1, "horizon": 380, "cooldown_shape": "1-sqrt"}
    control = Control(**arguments)  # type: ignore[arg-type]
    compared(arguments, losses)
    compiled = course("compiled", control, observed(losses))
    break_law(monkeypatch, name, MUTANTS[name])
    with pytest.raises(AssertionError, match="law: "):
        compared(arguments, losses)
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        assert_equal(compiled, course("python", control, observed(losses)))


def test_the_sweep_sees_a_mean_updated_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """v from the old ℓ̄ instead of the new (method.md#loss-sensor)."""
    original = sensors.sense_loss

    def late(state: State, control: ControlNumbers, loss: float) -> None:
        old_mean, old_variance, count = state.loss_mean, state.variance, state.loss_count
        original(state, control, loss)
        square = (loss - old_mean) ** 2
        state.variance = (
            square if count == 1 else arithmetic.ema(old_variance, square, control.beta_variance)
        )

    losses = [x for x in loss_stream(400, seed=11) if not abs(x) > 1e9]
    still = {"every": 1, "noise_bounds": (0.0, 0.0)}
    compared(still, losses)
    break_law(monkeypatch, "sense_loss", late)
    with pytest.raises(AssertionError, match=r"^variance: law: "):
        compared(still, losses)


# --- Properties (method.md#invariants); those of whole courses are in test_promises.py -----------

UNIT = st.floats(-1.0, 1.0)


@given(UNIT, UNIT, st.floats(0.0, 1.0))
@settings(max_examples=300)
def test_sign_reflex(loss_direction: float, reward_direction: float, plateau: float) -> None:
    """Improvement never cools α or feeds σ; worsening never heats α or μ."""
    state = fresh()
    state.log_noise = math.log(0.01)
    state.loss_direction, state.reward_direction = loss_direction, reward_direction
    state.plateau = plateau
    before = replace(state)
    loop.act(state, NUMBERS)
    felt = 1e-3  # below this a push may vanish in rounding
    if reward_direction >= 0 >= loss_direction:
        assert state.log_lr >= before.log_lr
        assert state.logit_momentum >= before.logit_momentum
        if reward_direction > felt:
            assert state.log_lr > before.log_lr
            assert state.logit_momentum > before.logit_momentum
            without_reward = replace(before, reward_direction=0.0)
            loop.act(without_reward, NUMBERS)
            assert state.log_noise < without_reward.log_noise
    if reward_direction <= 0 <= loss_direction:
        assert state.log_lr <= before.log_lr
        assert state.logit_momentum <= before.logit_momentum
        assert state.log_noise >= before.log_noise
        if loss_direction > felt:
            assert state.log_lr < before.log_lr
            assert state.logit_momentum < before.logit_momentum


@given(st.integers(1, 2000), st.booleans(), st.floats(0.1, 1.0))
@settings(max_examples=40)
def test_anti_windup(pushes: int, worsening: bool, back: float) -> None:
    """However long a knob was pushed against its bound, the first opposite push takes it off."""
    limits, state = BY_HAND.limits(1e-3, 0.9), fresh()

    def push(sign: float, size: float) -> tuple[float, ...]:
        state.loss_direction, state.reward_direction = sign * size, -sign * size
        state.plateau = float(sign > 0)
        loop.act(state, NUMBERS)
        return state.log_lr, state.logit_momentum, state.log_noise

    # At its bounds already: what more pushes do must not be remembered.
    state.log_lr = math.log(limits.lr_min if worsening else limits.lr_max)
    bound = limits.momentum_min if worsening else limits.momentum_max
    state.logit_momentum = arithmetic.logit(bound)
    state.log_noise = math.log(limits.noise_max if worsening else limits.noise_floor)
    pinned = state.log_lr, state.logit_momentum, state.log_noise
    sign = 1.0 if worsening else -1.0
    for _ in range(pushes):
        assert push(sign, 1.0) == pinned
    freed = push(-sign, back)
    # α and μ leave one way, σ the other.
    assert all(
        way * sign * (now - before) > 0
        for way, now, before in zip((1, 1, -1), freed, pinned, strict=True)
    )
