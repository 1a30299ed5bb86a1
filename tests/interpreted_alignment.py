"""The Triton sweeps' alignment sums, in Triton's interpreter, against the CPU's and the oracle.

`test_triton_backend.py` runs this file. By hand: ``TRITON_INTERPRET=1 pytest
tests/interpreted_alignment.py``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from alignment import (
    CHOICES,
    alignment_of,
    assert_agrees_with_the_compiled_sweep,
    assert_sums_close,
    backends_of,
    expected_alignment,
    make_optimizer,
    parameters,
    put_gradients,
    sums_of,
)
from host_waits import HostWaits
from interpreted_optimizer import Operations, launches, use_triton  # noqa: F401 (a fixture too)
from interpreted_pass import _hardware_rounding, _patched_once, pytestmark  # noqa: F401
from torch import nn

import adaptiverl
from adaptiverl import AdaptiveAdamW
from adaptiverl.announcements import Announcements


# Every option is in interpreted_pass.py; here, one that is quiet and one with noise and clipping.
@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(a, name) for a, names in CHOICES.items() for name in (next(iter(names)), list(names)[-1])],
)
def test_the_triton_sweep_and_the_compiled_one_agree(algorithm: Any, name: str) -> None:
    assert_agrees_with_the_compiled_sweep(algorithm, name, "triton", use_triton)


@pytest.mark.parametrize("name", ["plain", "noise and clipping"])
def test_dtypes_and_what_only_the_reference_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several launches and a tensor without one, added up by the controller."""
    use_triton(monkeypatch)
    params = [*parameters(300), *parameters(70, dtype=torch.bfloat16), *parameters(40, 3)]
    params.append(nn.Parameter(torch.randn(8, 30)[::2, 1::3]))
    optimizer = make_optimizer(AdaptiveAdamW, name, params)
    optimizer._round.gradient_scale._max_grad_norm = 1e9  # whose factor is 1
    for step in range(3):
        put_gradients(params, step)
        expected = expected_alignment(optimizer)
        optimizer.step(loss=1.0)
        assert_sums_close(alignment_of(optimizer), expected, "statistics")
    assert sorted(set(backends_of(optimizer))) == ["reference", "triton"]
    assert len(backends_of(optimizer)) == 3


def test_a_skipped_step_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    use_triton(monkeypatch)
    params = parameters(700, 3)
    optimizer: Any = make_optimizer(AdaptiveAdamW, "noise and clipping", params)
    for step, found_inf in enumerate((0.0, 0.0, 1.0)):
        put_gradients(params, step)
        told, summed = alignment_of(optimizer), sums_of(optimizer)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        optimizer.step(loss=1.0)
        assert (alignment_of(optimizer) == told) == bool(found_inf)
        assert all(map(torch.equal, sums_of(optimizer), summed)) == (bool(found_inf) or step == 0)


def test_they_cost_one_launch_more_and_no_wait(
    launches: Counter[str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_triton(monkeypatch)
    # What is logged is read from the state, which here lies on the host.
    monkeypatch.setattr(Announcements, "look", lambda *_: None)
    params = parameters(*[3] * 30)
    optimizer = make_optimizer(AdaptiveAdamW, "plain", params)
    for step in range(3):
        put_gradients(params, step)
        launches.clear()
        with Operations() as operations, HostWaits(adaptiverl) as waits:
            optimizer.step()
    assert operations.names == {
        "adaptiverl.advance_.default": 1,
        "adaptiverl.reduce_alignment_.default": 1,
    }
    assert launches == {"step_kernel": 1}
    assert not waits.of("adaptiverl")
