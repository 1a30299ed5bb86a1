"""Every test starts from the same seeds, on one thread, and leaves the thread count as it was."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from ranks import Crew, crew_in

# The same examples in every run: a failure is the code's, never the day's.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

# bench/ is not part of the wheel. At the end of the path, so that an installed adaptiverl wins
# over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))


LONG = {
    "test_a_run_survives_a_killed_rank_with_the_same_log",
    "test_interpreted",
    "test_variants_are_within_their_budgets",
}
"""They take the longest, each in one piece"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones begin first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: getattr(item, "originalname", item.name) not in LONG)


def pytest_collection_finish() -> None:
    """What is loaded is no garbage: every `gc.collect()` of a library would walk through it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Commands of the source tree use its package, so they say nothing about an installed wheel."""
    wheel = os.environ.get("ADAPTIVERL_EXPECT_WHEEL") == "1"
    if wheel and item.get_closest_marker("source_tree"):
        pytest.skip("runs a command of the source tree, and here the wheel is under test")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (code under test may draw from the global generator)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    # The tensors are small: a second thread costs more than it brings.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision per process; each test chooses its own."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(True)
        state.GradientState._reset_state()


@pytest.fixture
def say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run `python -m adaptiverl replay` in this process, without its picture."""
    from recorded_files import Said

    monkeypatch.setattr("adaptiverl.plots.knobs", lambda *_, **__: None)
    return lambda file, *options: Said(tmp_path, capsys, file, options)


@pytest.fixture(scope="session")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Processes that play ranks, started by the first test that wants them."""
    with crew_in(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks
