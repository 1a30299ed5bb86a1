"""Many ranks on GPUs: over NCCL with a GPU for each, over gloo where they share one."""

from __future__ import annotations

import pytest
import rank_jobs_gpu as jobs
import torch
from rank_jobs_training import SHAPES
from ranks import Crew

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="NCCL wants a GPU per rank: needs two CUDA devices"
)
def test_replicas_on_nccl_are_equal_to_the_bit(crew: Crew) -> None:
    one, other = crew.run(2, jobs.nccl_replicas, limit=180.0)
    assert one == other
    assert one[1]["updates"] == 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_shards_on_a_gpu_equal_one_rank(crew: Crew) -> None:
    expected, knobs = jobs.alone()
    for whole, others, seen in crew.run(2, jobs.shards_on_one_gpu, limit=180.0):
        assert others == pytest.approx(knobs, rel=1e-9, nan_ok=True)
        assert whole == expected
        assert seen == [4, len(SHAPES)] * jobs.STEPS
