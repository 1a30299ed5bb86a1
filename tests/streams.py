"""Recorded-looking curves of loss and reward, and the courses that a controller takes over them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle import OracleController
from tolerances import assert_close

Floats = NDArray[np.float64]

COURSES = (
    "log_lr",
    "logit_momentum",
    "log_noise",
    "lr",
    "momentum",
    "noise",
    "loss_mean",
    "loss_trend",
    "loss_scale",
    "loss_direction",
    "variance",
    "variance_scale",
    "plateau",
    "reward_mean",
    "reward_trend",
    "reward_scale",
    "reward_direction",
)
"""What `laws.State` and the oracle both name, and rounding may move."""

COUNTERS = ("step", "updates", "nonfinite")
"""What they both count: equal or wrong."""


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


def oracle_course(
    losses: Sequence[float | None], rewards: Sequence[float | None] | None, **arguments: Any
) -> dict[str, Floats]:
    """The oracle's sensors and knobs after each loss; ``arguments`` are `OracleController`'s."""
    controller = OracleController(**arguments)
    rows = []
    for loss, reward in zip(losses, rewards or [None] * len(losses), strict=True):
        if controller.every is None:
            assert loss is not None
            controller.update(loss, reward)
        else:
            controller.advance(loss, reward)
        rows.append([float(getattr(controller, name)) for name in COURSES + COUNTERS])
    return _by_name(rows)


def course_of(states: Iterable[Any]) -> dict[str, Floats]:
    """The same of a sequence of `laws.State`."""
    return _by_name([[getattr(s, name) for name in COURSES + COUNTERS] for s in states])


def _by_name(rows: list[list[float]]) -> dict[str, Floats]:
    columns = np.array(rows, np.float64).T
    return dict(zip(COURSES + COUNTERS, columns, strict=True))


def assert_same_course(actual: dict[str, Floats], expected: dict[str, Floats]) -> None:
    """Raise unless every course agrees to the tolerance "law" and every counter exactly."""
    for name in COUNTERS:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    for name in COURSES:
        try:
            assert_close(actual[name], expected[name], "law")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def assert_alive(course: dict[str, Floats]) -> None:
    """Raise if a knob or sensor hardly moves: equal courses would then show nothing."""
    for name in ("lr", "momentum", "loss_direction", "loss_mean", "variance", "plateau"):
        distinct = np.unique(course[name]).size
        if distinct < 100:
            raise AssertionError(f"{name} takes only {distinct} values")
