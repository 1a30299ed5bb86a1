"""The comparison as pytest-benchmark shows, saves and compares it: ``pytest bench/speed``.

pytest-benchmark runs one benchmark to its end before the next begins, and a machine that is busy
for a while would favour whoever it wasn't busy for. So the rounds are timed beforehand, all
contenders in turn, and are given to pytest-benchmark by a clock that replays them.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.speed.names import IN_A_STEP
from bench.speed.tables import Row

CLOCK = {"now": 0.0}


@pytest.mark.benchmark(group="one optimizer step", timer=lambda: CLOCK["now"])
@pytest.mark.parametrize("name", IN_A_STEP)
def test_step(benchmark: Any, rows: dict[str, Row], name: str) -> None:
    """One contender's rounds."""
    row = rows[name]
    seconds = iter(row["seconds"])
    benchmark.pedantic(
        lambda: CLOCK.update(now=next(seconds)),
        setup=lambda: CLOCK.update(now=0.0),
        rounds=row["rounds"],
    )
    benchmark.extra_info.update({key: row[key] for key in row if key != "seconds"})
