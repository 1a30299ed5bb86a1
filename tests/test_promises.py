"""§3's promises as properties of whole courses: of the Python law, and of the C++ controller.

A property is a function of a course: how one of the two twins moves through losses. It is searched
for a counterexample with both, and once more with a law broken on purpose, which must give one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from law_twin import break_law, make
from streams import observed

from adaptiverl import Control
from adaptiverl.layout import FIELDS, ControlNumbers

INF, NAN = math.inf, math.nan
EPSILON = 2.0**-53
LR, MOMENTUM = 1e-3, 0.9
# The group that the bounds are those of, one with another rate, one with another momentum.
GROUPS = [[LR, MOMENTUM], [7e-3, 0.9], [LR, 0.6]]
KEPT = [name for name in FIELDS if name not in ("loss", "reward")]
"""What may never be NaN; a loss and a reward are kept as they came."""


# --- Courses ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """After one observation: the state, and each group's rate and momentum as a step reads them."""

    state: Any
    effective: Sequence[Sequence[float]]


Course = Callable[..., list[Row]]


def course_of(
    twin: str,
    control: Control,
    losses: Sequence[float],
    rewards: Sequence[float | None] | None = None,
) -> list[Row]:
    driven = make(twin, control, LR, MOMENTUM, 0, GROUPS)
    return [Row(driven.step(step), driven.effective()) for step in observed(losses, rewards)]


python_course = functools.partial(course_of, "python")


# --- The search -------------------------------------------------------------------------------


MANY = 400
"""Examples for a broken law: the search ends at the first that shows it"""


def search(
    check: Callable[..., None], strategies: Sequence[Any], examples: int, shrink: bool = True
) -> int:
    """Check that many examples; return how many were checked to the end."""
    checked = 0
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]

    @settings(max_examples=examples, phases=phases, report_multiple_bugs=False)
    @given(st.tuples(*strategies))
    def examine(drawn: tuple[Any, ...]) -> None:
        nonlocal checked
        check(*drawn)
        checked += 1

    examine()
    return checked


