"""Recorded-looking losses, rewards and sums of sweeps, and a controller's courses over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from oracle import (
    OracleAlignmentController,
    OracleBanditController,
    OracleController,
    OracleDistilledController,
    OracleRangeTestController,
)
from tolerances import assert_close

Floats = NDArray[np.float64]
Sums = tuple[float, float, float]
"""Σ g·u, Σ g², Σ u²"""

COURSES = tuple(
    "log_lr logit_momentum log_noise lr momentum noise loss_mean loss_trend loss_scale "
    "loss_direction variance variance_scale plateau reward_mean reward_trend reward_scale "
    "reward_direction".split()
)
"""What the state and the oracle both name, and rounding may move."""

ALIGNMENT_COURSES = COURSES + tuple(
    "alignment alignment_square alignment_weight alignment_direction alignment_mean overshoot "
    "log_lr_downhill log_lr_doubted anneal".split()
)
"""Of the alignment law."""

COUNTERS = ("step", "updates", "nonfinite", "held")
"""What they both count: equal or wrong; the last is the alignment law's."""

RANGE_TEST_COURSES = COURSES + tuple(
    "alignment alignment_square alignment_weight alignment_direction alignment_mean "
    "alignment_mean_weight alignment_peak overshoot undershoot log_lr_downhill log_lr_zero "
    "log_lr_judged log_lr_risen log_lr_doubted ramp_loss ramp_loss_mean ramp_loss_square "
    "ramp_loss_least ramp_loss_limit watched_mean watched_square watched_before watched_error "
    "anneal".split()
)
"""Of the range test."""
RANGE_TEST_COUNTERS = (
    *(*COUNTERS, "searching", "search_steps", "held_at", "rewind"),
    *("climbing", "ramp_losses", "watches", "watched"),
)
"""Likewise."""

BANDIT_COURSES = COURSES + tuple(
    "window_start window_path window_scale window_reward reward_square played_count "
    "played_mean".split()
)
"""Of the bandit; what is known of each arm is `ARM_COURSES`."""
ARM_COURSES = tuple(f"arm_{what}{arm}" for what in ("count", "mean") for arm in range(8))
BANDIT_COUNTERS = ("arm", "arm_draws", "window_left", "window_broken")
"""Likewise."""
DISTILLED_COURSES = (
    *ALIGNMENT_COURSES[: ALIGNMENT_COURSES.index("log_lr_downhill")],
    *("move_lr", "move_momentum", "move_noise"),
)
"""Of the distilled law."""
DISTILLED_COUNTERS = (*COUNTERS, "held_at", "moved_at")
"""Likewise."""
EXACT = RANGE_TEST_COUNTERS + BANDIT_COUNTERS + DISTILLED_COUNTERS

ORACLES = {
    "loss": OracleController,
    "alignment": OracleAlignmentController,
    "range_test": OracleRangeTestController,
    "bandit": OracleBanditController,
    "distilled": OracleDistilledController,
}
NAMES = {
    "loss": COURSES + COUNTERS[:3],
    "alignment": ALIGNMENT_COURSES + COUNTERS,
    "range_test": RANGE_TEST_COURSES + RANGE_TEST_COUNTERS,
    "distilled": DISTILLED_COURSES + DISTILLED_COUNTERS,
    "bandit": BANDIT_COURSES + ARM_COURSES + COUNTERS[:3] + BANDIT_COUNTERS,
}


def loss_stream(n: int, seed: int) -> list[float]:
    """Losses around 3, falling, with everything in them that a training run can produce.

    One sample in fifty is NaN or infinite, as many are spikes, some of 1e300; forty stretches are
    constant. The first ten are plain, for a spike that the averages start from would hide the rest.
    """
    rng = np.random.default_rng(seed)
    losses = 2.0 + np.exp(-np.arange(n) / (n / 3)) + 0.4 * rng.standard_normal(n)
    for begin in rng.integers(10, n, 40):
        losses[begin : begin + rng.integers(20, 80)] = losses[begin]
    special = np.array(
        [math.nan, math.inf, -math.inf, 30.0, -150.0, 3e4, 1e300, -1e300, 1e-300, 0.0, -0.0]
    )
    where = np.flatnonzero(rng.random(n) < 0.05)
    where = where[where >= 10]
    losses[where] = rng.choice(special, where.size)
    return [float(x) for x in losses]


def reward_stream(n: int, seed: int) -> list[float | None]:
    """Rewards that come with one loss in three, a few of them not finite."""
    rng = np.random.default_rng(seed + 1000)
    rewards = 1.0 + np.arange(n) / n + 0.5 * rng.standard_normal(n)
    rewards[rng.random(n) < 0.02] = math.nan
    rewards[rng.random(n) < 0.01] = -1e300
    came = rng.random(n) < 0.33
    came[:10] = True
    rewards[:10] = np.linspace(0.5, 1.5, 10)
    return [float(r) if c else None for r, c in zip(rewards, came, strict=True)]


