"""Many ranks decide as one: the mean of what they observed, and never a wait for ever."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import rank_jobs_control as jobs
import torch
from ranks import Crew, Failed, crew_in

from adaptiverl import Control
from adaptiverl.controller import Controller

SENSED = ("alpha", "momentum", "noise", "loss_mean", "variance", "reward_mean", "plateau")


def same(results: list[Any]) -> bool:
    """Every rank's first item, its controller's memory, bit for bit."""
    return len({result[0] for result in results}) == 1


def alone(losses: list[float], control: Control, start: tuple[float, float] = (1e-2, 0.9)) -> Any:
    """One rank's controller after these losses."""
    controller = Controller(control, *start)
    groups = torch.tensor([[start[0], 0.9, 0.999, 1e-8, 1e-2]], dtype=torch.float64)
    effective = torch.zeros((1, 2), dtype=torch.float64)
    for loss in losses:
        controller.observe(loss)
        controller.advance(groups, effective)
    return controller.read()


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_decide_by_the_mean_of_their_means(crew: Crew, size: int) -> None:
    results = crew.run(size, jobs.average, "adamw")
    assert same(results)
    means = torch.tensor([means for _, _, means in results], dtype=torch.float64)
    assert len(set(means[:, 0].tolist())) == size, "the ranks' losses must differ"
    expected = alone(means.mean(dim=0).tolist(), jobs.EVERY_STEP)
    knobs = results[0][1]
    assert knobs["updates"] == jobs.STEPS
    for name in SENSED:
        value = expected.lr if name == "alpha" else getattr(expected, name)
        assert knobs[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_sgd_decides_by_the_mean_too(crew: Crew) -> None:
    results = crew.run(2, jobs.average, "sgd")
    assert same(results)
    assert results[0][1]["updates"] == jobs.STEPS


def test_rewards_are_averaged_over_the_ranks_that_have_one(crew: Crew) -> None:
    results = crew.run(2, jobs.average_rewards)
    assert same(results)
    # At step 11 rank 1 alone has one; at step 10 nobody, and the last of all is kept.
    assert results[0][1]["reward"] == 10.0 + 11


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_ranks_bad_loss_is_everybodys(crew: Crew, bad: float) -> None:
    results = crew.run(2, jobs.bad_losses, bad)
    assert same(results)
    knobs = results[0][1]
    assert knobs["nonfinite"] == 1
    # The reflex of method.md#non-finite in the midst of falling losses.
    expected = alone([2.0, 1.9, 1.8, bad, 1.6, 1.5], jobs.EVERY_STEP)
    assert knobs["alpha"] == pytest.approx(expected.lr, rel=1e-9)


@pytest.mark.parametrize("observers", [[0], [1], [0, 2]])
def test_ranks_without_an_observation_follow_the_others(crew: Crew, observers: list[int]) -> None:
    results = crew.run(3, jobs.some_observe, observers)
    assert same(results)
    knobs = results[0][1]
    assert knobs["loss"] == pytest.approx(2.0 + sum(observers) / len(observers), rel=1e-12)
    assert knobs["updates"] == 11, "at the step that nobody observed, nothing is decided"
    for rank, (_, _, told) in enumerate(results):
        assert len(told) == (rank not in observers)
        assert all("on this rank" in text for text in told)


def test_a_warm_up_from_zero_that_one_rank_observes(crew: Crew) -> None:
    results = crew.run(2, jobs.first_step_at_rate_zero)
    assert same(results)
    # At a rate of 0 nobody meets, so that a step to make state may come on one rank alone.
    assert results[0][1]["updates"] == 5


@pytest.mark.parametrize("observer", [None, 0, 1])
@pytest.mark.parametrize("law", ["loss", "alignment"])
@pytest.mark.parametrize("how", ["plain", "zero", "fsdp"])
def test_whether_ranks_meet_is_not_for_one_ranks_gradients_to_say(
    crew: Crew, how: str, law: str, observer: int | None
) -> None:
    """At a rate of 0; one rank's are all zero, as those of a checkpoint library's step."""
    results = crew.run(2, jobs.rate_zero, how, law, observer, limit=20.0)
    assert same(results)
    for _, knobs, moved in results:
        assert knobs["step"] == 4, "steps at a rate of 0 do not count"
        assert knobs["loss"] == 3.0
        assert moved == [False, False, True, True, True, True]


@pytest.mark.parametrize("when", ["before training", "while training"])
def test_state_may_be_made_on_one_rank_alone(crew: Crew, when: str) -> None:
    (memory, knobs, made), (other, _, others) = crew.run(2, jobs.state_made_alone, when, limit=20.0)
    assert memory == other
    assert knobs["step"] == 6
    assert (made, others) == ((1, 0) if when == "before training" else (0, 1))


def test_epochwise_updates_meet_when_they_are_called(crew: Crew) -> None:
    results = crew.run(2, jobs.epochwise)
    assert same(results)
    _, knobs, seen = results[0]
    assert knobs["updates"] == 4
    assert knobs["loss"] == 3.0 - 1.5 + 0.5
    assert seen == [(2, 4, torch.float64)] * 4


def test_collectives_of_a_step(crew: Crew) -> None:
    once = [(2, 4, torch.float64)]
    for found in crew.run(2, jobs.collectives):
        assert found == {
            "observed": once,
            "three micro-batches": once,
            "frozen": [],
            "alone": [],
            "epoch-wise control": [],
            "noise and clipping": once,
            "making state for a checkpoint": [],
        }


def test_groups_decide_apart_and_wrong_ones_are_refused(crew: Crew) -> None:
    results = crew.run(4, jobs.groups)
    memories = [result["memory"] for result in results]
    assert memories[0] == memories[1] != memories[2] == memories[3]


def test_a_job_that_hangs_fails_and_is_killed(tmp_path: Path) -> None:
    with crew_in(tmp_path) as crew:
        pids = crew.run(2, jobs.process_id)
        with pytest.raises(Failed, match="hung"):
            crew.run(2, jobs.deadlock, limit=2.0)
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