def promise(
    *strategies: Any, compiled: int, python: int, broken: dict[str, Callable[..., Any]]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a property into a test of both twins, and of laws that break it.

    Args:
        strategies: What the property takes besides the course.
        compiled: Examples for the C++ controller.
        python: Examples for the Python law.
        broken: Functions of the Python law by name, each with something wrong instead: with any of
            them the search must find a counterexample.
    """
    examples = {"compiled": compiled, "python": python}

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("case", [*examples, *broken])
        def test(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
            if case in examples:
                kept = functools.partial(check, functools.partial(course_of, case))
                assert search(kept, strategies, examples[case]) >= examples[case]
                return
            break_law(monkeypatch, case, broken[case])
            with pytest.raises(AssertionError):
                search(functools.partial(check, python_course), strategies, MANY, shrink=False)

        test.__doc__ = check.__doc__
        return test

    return decorate


# --- Losses -----------------------------------------------------------------------------------

Shape = Callable[[np.random.Generator, int], np.ndarray]


def _level(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-3, 3))


SHAPES: dict[str, Shape] = {
    "constant": lambda rng, n: np.full(n, _level(rng)),
    "white": lambda rng, n: _level(rng) + _level(rng) * rng.standard_normal(n),
    "trend": lambda rng, n: _level(rng) + _level(rng) * np.arange(n),
    "fall": lambda rng, n: _level(rng) + abs(_level(rng)) * np.exp(-np.arange(n) / 4),
    "sawtooth": lambda rng, n: _level(rng) + _level(rng) * (np.arange(n) % 4),
}
EXTREMES: dict[str, Shape] = {
    "spikes": lambda rng, n: np.where(
        rng.random(n) < 0.3, 10.0 ** rng.uniform(2, 300), _level(rng) + rng.standard_normal(n)
    ),
    "not finite": lambda rng, n: rng.choice([NAN, INF, -INF, 1.0], n),
    "denormal": lambda rng, n: 5e-324 * rng.integers(-9, 9, n),
    "tiny": lambda rng, n: 1e-300 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e300 * rng.standard_normal(n),
    "ends": lambda rng, n: rng.choice([1.7e308, -1.7e308, 0.0, 5e-324], n),
    "zero": lambda rng, n: np.zeros(n),
}
ALL_SHAPES = SHAPES | EXTREMES


def stretch(shapes: dict[str, Shape]) -> Any:
    """Up to a dozen losses of one shape."""
    chosen = st.sampled_from(sorted(shapes))
    return st.tuples(chosen, st.integers(1, 12), st.integers(0, 2**32 - 1)).map(
        lambda drawn: shapes[drawn[0]](np.random.default_rng(drawn[2]), drawn[1]).tolist()
    )


def stream(shapes: dict[str, Shape]) -> Any:
    """Up to five stretches, one after the other."""
    parts = st.lists(stretch(shapes), min_size=1, max_size=5)
    return parts.map(lambda lists: [loss for part in lists for loss in part])


ADVERSARIAL = st.one_of(
    stream(ALL_SHAPES),
    stream(ALL_SHAPES),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12),
)
# The first six are white, so that the averages begin with a scale of their own.
CALM = st.tuples(st.integers(0, 2**32 - 1), stream(SHAPES)).map(
    lambda drawn: SHAPES["white"](np.random.default_rng(drawn[0]), 6).tolist() + drawn[1]
)

GAIN = st.sampled_from([0.0, 0.05, 0.7, 5.0])
CONTROLS = st.builds(
    Control,
    mode=st.sampled_from(["replace", "modulate"]),
    every=st.sampled_from([1, 2, 3, None]),
    reward=st.sampled_from(["neg_loss", "given", "none"]),
    beta_loss=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    beta_reward=st.sampled_from([0.02, 0.3]),
    beta_variance=st.sampled_from([0.02, 0.3, 1.0]),
    gain_lr_reward=GAIN,
    gain_lr_loss=GAIN,
    gain_momentum_reward=GAIN,
    gain_momentum_loss=GAIN,
    gain_noise_plateau=GAIN,
    gain_noise_reward=GAIN,
    momentum_bounds=st.sampled_from([None, (0.5, 0.95), (0.899, 0.901)]),
    noise_bounds=st.sampled_from([(0.0, 0.1), (0.01, 0.2), (0.0, 0.0)]),
    lr_change=st.sampled_from([(0.9, 1.2), (0.5, 30.0)]),
    spike_clip=st.sampled_from([0.5, 5.0, INF]),
)
EVERY_STEP = Control(every=1)


def rewards_beside(control: Control, losses: Sequence[float]) -> list[float | None] | None:
    """Rewards as wild as the losses, for two losses in three, where the user gives them."""
    if control.reward != "given":
        return None
    return [None if i % 3 == 2 else -loss for i, loss in enumerate(reversed(losses))]


# --- Bounds, and no NaN -----------------------------------------------------------------------


@promise(
    CONTROLS,
    ADVERSARIAL,
    compiled=100,
    python=75,
    broken={
        "clip": lambda x, low, high: x,
        "innovation": lambda sample, mean, *_: sample - mean,
    },
)
def test_knobs_stay_inside_their_bounds(
    course: Course, control: Control, losses: list[float]
) -> None:
    """Whatever is observed: in float64, and in float32 as the kernels read it; NaN nowhere."""
    limits = control.limits(LR, MOMENTUM)
    alpha = control.start_lr(LR)
    low32, high32 = np.float32(limits.lr_min * LR / alpha), np.float32(limits.lr_max * LR / alpha)
    slow32, fast32 = np.float32(limits.momentum_min), np.float32(limits.momentum_max)
    for state, effective in course(control, losses, rewards_beside(control, losses)):
        assert limits.lr_min <= state.lr <= limits.lr_max
        assert limits.momentum_min <= state.momentum <= limits.momentum_max
        assert limits.noise_min <= state.noise <= limits.noise_max
        assert -1 <= state.loss_direction <= 1
        assert -1 <= state.reward_direction <= 1
        assert 0 <= state.plateau <= 1
        for name in KEPT:
            value = getattr(state, name)
            none = name.startswith("log_lr_") and name != "log_lr_start"
            off = none or (name == "log_noise" and limits.noise_max == 0)
            assert math.isfinite(value) or (off and value == -INF), (name, value)
        read = np.array(effective, np.float32)
        assert low32 <= read[0, 0] <= high32
        assert slow32 <= read[0, 1] <= fast32
        # The other groups keep their ratio to the first, in lr and in the odds of momentum.
        assert np.isfinite(read).all()
        assert (read[:, 0] > 0).all()
        assert ((read[:, 1] > 0) & (read[:, 1] < 1)).all()
        assert np.float32(limits.noise_min) <= np.float32(state.noise)
        assert np.float32(state.noise) <= np.float32(limits.noise_max)


# --- Scale and offset -------------------------------------------------------------------------

LOGARITHMS = ("log_lr", "logit_momentum", "log_noise")
UNITLESS = [*LOGARITHMS, *"lr momentum noise loss_direction reward_direction plateau".split()]


def numbers(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    return np.array([[getattr(row.state, name) for name in names] for row in rows])


def condition(rows: Sequence[Row], losses: Sequence[float]) -> float:
    """How much a relative rounding of the losses grows on its way to Δ̃: max |ℓ| / min S.

    ℓ̄ keeps up to 1/β roundings of a loss, and Δ̃ is β times a difference of the two, over S.
    """
    largest = max(abs(loss) for loss in losses)
    scales = [row.state.loss_scale for row in rows[1:]]
    smallest = min(scales, default=0.0)
    return largest / smallest if smallest > 0 else INF


def allowed(*conditions: float) -> float:
    """How far apart log α, logit μ and log σ may be: 1e-12, or more where cancellation demands it.

    A course has at most 66 updates; the largest gain is 0.08, and P's steepest slope, over v/S_v,
    is 1/(4·0.1). So 66·0.08·2.5 = 13 roundings times the condition, and a few for each. Of the
    streams below, over half are held to less than 1e-10 and 99 in 100 to less than 1e-6.
    """
    return max(1e-12, 64 * EPSILON * max(conditions))


@promise(
    stream(SHAPES | {name: EXTREMES[name] for name in ("not finite", "zero")}),
    st.integers(-100, 100),
    compiled=75,
    python=50,
    broken={
        "ratio": lambda x, scale: x / (scale + 1e-8),
        "innovation": lambda sample, mean, *_: max(min(sample - mean, 10.0), -10.0),
    },
)
def test_powers_of_two_change_no_bit(course: Course, losses: list[float], power: int) -> None:
    plain = numbers(course(EVERY_STEP, losses), UNITLESS)
    scaled = numbers(course(EVERY_STEP, [math.ldexp(x, power) for x in losses]), UNITLESS)
    assert plain.tobytes() == scaled.tobytes()


@promise(
    CALM,
    st.one_of(
        st.tuples(st.floats(-80, 80).map(lambda x: 10.0**x), st.just(0.0)),
        st.tuples(st.just(1.0), st.floats(-1e3, 1e3)),
    ),
    compiled=100,
    python=75,
    broken={
        "ratio": lambda x, scale: x / (scale + 1e-8),
        "innovation": lambda sample, mean, *_: sample - 0.999 * mean,
    },
)
def test_any_factor_or_offset_changes_rounding_only(
    course: Course, losses: list[float], change: tuple[float, float]
) -> None:
    factor, offset = change
    moved = [factor * loss + offset for loss in losses]
    plain, changed = course(EVERY_STEP, losses), course(EVERY_STEP, moved)
    gap = np.abs(numbers(plain, LOGARITHMS) - numbers(changed, LOGARITHMS)).max()
    conditions = condition(plain, losses), condition(changed, moved) if offset else 0.0
    assert gap <= allowed(*conditions)


# --- Sign reflex ------------------------------------------------------------------------------


@promise(
    CALM,
    st.floats(0.0, 6.0),
    st.floats(0.0, 6.0),
    st.sampled_from([(0.02, 0.02), (0.05, 0.01), (0.5, 0.3)]),
    compiled=75,
    python=75,
    broken={
        "next_log_lr": lambda x, r, w, c: x - c.gain_lr_reward * r,
        "next_logit_momentum": lambda x, r, w, c: x + c.gain_momentum_loss * w,
        "next_log_noise": lambda x, p, i, c: x + c.gain_noise_plateau * i,
    },
)
def test_an_improvement_never_does_a_worsenings_work(
    course: Course, losses: list[float], better: float, worse: float, betas: tuple[float, float]
) -> None:
    """The same history, then one loss below its average or one above, of any sizes: α and μ.

    σ is compared between a loss below and one equally far above. Between unequal ones the law
    promises nothing, for P is large where the loss hardly moves, whichever way.
    """
    control = replace(EVERY_STEP, beta_loss=betas[0], beta_reward=betas[1])
    past = course(control, losses)[-1].state
    step = past.loss_scale / control.beta_loss
    middle, apart = past.loss_mean, abs(past.loss_mean + past.reward_mean)

    def after(loss: float) -> Any:
        return course(control, [*losses, loss])[-1].state

    # Clear of both averages, where their rates differ and so they do.
    up, down = after(middle - apart - better * step), after(middle + apart + worse * step)
    assert up.log_lr >= down.log_lr
    assert up.logit_momentum >= down.logit_momentum
    if betas[0] == betas[1]:
        mirrored = after(middle + apart + better * step)
        # The two distances from ℓ̄ are equal to a rounding of ℓ̄.
        slack = 64 * EPSILON * abs(middle) / past.loss_scale if past.loss_scale else 0.0
        assert up.log_noise <= mirrored.log_noise + slack
        if better * step + apart > 1e-3 * step > 1e3 * slack * step:
            assert up.log_lr > mirrored.log_lr
            # Where both are at the floor, σ has nowhere to go.
            floor = math.log(control.limits(LR, MOMENTUM).noise_floor)
            assert up.log_noise < mirrored.log_noise or mirrored.log_noise <= floor + slack


def test_a_slight_improvement_may_raise_noise_more_than_a_crash() -> None:
    """Why the property above compares equal sizes: in a crash P is low, on a standstill high."""
    losses = (3 + 0.1 * np.random.default_rng(0).standard_normal(100)).tolist()
    mean = python_course(EVERY_STEP, losses)[-1].state.loss_mean
    slight = python_course(EVERY_STEP, [*losses, mean - 1e-6])[-1].state
    crash = python_course(EVERY_STEP, [*losses, mean + 10.0])[-1].state
    assert slight.log_noise > crash.log_noise
    assert slight.log_lr > crash.log_lr


# --- Anti-windup ------------------------------------------------------------------------------

PINNED = Control(
    every=1,
    beta_loss=0.2,
    beta_reward=0.2,
    beta_variance=0.2,
    lr_bounds=(0.8 * LR, 1.25 * LR),
    momentum_bounds=(0.88, 0.92),
    noise_bounds=(0.05, 0.06),
)


def _remembers(log_lr: float, reward: float, worsening: float, control: ControlNumbers) -> float:
    return log_lr + control.gain_lr_reward * reward - control.gain_lr_loss * worsening


@promise(
    st.booleans(),
    st.integers(30, 60),
    st.floats(-1e3, 1e3),
    st.floats(0.01, 100.0),
    st.floats(1.0, 1.3),
    compiled=40,
    python=50,
    broken={"next_log_lr": _remembers},
)
def test_the_first_opposite_push_leaves_a_bound(
    course: Course, rising: bool, pushes: int, level: float, slope: float, growth: float
) -> None:
    """However long the loss rose, the first one below its average lifts α and μ; and back."""
    sign = 1.0 if rising else -1.0
    losses = [level + sign * slope * n * growth**n for n in range(pushes)]
    rows = course(PINNED, losses)
    limits = PINNED.limits(LR, MOMENTUM)
    pinned = rows[-1].state
    bounds = (
        (limits.lr_min, limits.momentum_min) if rising else (limits.lr_max, limits.momentum_max)
    )
    np.testing.assert_allclose((pinned.lr, pinned.momentum), bounds, rtol=1e-12)
    back = pinned.loss_mean - sign * pinned.loss_scale / PINNED.beta_loss
    freed = course(PINNED, [*losses, back])[-1].state
    if rising:
        assert freed.lr > 1.01 * limits.lr_min
        assert freed.momentum > limits.momentum_min + 1e-4
        assert freed.log_noise < pinned.log_noise or pinned.noise == limits.noise_min
    else:
        assert freed.lr < 0.99 * limits.lr_max
        assert freed.momentum < limits.momentum_max - 1e-4
        assert pinned.noise == limits.noise_min


@promise(
    st.integers(0, 2**32 - 1),
    st.integers(40, 80),
    st.floats(0.3, 50.0),
    compiled=40,
    python=40,
    broken={"next_log_noise": lambda x, p, i, c: x + c.gain_noise_plateau * p},
)
def test_noise_leaves_both_its_bounds(course: Course, seed: int, rest: int, drop: float) -> None:
    """σ at its ceiling after a standstill falls with the first real improvement; then back up."""
    spread = np.random.default_rng(seed).choice([-1.0, 1.0], 10)
    losses = [*(3 + 0.1 * spread).tolist(), *[3.0] * rest]
    rows = course(PINNED, losses)
    ceiling = rows[-1].state
    assert ceiling.noise == 0.06
    step = ceiling.loss_scale / PINNED.beta_loss
    improved = course(PINNED, [*losses, ceiling.loss_mean - 10 * drop * step])[-1].state
    assert improved.noise < 0.06
    falling = [*losses, *[3.0 - 0.5 * n for n in range(40)]]
    floor = course(PINNED, falling)[-1].state
    assert floor.noise == 0.05
    lifted = course(PINNED, [*falling, floor.loss_mean])[-1].state
    assert lifted.noise > 0.05


# --- How much was searched --------------------------------------------------------------------


def test_a_search_counts_what_it_checked() -> None:
    seen: list[int] = []
    assert search(seen.append, [st.integers()], 50) == len(seen) >= 50
