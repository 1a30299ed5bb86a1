"""Gradient scalers on many ranks: a step is skipped on all of them or on none."""

from __future__ import annotations

import pytest
import rank_jobs_amp as jobs
from ranks import Crew


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_one_ranks_overflow_skips_everybodys_step(crew: Crew, wrapper: str, fused: bool) -> None:
    results = crew.run(2, jobs.overflow, wrapper, fused, "loss")
    assert results[0] == results[1]
    _, _, knobs, scale = results[0]
    assert knobs["step"] == 9
    assert knobs["nonfinite"] == 0, "a skipped step's loss does not count"
    assert scale == 2.0**9


def test_losses_that_are_sharded_tensors(crew: Crew) -> None:
    one, other = crew.run(2, jobs.sharded_loss)
    assert one == other
    assert one[1] == 3.0
