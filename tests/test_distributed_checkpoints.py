"""Saved on some ranks, loaded on others: knobs and noise as if training had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import rank_jobs_checkpoints as jobs
from rank_jobs_training import fed_alone
from ranks import Crew

SAVED, END = 13, 24
WAYS = ["nested", "flattened", "offloaded", "from rank 0"]


@pytest.mark.parametrize("how", WAYS)
def test_from_four_ranks_to_two_and_to_one(crew: Crew, tmp_path: Path, how: str) -> None:
    expected, knobs = fed_alone(END)
    assert knobs["noise"] > 0, "σ never rose: the noise was not put to the test"
    crew.run(4, jobs.save, str(tmp_path), how, SAVED)
    for size in (2, 1) if how in ("nested", "from rank 0") else (2,):
        answers = crew.run(size, jobs.load_and_go_on, str(tmp_path), how, SAVED, END)
        for whole, others in answers:
            assert whole == expected
            assert others == knobs


def test_from_two_ranks_to_four(crew: Crew, tmp_path: Path) -> None:
    expected, knobs = fed_alone(END)
    crew.run(2, jobs.save, str(tmp_path), "nested", SAVED)
    for whole, others in crew.run(4, jobs.load_and_go_on, str(tmp_path), "nested", SAVED, END):
        assert whole == expected
        assert others == knobs


def test_from_replicas_to_shards(crew: Crew, tmp_path: Path) -> None:
    expected, knobs = fed_alone(END)
    crew.run(2, jobs.save_replicas, str(tmp_path), SAVED)
    for whole, others in crew.run(4, jobs.load_and_go_on, str(tmp_path), "nested", SAVED, END):
        assert whole == expected
        assert others == knobs


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_draws_what_one_rank_draws(crew: Crew, groups: int) -> None:
    expected, _ = jobs.zero_alone(12)
    results = crew.run(2, jobs.zero, True, 12, groups)
    assert len({memory for _, memory, _ in results}) == 1
    assert sum(owned for _, _, owned in results) == len(expected)
    for params, _, owned in results:
        assert 0 < owned < len(expected), "nothing is divided: the test is of nothing"
        assert params == expected


def test_zero_without_numbers_keeps_replicas_equal_and_draws_other_noise(crew: Crew) -> None:
    expected, _ = jobs.zero_alone(12)
    (one, memory, _), (other, others_memory, _) = crew.run(2, jobs.zero, False, 12, 1)
    assert one == other != expected
    assert memory == others_memory


def test_zero_with_a_rank_that_owns_nothing(crew: Crew) -> None:
    (one, memory, _), (other, others_memory, owned) = crew.run(2, jobs.zero_owns_nothing)
    assert owned == 0
    assert one == other
    assert memory == others_memory


def test_zero_from_two_ranks_to_three(crew: Crew, tmp_path: Path) -> None:
    expected, _ = jobs.zero_alone(END)
    path = str(tmp_path / "zero.pt")
    crew.run(2, jobs.zero_save, path, SAVED)
    for params in crew.run(3, jobs.zero_load, path, SAVED, END):
        assert params == expected
