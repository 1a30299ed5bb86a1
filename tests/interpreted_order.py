"""The kernels' sums whatever order a launch's programs run in, in Triton's interpreter.

A GPU starts and ends programs in any order, so any chunk of a tensor may be the last to finish, the
one that adds up what all left. The interpreter runs them one after the other, the tensor's last
chunk always last; here it is made to take them in a shuffled order. `test_kernels.py` runs this
file, in a process of its own, as it does `interpreted_pass.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import interpreted_pass
import pytest
import torch
from adaptiverl.kernels.chunks import CHUNK, chunk_table
from broken_kernels import break_kernel
from interpreted_pass import Launch, _patched_once, make  # noqa: F401 (for every test here)
from pass_cases import CASES, SGD, Case, state_of, written
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

SIZES = (CHUNK + 1, 0, 7, 2 * CHUNK + 600)
"""From one chunk to three, an empty tensor among them"""
SEEDS = range(30, 33)


class Shuffled:
    """Runs every launch's programs in an order of its own, and says which orders those were.

    Args:
        seed: Of the orders; None leaves them as the interpreter has them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
        self._draw = None if seed is None else random.Random(seed)
        self._set_dim, self._set_index = (
            interpreter_builder.set_grid_dim,
            interpreter_builder.set_grid_idx,
        )
        self.orders: list[list[int]] = []
        monkeypatch.setattr(interpreter_builder, "set_grid_dim", self._start)
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", self._take)

    def _start(self, programs: int, *others: int) -> None:
        assert others == (1, 1), "these kernels' grids have one dimension"
        self._set_dim(programs, *others)
        order = list(range(programs))
        if self._draw is not None:
            self._draw.shuffle(order)
        self.orders.append(order)

    def _take(self, turn: int, y: int, z: int) -> None:
        self._set_index(self.orders[-1][turn], y, z)


def squares() -> list[Tensor]:
    """Σ g² of every tensor, twice over: what the first launch leaves behind is the second's."""
    launch = Launch(SGD, [make(SGD, n) for n in SIZES])
    once = launch.statistics(state_of(), always=True).clone()
    assert not launch.finished.any(), "a ticket was not handed back"
    launch.partials.fill_(float("nan"))
    again = launch.statistics(state_of(), always=True)
    assert not launch.finished.any(), "a ticket was not handed back"
    return [once, again]


def step(case: Case) -> list[Tensor]:
    groups, kept = len(case.groups), max(case.kept)
    entries = [make(case, n, index=i, group=i % groups, kept=kept) for i, n in enumerate(SIZES)]
    sums = Launch(case, entries).step(sums=True)
    assert sums is not None
    return [sums, *(t for entry in entries for t in written(entry))]


LAUNCHES: dict[str, Callable[[], list[Tensor]]] = {"squares": squares}
LAUNCHES |= {name: partial(step, case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", LAUNCHES)
def test_any_order_of_programs_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def run(seed: int | None) -> tuple[list[bytes], list[list[int]]]:
        with monkeypatch.context() as patch:
            shuffled = Shuffled(patch, seed)
            torch.manual_seed(0)
            results = LAUNCHES[name]()
        assert all(t.isfinite().all() for t in results), f"a sum is missing, orders: seed {seed}"
        return [t.numpy().tobytes() for t in results], shuffled.orders

    expected, in_turn = run(None)
    assert all(order == sorted(order) for order in in_turn)
    last: set[tuple[int, int]] = set()
    for seed in SEEDS:
        results, orders = run(seed)
        assert results == expected, f"other bits, orders: seed {seed}"
        assert len(orders) == len(in_turn)
        for order in orders:
            last |= last_chunks(order)
    # The largest tensor's sums have been added up by every one of its chunks.
    assert {(3, number) for number in range(3)} <= last


@pytest.mark.parametrize(
    ("file", "failed"), [("statistics.py", ["squares"]), ("walk.py", list(CASES))]
)
def test_who_is_last_by_index_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, failed: list[str]
) -> None:
    """With its programs in turn, such a kernel has every sum right."""
    ticket, index = "if is_last_of_tensor(finished, row, count):", "if number == count - 1:"
    broken = break_kernel(monkeypatch, tmp_path, file, ticket, index)
    monkeypatch.setattr(interpreted_pass, "triton_step", broken["step"])
    monkeypatch.setattr(interpreted_pass, "statistics", broken["statistics"])
    for name in failed:
        with pytest.raises(AssertionError, match=f"a sum is missing, orders: seed {SEEDS[0]}"):
            test_any_order_of_programs_gives_the_same_bits(monkeypatch, name)


def last_chunks(order: Sequence[int]) -> set[tuple[int, int]]:
    """Of every tensor, which of its chunks finished last: (tensor, chunk)."""
    chunks = chunk_table(SIZES).tolist()
    finished = {}
    for program in order:
        tensor, number = chunks[program]
        finished[tensor] = number
    return set(finished.items())
