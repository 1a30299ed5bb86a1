"""DDP and FSDP2: replicas stay equal, and many ranks do what one does."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import rank_jobs as jobs
import torch
from ranks import Crew
from torch.distributed.tensor import Replicate, Shard

from adaptiverl import AdaptiveLion, AdaptiveSGD

KNOBS = ("lr", "alpha", "momentum", "noise")


def agree(results: list[Any]) -> bool:
    """Every rank returned the same first two items."""
    return all(result[:2] == results[0][:2] for result in results)


# DDP


def test_replicas_are_equal_to_the_bit_after_500_steps(crew: Crew) -> None:
    results = crew.run(2, jobs.long_run, 500, None)
    assert agree(results)
    knobs = results[0][1]
    assert knobs["updates"] == 100
    assert knobs["noise"] > 0, "σ never rose: the noise was not put to the test"


def test_without_the_mean_over_ranks_replicas_part(crew: Crew) -> None:
    one, other = crew.run(2, jobs.long_run, 200, False)
    assert one[0] != other[0]
    assert one[1]["alpha"] != other[1]["alpha"]


@pytest.mark.parametrize("how", ["bucket views", "static graph", "no_sync", "bf16 hook"])
def test_ways_to_wrap(crew: Crew, how: str) -> None:
    results = crew.run(2, jobs.wrapped, how)
    assert agree(results)
    assert results[0][1]["updates"] == 10


def test_parameters_that_some_ranks_or_all_do_not_use(crew: Crew) -> None:
    results = crew.run(2, jobs.unused_parameters)
    assert agree(results)
    steps = results[0][2]
    assert steps[0] == 20
    assert 0 < steps[1] < 20
    assert steps[2] == 0


def test_a_layer_frozen_then_thawed(crew: Crew) -> None:
    results = crew.run(2, jobs.thawed)
    assert agree(results)
    assert results[0][2] == 10


# One rank, two and four


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_gradients_without_rounding_give_the_same_bits_on_any_number_of_ranks(
    crew: Crew, wrapper: str
) -> None:
    ((expected, knobs, _),) = crew.run(1, jobs.same_batch, "ddp", True)
    for size in (2, 4):
        for weights, others, _ in crew.run(size, jobs.same_batch, wrapper, True):
            for name in KNOBS:
                assert others[name] == pytest.approx(knobs[name], rel=1e-9), name
            for weight, want in zip(weights, expected, strict=True):
                assert torch.equal(weight, want), "the noise differs"


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_ranks_differ_only_by_the_order_of_summation(crew: Crew, wrapper: str) -> None:
    ((expected, knobs, bounds),) = crew.run(1, jobs.same_batch, "ddp", False)
    assert all(float(bound.max()) < 1e-3 for bound in bounds), "a bound that bounds nothing"
    for size in (2, 4):
        for weights, others, _ in crew.run(size, jobs.same_batch, wrapper, False):
            for name in KNOBS:
                assert others[name] == pytest.approx(knobs[name], rel=1e-9), name
            for weight, want, bound in zip(weights, expected, bounds, strict=True):
                assert bool(((weight.double() - want.double()).abs() <= bound).all())


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_model_whose_losses_depend_on_it_decides_alike(crew: Crew, wrapper: str) -> None:
    ((expected, knobs),) = crew.run(1, jobs.nonlinear, "ddp")
    for size in (2, 4):
        for params, others in crew.run(size, jobs.nonlinear, wrapper):
            for name in KNOBS:
                assert others[name] == pytest.approx(knobs[name], rel=1e-9), name
            for param, want in zip(params, expected, strict=True):
                torch.testing.assert_close(param, want, rtol=1e-9, atol=1e-11)


# Shards


ROWS, COPY = Shard(0), Replicate()
PARAMETER = jobs.Control(every=2, noise_bounds=(0.1, 0.2), noise_target="parameter")


@pytest.mark.parametrize(
    ("mesh", "ways", "steps", "options", "members"),
    [
        ((2,), [ROWS], 40, {}, 2),
        ((4,), [ROWS], 40, {}, 4),
        ((2, 2), [COPY, ROWS], 10, {}, 2),
        ((2, 2), [ROWS, COPY], 10, {}, 2),
        ((2, 2), [ROWS, ROWS], 10, {}, 4),
        # Still one collective, for the four of six that are cut at all.
        ((2, 2), [[ROWS, ROWS], [ROWS, COPY], [COPY, COPY]], 10, {}, 4),
        ((3,), [ROWS], 12, {"algorithm": AdaptiveSGD, "momentum": 0.9}, 3),
        ((3,), [ROWS], 12, {"amsgrad": True, "maximize": True}, 3),
        ((3,), [ROWS], 12, {"algorithm": AdaptiveLion}, 3),
        ((3,), [ROWS], 12, {"dtype": torch.bfloat16}, 3),
        ((3,), [ROWS], 12, {"dtype": torch.bfloat16, "state_dtype": torch.bfloat16}, 3),
        ((3,), [ROWS], 12, {"dtype": torch.bfloat16, "master_bits": 8}, 3),
        ((4,), [ROWS], 12, {"state_dtype": torch.bfloat16, "amsgrad": True}, 4),
        ((2,), [ROWS], 6, {"control": PARAMETER}, 2),
    ],
    ids=str,
)
def test_shards_equal_one_rank_bit_for_bit(
    crew: Crew,
    mesh: tuple[int, ...],
    ways: list[Any],
    steps: int,
    options: dict[str, Any],
    members: int,
) -> None:
    expected, knobs = jobs.fed_alone(steps, **options)
    assert steps < 40 or knobs["noise"] > 0, "σ never rose: the noise was not put to the test"
    size = prod(mesh)
    uncut = 2 if isinstance(ways[0], list) else 0
    for whole, others, seen, told in crew.run(size, jobs.fed_shards, mesh, ways, steps, options):
        assert whole == expected
        assert others == knobs
        assert told == []
        # The observation's, and one for the squares of all tensors that are cut: of gradients,
        # and of parameters where those have the noise.
        squares = [(members, len(jobs.SHAPES) - uncut, torch.float64)]
        assert seen == [(size, 4, torch.float64), *squares * (2 if "control" in options else 1)]


def test_shards_that_are_no_runs_draw_their_own_noise_and_say_so_once(crew: Crew) -> None:
    columns = [Shard(1)]
    steps = {"control": jobs.Control(every=2, noise_bounds=(0.1, 0.1)), "max_grad_norm": None}
    plain = {"control": jobs.Control.frozen(), "max_grad_norm": 0.4}
    jobs_shapes = [s for s in jobs.SHAPES if len(s) > 1]
    results = crew.run(2, jobs.fed_columns, columns, 6, steps)
    assert results[0][0] == results[1][0]
    for _, told in results:
        assert len(told) == 1
        assert f"{len(jobs_shapes)} sharded parameters" in told[0]
    # Without noise they are one rank's, clipping by the norm of the whole included.
    for whole, told in crew.run(2, jobs.fed_columns, columns, 6, plain):
        assert whole == jobs.fed_columns_alone(6, plain)
        assert len(told) == 1


def test_collectives_of_sharded_parameters(crew: Crew) -> None:
    mean, squares = (4, torch.float64), (len(jobs.SHAPES), torch.float64)
    for found in crew.run(2, jobs.quiet_shards):
        assert found == {
            "σ off": [mean],
            "σ at its floor": [mean],
            "σ on": [mean, squares],
            "clipping": [mean, squares],
            "clipping and σ": [mean, squares],
            "frozen": [],
            "deciding alone, σ possible": [squares],
        }


def test_shards_whose_gradients_alone_moved_make_no_entry(crew: Crew) -> None:
    everything = len(jobs.SHAPES)
    for found in crew.run(2, jobs.glances):
        assert found == {
            "first": everything,
            "like the last": 0,
            "a moment was replaced": everything,
            "again like the last": 0,
            "a shard was replaced": everything,
            "a gradient is laid out otherwise": everything,
            "all are": everything,
        }


def test_shards_on_ranks_that_decide_apart_are_refused(crew: Crew) -> None:
    for message in crew.run(2, jobs.wrong_mesh):
        assert "process_group must hold every rank that a parameter is sharded over" in message


def test_autograd_sees_that_a_sharded_parameter_changed(crew: Crew) -> None:
    assert crew.run(2, jobs.autograd_sees_the_step) == [True, True]


@pytest.mark.parametrize("how", ["plain", "bf16", "offload", "replicated shards"])
def test_options_of_fully_shard(crew: Crew, how: str) -> None:
    results = crew.run(4, jobs.fsdp, how)
    assert agree(results)
    assert len({memory for _, _, memory, _ in results}) == 1
    assert results[0][1]["updates"] == 10
    losses = results[0][3]
    assert sum(losses[-5:]) < sum(losses[:5]), "it did not learn"


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("strategy", "options", "refused"),
    [
        ("FULL_SHARD", {"max_grad_norm": 1.0, "control": jobs.Control(noise_bounds=(0, 0))}, True),
        ("FULL_SHARD", {"control": jobs.Control()}, True),
        ("SHARD_GRAD_OP", {"max_grad_norm": 1.0, "control": jobs.Control.frozen()}, True),
        ("FULL_SHARD", {"control": jobs.Control(noise_bounds=(0, 0))}, False),
        ("NO_SHARD", {"max_grad_norm": 1.0}, False),
    ],
)
def test_fsdp1s_shards_are_not_clipped_each_by_its_own_norm(
    crew: Crew, original: bool, strategy: str, options: dict[str, Any], refused: bool
) -> None:
    for said in crew.run(2, jobs.flat_shards, original, strategy, options):
        assert len(said) == (3 if refused else 0)
        for text in said:
            assert "cannot clip FSDP1's flat shards, nor draw noise" in text
            assert "model.clip_grad_norm_" in text
            assert "fully_shard" in text
