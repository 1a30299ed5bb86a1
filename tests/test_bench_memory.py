"""bench.memory counts what the tensors take, and the pages' table is what it prints."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from bench import memory
from bench.memory import HALF, SINGLE, Contender, bytes_of, count, count_all

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
