"""The Triton kernels: the interpreted cases in their own process, and what needs no kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_work import calls_in
from interpreted import check

pytest.importorskip(
    "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
)

from adaptiverl.kernels.chunks import CHUNK, chunk_table, partial_sums

from adaptiverl.kernels import philox


def test_interpreted(tmp_path: Path) -> None:
    check(tmp_path, "interpreted_pass.py", "interpreted_order.py")


# How exact the normals are: philox.py's claim, over every uniform and every angle


def fused(a: np.ndarray, b: np.ndarray | np.float32, c: Any) -> np.ndarray:
    """A fused multiply-add of float32: the product of two is exact in float64."""
    return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)


def constant(name: str) -> np.float32:
    return np.float32(getattr(philox, name).value)


def test_every_radius_is_right_to_three_millionths() -> None:
    worst = 0.0
    for first in range(1, 2**24, 2**20):
        k = np.arange(first, first + 2**20)
        u = k.astype(np.float32) * np.float32(2.0**-24)
        exact = np.sqrt(-2 * np.log1p(-(2**24 - k) * 2.0**-24))
        d = np.float32(1) - u
        near = d * fused(d, fused(d, constant("LOG"), 1.0), 2.0)
        for sign in (-1, 1):
            log2 = np.log2(u.astype(np.float64))
            # What the PTX manual allows lg2.approx to be off by, and sqrt.approx.
            log2 += sign * 2.0**-22 * np.where(u > 0.5, 1.0, np.abs(log2))
            far = log2.astype(np.float32) * np.float32(-2 * np.log(2))
            square = np.where(d < constant("NEAR_ONE"), near, far).astype(np.float64)
            radius = np.sqrt(square) * (1 - sign * 2.0**-23)
            error = np.abs(radius - exact) / np.where(exact == 0, 1, exact)
            worst = max(worst, float(error.max()))
    assert worst < 2.9e-6


def test_every_sine_and_cosine_is_right_to_a_millionth() -> None:
    worst = 0.0
    coefficients = [constant(f"S{i}") for i in range(4)]
    for first in range(-(2**23), 2**23, 2**20):
        s = np.arange(first, first + 2**20).astype(np.float32) * np.float32(2.0**-23)
        cosine_at = np.float32(0.5) - np.abs(s)
        sine_at = np.copysign(np.float32(0.5) - np.abs(cosine_at), s)
        # In half turns as well, so that the reference has exact zeros.
        turn = s.astype(np.float64)
        sine = np.where(np.abs(turn) <= 0.5, np.sin(np.pi * turn), 0.0)
        beyond = np.copysign(np.sin(np.pi * (1 - np.abs(turn))), turn)
        sine = np.where(np.abs(turn) <= 0.5, sine, beyond)
        cosine = np.sin(np.pi * (0.5 - np.abs(turn)))
        for at, exact in ((sine_at, sine), (cosine_at, cosine)):
            square = at * at
            sum_ = fused(square, coefficients[3], coefficients[2])
            sum_ = fused(square, sum_, coefficients[1])
            got = (at * fused(square, sum_, coefficients[0])).astype(np.float64)
            error = np.abs(got - exact) / np.where(exact == 0, 1, np.abs(exact))
            worst = max(worst, float(error.max()))
    assert worst < 1.2e-6


# Tables


def test_chunks_of_a_tensor_lie_side_by_side_and_an_empty_one_has_one() -> None:
    table = chunk_table([0, 1, CHUNK, CHUNK + 1, 0, 3 * CHUNK])
    rows = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (5, 0), (5, 1), (5, 2)]
    assert table.tolist() == [list(row) for row in rows]
    assert table.dtype == torch.int32
    assert chunk_table([]).shape == (0, 2)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="-3"):
        chunk_table([4, -3])
    with pytest.raises(ValueError, match="several optimizers"):
        chunk_table([2**62])


def test_more_tensors_are_no_more_calls() -> None:
    few, many = list(range(10)), list(range(20_000))
    assert calls_in(lambda: chunk_table(many)) == calls_in(lambda: chunk_table(few)) < 100
    table = chunk_table(many)
    assert len(table) == 20_000 + sum(n > CHUNK for n in range(20_000))


def test_partial_sums_start_without_finished_chunks() -> None:
    partials, finished = partial_sums(7, 3, torch.device("cpu"))
    assert partials.shape == (7, 3)
    assert finished.tolist() == [0, 0, 0]
