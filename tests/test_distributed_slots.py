"""Shards of state under FSDP2: what does not fit is refused, and what was moved away is freed."""

from __future__ import annotations

import pytest
import rank_jobs_slots as jobs
from ranks import Crew


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_between_steps_nothing_keeps_a_shard_alive(crew: Crew, kind: str) -> None:
    assert crew.run(2, jobs.freed, kind) == [(True, 0, True)] * 2


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_shard_of_a_moment_that_was_cut_is_refused(crew: Crew, kind: str) -> None:
    for said, unmoved in crew.run(2, jobs.cut, kind):
        assert "of parameter 0 must match the parameter's, got (1,) beside" in said
        assert unmoved
