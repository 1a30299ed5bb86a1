"""The comparison as pytest-benchmark shows, saves and compares it: ``pytest bench/step``.

pytest-benchmark runs one benchmark to its end before the next begins, and a machine that is busy
for a while would favour whoever it wasn't busy for. So the rounds are timed beforehand, all
contenders in turn, and are given to pytest-benchmark by a clock that replays them.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.step.contenders import CONTENDERS
from bench.step.measure import Measurement
from bench.step.table import make_rows


class ReplayedClock:
    """Stands still until told by how much to move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now

    def replay(self, seconds: float) -> None:
        """Pass a duration that was measured before."""
        self.now = seconds


CLOCK = ReplayedClock()


@pytest.fixture(scope="session")
def rows(measurement: Measurement) -> dict[str, dict[str, Any]]:
    """The table's rows, by contender."""
    return {row["name"]: row for row in make_rows(measurement)}


@pytest.mark.benchmark(group="one optimizer step", timer=CLOCK)
@pytest.mark.parametrize("name", CONTENDERS)
def test_step(
    benchmark: Any, measurement: Measurement, rows: dict[str, dict[str, Any]], name: str
) -> None:
    """One contender's rounds."""
    seconds = iter(measurement.seconds[name])

    def start_at_zero() -> None:
        CLOCK.now = 0.0

    benchmark.pedantic(
        lambda: CLOCK.replay(next(seconds)), setup=start_at_zero, rounds=measurement.rounds
    )
    row = rows[name]
    benchmark.extra_info.update({key: row[key] for key in row if key != "seconds"})
    assert row["sigma"] == pytest.approx(CONTENDERS[name].sigma)