class Step(NamedTuple):
    """One optimizer step as its controller meets it."""

    sums: Sums | None
    """What its sweep sums up; None where no sweep reports"""
    loss: float | None = None
    reward: float | None = None
    skipped: bool = False
    """The gradient scaler lets it go by"""


def sums_of(cosines: Iterable[float], seed: int = 0) -> list[Sums]:
    """Sums with these cosines, of gradients and updates whose sizes wander over decades."""
    rng = np.random.default_rng(seed)
    found = []
    for cosine in cosines:
        gg, uu = (float(10.0 ** rng.normal(0, 2)) for _ in range(2))
        found.append((float(cosine) * math.sqrt(gg) * math.sqrt(uu), gg, uu))
    return found


def cosines(n: int, turn: int, seed: int, *, size: float = 0.3, mean: float = 1.0) -> Floats:
    """Cosines whose mean, in units of their noise, is ``mean`` and from ``turn`` on −``mean``."""
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(n) < turn, 1.0, -1.0)
    # A cosine of 1 or more is none, but the law divides by whatever size they have.
    return np.asarray(size * (mean * signs + rng.standard_normal(n)))


def alignment_stream(n: int, turn: int, seed: int, *, rewarded: bool = False) -> list[Step]:
    """Steps with everything in them: `cosines`, one in thirty not finite, and one in thirty zero.

    One sweep in thirty reports nothing, one step in thirty is skipped, and two in three are
    observed: by a loss and, where the user gives them, sometimes a reward.
    """
    rng = np.random.default_rng(seed + 2000)
    losses = loss_stream(n, seed)
    rewards = reward_stream(n, seed) if rewarded else [None] * n
    steps = []
    for i, sums in enumerate(sums_of(cosines(n, turn, seed), seed)):
        spoilt = list(sums)
        chance = rng.random()
        if chance < 1 / 30:
            spoilt[rng.integers(3)] = float(rng.choice([math.nan, math.inf]))
        elif chance < 2 / 30:
            spoilt[rng.integers(3)] = 0.0
        observed = rng.random() < 2 / 3
        steps.append(
            Step(
                sums=None if 2 / 30 <= chance < 3 / 30 else (spoilt[0], spoilt[1], spoilt[2]),
                loss=losses[i] if observed else None,
                reward=rewards[i] if observed else None,
                skipped=bool(rng.random() < 1 / 30),
            )
        )
    return steps


def observed(losses: Sequence[float], rewards: Sequence[float | None] | None = None) -> list[Step]:
    """Steps that are told these losses, and nothing else but rewards."""
    pairs = zip(losses, rewards or [None] * len(losses), strict=True)
    return [Step(None, loss, reward) for loss, reward in pairs]


def oracle_course(steps: Iterable[Step], law: str = "loss", **arguments: Any) -> dict[str, Floats]:
    """The oracle's sensors and knobs after each step; ``arguments`` are its controller's."""
    controller: Any = ORACLES[law](**arguments)
    by_epoch = controller.every is None
    rows = []
    for step in steps:
        if step.skipped:
            controller.rewind = False
        else:
            controller.advance(*((None, None) if by_epoch else (step.loss, step.reward)))
            if by_epoch and step.loss is not None:
                controller.update(step.loss, step.reward)
            if step.sums is not None:
                controller.gather(*step.sums)
        rows.append(_row(controller, law))
    return _by_name(rows, law)


def course_of(states: Iterable[Any], law: str = "loss") -> dict[str, Floats]:
    """A name's numbers, one for each state."""
    return _by_name([_row(state, law) for state in states], law)


def _row(state: Any, law: str) -> list[float]:
    return [float(getattr(state, name)) for name in NAMES[law]]


def _by_name(rows: list[list[float]], law: str) -> dict[str, Floats]:
    return dict(zip(NAMES[law], np.array(rows, np.float64).T, strict=True))


def assert_same_course(actual: dict[str, Floats], expected: dict[str, Floats]) -> None:
    """Raise unless every course agrees to its law's tolerance and every counter exactly."""
    tolerance = "alignment_law" if "held" in expected else "law"
    for name, course in expected.items():
        if name in EXACT:
            np.testing.assert_array_equal(actual[name], course, err_msg=name)
            continue
        try:
            assert_close(actual[name], course, tolerance)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def assert_alive(course: dict[str, Floats]) -> None:
    """Raise if a knob or sensor hardly moves: equal courses would then show nothing."""
    for name in ("lr", "momentum", "loss_direction", "loss_mean", "variance", "plateau"):
        distinct = np.unique(course[name]).size
        if distinct < 100:
            raise AssertionError(f"{name} takes only {distinct} values")
