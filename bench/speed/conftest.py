"""The options of ``pytest bench/speed``, and its one measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.speed.tables import Row
from bench.step import add_options, run


def pytest_addoption(parser: pytest.Parser) -> None:
    """The same options as ``python -m bench.step``."""
    add_options(parser.getgroup("bench.step").addoption)


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> dict[str, Row]:
    """All contenders' rounds, interleaved; measured once, before the first of them is reported."""
    given = request.config.option
    measured = run(given.parameters[:1], given.rounds, torch.device(given.device), given.in_a_row)
    return {row["contender"]: row for row in measured}
