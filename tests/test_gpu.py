"""`gpu_checks.py` on a GPU; and, everywhere, that its checks can run and can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import gpu_checks
import pytest
import torch
from gpu_checks import ANYWHERE, CHECKS, Skip, Where


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# torch warns of its own debug mode, of capturable=True outside of a capture, of streams.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name: str) -> None:
    try:
        CHECKS[name]()
    except Skip as skip:
        pytest.skip(str(skip))


@pytest.fixture
def on_the_cpu() -> Iterator[None]:
    device = Where.device
    Where.device = torch.device("cpu")
    yield
    Where.device = device


@pytest.mark.parametrize("name", sorted(ANYWHERE))
def test_the_checks_that_mean_something_on_a_cpu_pass_there(name: str, on_the_cpu: None) -> None:
    CHECKS[name]()


def test_a_comparison_notices_one_bit() -> None:
    values = [torch.zeros(3), torch.tensor([1.0, float("nan")])]
    gpu_checks.assert_same_bits(values, [v.clone() for v in values])
    other = [values[0], torch.tensor([1.0000001, float("nan")])]
    with pytest.raises(AssertionError, match="tensor 1: 1 of 2"):
        gpu_checks.assert_same_bits(values, other)
    gpu_checks.assert_other_bits(values, other)
    with pytest.raises(AssertionError, match="would not have noticed"):
        gpu_checks.assert_other_bits(values, values)


def test_waits_and_launches_are_told_from_the_rest() -> None:
    waiting = {"cudaStreamSynchronize", "cudaMemcpy", "cudaDeviceSynchronize"}
    others = {"cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemcpyAsync", "cudaMemsetAsync"}
    assert set(gpu_checks.waits_among(Counter([*waiting, *others]))) == waiting
    runs = Counter({"Memcpy HtoD (Pinned -> Device)": 1, "Memset (Device)": 2, "adamw_step": 1})
    assert gpu_checks.kernels_among(runs + Counter({"observe_kernel": 3})) == 4
