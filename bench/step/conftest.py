"""The options of ``pytest bench/step``, and its one measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.step.measure import Measurement, measure
from bench.step.options import OPTIONS, default_device


def pytest_addoption(parser: pytest.Parser) -> None:
    """The same options as ``python -m bench.step``."""
    group = parser.getgroup("bench.step")
    for name, keywords in OPTIONS.items():
        group.addoption(name, **keywords)


@pytest.fixture(scope="session")
def measurement(request: pytest.FixtureRequest) -> Measurement:
    """All contenders' rounds, interleaved; measured once, before the first of them is reported."""
    options = request.config.option
    device = torch.device(options.device or default_device())
    return measure(options.parameters, options.rounds, device)
