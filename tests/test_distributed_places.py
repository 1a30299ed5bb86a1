"""A shard's place in its logical tensor, against what the shard itself holds."""

from __future__ import annotations

from typing import Any

import pytest
import rank_jobs_places as jobs
from ranks import Crew
from torch.distributed.tensor import Replicate, Shard

SHAPES = [(8,), (5,), (1,), (3,), (8, 3), (5, 3), (2, 7), (1, 9), (1, 1, 6), (4, 4, 4), (3, 5, 2)]
ROWS = [[Shard(0)], [Replicate()]]
ROWS_OF_TWO = [
    [Shard(0), Shard(0)],
    [Replicate(), Shard(0)],
    [Shard(0), Replicate()],
    [Replicate(), Replicate()],
]
OTHERS = [[Shard(1)], [Shard(2)]]
OTHERS_OF_TWO = [[Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(1), Replicate()]]


def test_rows_are_where_the_place_says(crew: Crew) -> None:
    cases: list[Any] = [((4,), p, s) for p in ROWS for s in SHAPES]
    cases += [((2, 2), p, s) for p in ROWS_OF_TWO for s in SHAPES]
    for reports in zip(*crew.run(4, jobs.places, cases), strict=True):
        for case, known, there in reports:
            assert known, case
            assert there, case


def test_other_cuts_are_known_only_where_they_are_runs(crew: Crew) -> None:
    cases: list[Any] = [((4,), p, s) for p in OTHERS for s in SHAPES if len(s) > p[0].dim]
    cases += [((2, 2), p, s) for p in OTHERS_OF_TWO for s in SHAPES if len(s) > 1]
    seen = set()
    for reports in zip(*crew.run(4, jobs.places, cases), strict=True):
        for case, known, there in reports:
            seen.add(known)
            assert not known or there, case
    assert seen == {True, False}


@pytest.mark.parametrize("placements", [[Shard(1)], [Shard(0), Shard(1)], [Replicate(), Shard(1)]])
def test_shards_that_are_no_runs_use_numbers_of_their_own(
    crew: Crew, placements: list[Any]
) -> None:
    shape = (4,) if len(placements) == 1 else (2, 2)
    for size in [(6, 7), (3, 5, 2), (4, 3)]:
        stretches = crew.run(4, jobs.stretch, shape, placements, size)
        by_shard: dict[tuple[int, ...], set[int]] = {}
        for shard, start, length in stretches:
            used = set(range(start, start + length))
            # The replicas of a shard draw the same, other shards draw something else.
            assert by_shard.setdefault(shard, used) == used
        everything = [number for used in by_shard.values() for number in used]
        assert len(everything) == len(set(everything))


@pytest.mark.parametrize("rows", [8, 12])
def test_rows_that_fsdp_cuts_inside_tensor_parallelism(crew: Crew, rows: int) -> None:
    for known, there, strided in crew.run(4, jobs.fsdp_over_tp, rows):
        assert strided, "fully_shard places such shards in another way now"
        assert known
        assert there


def test_uneven_rows_inside_tensor_parallelism_are_not_taken_for_known(crew: Crew) -> None:
    for known, there, _ in crew.run(4, jobs.fsdp_over_tp, 6):
        assert not known or there
