"""bench.memory counts what the tensors take, and the pages' table is what it prints; the study of
storage says in pairs what it costs."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import memory
from bench.memory import HALF, SINGLE, Contender, bytes_of, count, count_all
from bench.run.rows import Rows
from bench.studies import storage
from bench.tasks import TASKS

pytestmark = pytest.mark.source_tree
SHAPES = [(64, 64)] * 8
ELEMENTS = 8 * 64 * 64
STATE = {"AdaptiveAdamW": 2, "AdaptiveLion": 1, "AdaptiveSGD": 1}
"""Numbers that a rule keeps of each"""


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("state_dtype", [SINGLE, HALF])
@pytest.mark.parametrize("name", STATE)
def test_what_is_counted_is_what_the_dtypes_say(
    name: str, dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    found = count(Contender(name, dtype, memory.made(name, state_dtype=state_dtype)), SHAPES)
    assert found.weights == found.gradients == ELEMENTS * dtype.itemsize
    state = ELEMENTS * STATE[name] * state_dtype.itemsize
    assert state < found.state < state + 20_000  # the controller and what kernels read


def test_released_gradients_are_counted_where_most_are_there() -> None:
    released = Contender("", HALF, memory.made("AdaptiveAdamW"), releases=True)
    assert count(released, SHAPES).gradients == 64 * 64 * 2


def test_shared_memory_counts_once_and_tensors_in_others_do() -> None:
    whole = torch.zeros(10)
    nested = {"state": [whole, {"again": whole, "number": 3}]}
    assert bytes_of(nested) == 40
    assert bytes_of(nn.Parameter(torch.zeros(3, dtype=HALF))) == 6


def test_who_is_not_installed_is_left_out_with_the_reason() -> None:
    missing = Contender("nobody's", SINGLE, memory.package("no_such_package.AdamW"))
    counted, left_out = count_all([missing], SHAPES)
    assert counted == []
    assert "nobody's, float32: No module named 'no_such_package'" in left_out[0]


def test_the_command_prints_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--parameters", "small", "--only", "AdaptiveLion", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    line = r"\| AdaptiveLion, state in float32 +\| +bfloat16 \| +2\.00 \|"
    assert len(re.findall(line, said)) == 1
    assert "python -m bench.memory --parameters small" in said


def test_the_study_of_storage_pairs_its_runs_and_keeps_them(tmp_path: Path) -> None:
    task = replace(TASKS["autoencoder"], steps=25)
    in_blocks = "int8 state, of all tensors"
    with Rows(tmp_path / "rows.csv") as kept:
        runs = storage.Runs(task, 1e-3, "told", False, kept)
        table = storage.trainings(runs, [in_blocks, "int8 state"], [0])
        (row,) = runs.of(in_blocks, [0])
    with Rows(tmp_path / "rows.csv") as kept:
        again = storage.Runs(task, 1e-3, "told", False, kept)
        assert storage.trainings(again, [in_blocks, "int8 state"], [0]) == table
        assert len(kept.rows) == 3  # each was trained once
        longer = storage.Runs(replace(task, steps=50), 1e-3, "told", False, kept)
        assert longer.found == {}
    assert row.final == statistics.mean(row.curve)
    *_, plain, coded, small = table.splitlines()
    assert plain.endswith("+0.00% |")
    assert not coded.endswith("0.00% |")
    assert small.endswith("+0.00% |")  # every tensor of this net is below 4,096 elements
    assert storage.difference([2.0, 3.0], [1.0, 2.0]) == (0.75, 0.25)
    assert math.isnan(storage.difference([1.0, math.nan], [1.0, 2.0])[0])
