"""Σ g·u, Σ g² and Σ u² over ranks: every element counts once, however it is sharded or copied."""

from __future__ import annotations

from typing import Any

import pytest
import rank_jobs_alignment as jobs
from alignment import NOISY, assert_sums_close
from ranks import Crew
from torch.distributed.tensor import Replicate, Shard

from adaptiverl import AdaptiveLion, AdaptiveSGD

ROWS, COPY = Shard(0), Replicate()


def check(results: list[tuple[bytes, jobs.Course]], expected: jobs.Course, of: float = 1.0) -> None:
    """All ranks have the same memory to the bit, and `of` times the expected sums in every step."""
    assert all(result == results[0] for result in results)
    assert any(gu != 0 for gu, _, _ in expected), "no direction: the test is of nothing"
    for told, whole in zip(results[0][1], expected, strict=True):
        assert_sums_close(told, [of * number for number in whole], "sums_float64")


# Shards, with gradients put there by hand


@pytest.mark.parametrize("size", [2, 3, 4])
def test_shards_are_told_what_one_rank_is(crew: Crew, size: int) -> None:
    check(crew.run(size, jobs.shards, (size,), [[ROWS]], {}), jobs.alone({}))


@pytest.mark.parametrize(
    "ways",
    [
        [[COPY, ROWS]],
        [[ROWS, COPY]],
        [[ROWS, ROWS]],
        [[COPY, COPY]],
        [[COPY, ROWS], [ROWS, ROWS], [COPY, COPY], None],
    ],
    ids=str,
)
def test_meshes_of_two_dimensions(crew: Crew, ways: list[Any]) -> None:
    check(crew.run(4, jobs.shards, (2, 2), ways, {}), jobs.alone({}))


def test_plain_tensors_among_shards(crew: Crew) -> None:
    check(crew.run(3, jobs.shards, (3,), [[ROWS], None], {}), jobs.alone({}))


def test_shards_of_a_mesh_that_is_not_all_of_the_ranks(crew: Crew) -> None:
    check(crew.run(4, jobs.on_a_part_of_the_mesh, [[ROWS], None, [COPY]]), jobs.alone({}))


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": AdaptiveSGD, "momentum": 0.9, "nesterov": True},
        {"amsgrad": True, "maximize": True},
        {"algorithm": AdaptiveLion},
        {"control": NOISY},
    ],
    ids=["SGD", "amsgrad", "Lion", "noise"],
)
def test_other_options_on_shards(crew: Crew, options: dict[str, Any]) -> None:
    check(crew.run(2, jobs.shards, (2,), [[ROWS], None], options), jobs.alone(options))


# Wrappers


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "hsdp"])
def test_wrapped_models_are_told_what_one_rank_is(crew: Crew, wrapper: str, size: int) -> None:
    ((_, expected),) = crew.run(1, jobs.wrapped, "ddp")
    check(crew.run(size, jobs.wrapped, wrapper), expected)


@pytest.mark.parametrize("size", [2, 3])
def test_tensors_that_one_rank_each_has(crew: Crew, size: int) -> None:
    """ZeRO: the mean over ranks is the whole's sum over their number, which h does not see."""
    expected = jobs.alone({"max_grad_norm": None})
    check(crew.run(size, jobs.zero), expected, of=1 / size)


# Who meets


def test_ranks_without_a_gradient_meet_the_others(crew: Crew) -> None:
    results = crew.run(3, jobs.some_have_no_gradient)
    assert all(result == results[0] for result in results)
    told = results[0][1]
    # Two ranks of three have five elements each, clipped to a norm of 0.4; then nobody has any.
    assert [gg for _, gg, _ in told] == pytest.approx([2 / 3 * 0.16] * 4 + [0.0] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("how", "members", "means"),
    [
        ("world", [4], [2.5] * 4),
        ("pairs", [2], [1.5, 1.5, 3.5, 3.5]),
        ("alone", [], [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_those_who_decide_together_average(
    crew: Crew, how: str, members: list[int], means: list[float]
) -> None:
    """Ranks' gradients are 1, 2, 3, 4 in three places, and all came from the same first step."""
    for (met, (gu, _, uu)), mean in zip(crew.run(4, jobs.own_gradients, how), means, strict=True):
        assert met == members
        # u is the same everywhere: Σ g·u goes by the mean gradient.
        assert gu / uu * u_of_first_step() == pytest.approx(mean, rel=1e-5)


def u_of_first_step() -> float:
    """m/√v after one step on a gradient of 1: 0.1/√0.001."""
    return 0.1 / 0.001**0.5


def test_collectives(crew: Crew) -> None:
    squares = len(jobs.whole_parameters())
    for found in crew.run(2, jobs.collectives):
        assert found == {
            "quiet": [4, 3],
            "noise": [4, squares, 3],
            "clipping": [4, squares, 3],
            "making state for a checkpoint": [],
        }


def test_a_skipped_step_leaves_what_all_ranks_were_told(crew: Crew) -> None:
    results = crew.run(3, jobs.skipped)
    assert all(result == results[0] for result in results)
    memories, told = results[0]
    assert memories[2] == memories[1] != memories[3]
    assert told[2] == told[1] != told[3]
