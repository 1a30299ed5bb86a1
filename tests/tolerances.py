"""How close is close enough: the one table of tolerances, and the one way to compare by it.

An entry holds for a named comparison and carries its derivation. A test that needs another number
gets an entry here, never a number of its own. u(p) = 2^-p below is the largest relative error of
rounding to p significant bits: 2^-53 in float64, 2^-24 in float32, 2^-11 in float16, 2^-8 in
bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tolerance:
    """One row of the table.

    A value passes if ``|actual - expected| <= rtol * |expected| + atol * scale``. The absolute term
    is there for what passes through zero (parameters, first moments, trends, normals): errors of
    such a value come from the terms that cancel in it, so they are in proportion to those, not to
    it. ``scale`` stands for the size of those terms, and is by default the root mean square of the
    expected array: then one row serves parameters near 1 and second moments near 1e-6 alike, which
    a fixed atol would either fail or wave through. A lone number is its own scale.
    """

    rtol: float
    atol: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "law": Tolerance(
        rtol=1e-12,
        atol=1e-12,
        reason=(
            "The Python law, the C++ law and the oracle are all float64 and differ by the order of "
            "operations and the last bit of libm's exp and log. An EMA keeps up to 1/beta of its "
            "roundings, 50 at beta = 0.02: 50 * 2^-53 = 6e-15 of the loss. A trend or a deviation "
            "is a difference of losses, so this grows by |loss| / |deviation|, at most 10 in test "
            "data: 6e-14; and the plateau score has slopes up to 1 / s_trend = 20: 1.1e-12 at "
            "worst. Measured, with every loss divided by 3: 8e-14 at that ratio, 1e-12 at 100. "
            "Compare whole trajectories, so that the scale is the course's; a loss that is "
            "constant but for its last bits has no direction to compare."
        ),
    ),
    "alignment_law": Tolerance(
        rtol=1e-12,
        atol=1e-12,
        reason=(
            "As law, over courses of up to 2000 steps. log alpha is a sum and keeps the rounding "
            "of every step, half a unit in the last place of at most 16: 2000 * 2^-50 = 1.8e-12 if "
            "all had one sign, and 4e-14 as they come, of a course whose scale is 5 to 10; as much "
            "is then the relative error of alpha. h is rounded five times and z = h / RMS ten "
            "times, 1.1e-15 of at most 2; e and the evidence forget such errors in 5 and some 50 "
            "steps: 1e-13. A decision (e > 0.2, the evidence > 5) may fall otherwise within that "
            "of its threshold, which no fixed stream of the tests is. Measured: 6e-15."
        ),
    ),
    "step_float64": Tolerance(
        rtol=1e-13,
        atol=1e-13,
        reason=(
            "A dozen float64 operations a step, each within 2^-53: 1.3e-15 per step, for up to 50 "
            "steps. Only without noise (the normals carry float32 error: use step_float32), and "
            "with the oracle given the very knobs that the step used."
        ),
    ),
    "step_float32": Tolerance(
        rtol=2e-6,
        atol=2e-6,
        reason=(
            "The parameter is rounded twice a step, by the decay and by the update: 2 * 2^-24 = "
            "1.2e-7 per step, 1.9e-6 after the 16 steps that this row is for; the moments' errors "
            "are forgotten instead of added. Noise adds under 1e-6 * sigma of the gradient. Where "
            "a gradient nearly cancels, the first steps' update (its sign, almost) magnifies an "
            "error d of it to lr * d / |gradient|. Measured with lr up to 1e-2, sigma 0.1 and 1e5 "
            "elements: 1e-7 after one step, 3e-7 after 5, 1.1e-6 after 20."
        ),
    ),
    "step_float16": Tolerance(
        rtol=5.0e-4,
        atol=2e-6,
        reason=(
            "What is compared was computed in float32 and rounded once to float16: 2^-11 = 4.9e-4, "
            "plus step_float32's error, which also covers subnormals (2^-25) where the scale is "
            "above 0.015. For one step from the same stored bits: the oracle does not round "
            "between steps. Use an lr of 0.02 or more, or the update is smaller than the rounding "
            "and the comparison says nothing; moments kept in float32 go by step_float32."
        ),
    ),
    "step_bfloat16": Tolerance(
        rtol=4.0e-3,
        atol=2e-6,
        reason=(
            "As step_float16, with one rounding to bfloat16: 2^-8 = 3.9e-3. Use an lr of 0.1 or "
            "more."
        ),
    ),
    "rounded_float16": Tolerance(
        rtol=2.0**-10,
        atol=2e-6,
        reason=(
            "Two float32 results within step_float32 of each other, each rounded to float16. They "
            "fall on neighbours where a tie lies between them, and neighbours differ by at most "
            "2^-10 of the smaller. That must be rare: an error of 4e-6 meets a tie in 4e-6 / 2^-11 "
            "= 1 % of the elements."
        ),
    ),
    "rounded_bfloat16": Tolerance(
        rtol=2.0**-7,
        atol=2e-6,
        reason=(
            "As rounded_float16, where neighbours differ by at most 2^-7, and 0.1 % of elements "
            "meet a tie. Seen on an H200: 2 of 1025 were neighbours."
        ),
    ),
    "normals": Tolerance(
        rtol=1e-5,
        atol=1e-5,
        reason=(
            "method.md#random-numbers. "
            "Give scale=1, the standard deviation: near a zero of the sine the "
            "error is that of the angle. With float32 libm pi * s is off by 2e-7 (its rounding and "
            "float32's pi) and the radius is at most 5.77: 1.2e-6, measured 8.4e-7. With a GPU's "
            "approximate sine and cosine (2^-20.9 absolute): 4.2e-6. The radius needs care "
            "where u is nearly 1: an approximate logarithm's absolute error of 2^-22 there is more "
            "than this row allows wherever the radius is below 0.016."
        ),
    ),
    "torch_adamw_float32": Tolerance(
        rtol=1e-6,
        atol=1e-6,
        reason=(
            "200 steps against torch.optim.AdamW(foreach=False, fused=False), both float32. The "
            "stored parameter is rounded at the same place with nearly the same value, so most "
            "roundings are shared and only steps near a tie differ, by 1.2e-7 each. Measured with "
            "another order of operations: 2.5e-7 at lr 1e-3, 7.4e-7 at lr 1e-2 with gradients that "
            "depend on the parameters. (The float64 oracle is no reference here: the roundings "
            "that float32 implementations share are 8e-6 away from it after 200 steps.)"
        ),
    ),
    "torch_sgd_float32": Tolerance(
        rtol=1e-6,
        atol=1e-6,
        reason=(
            "200 steps against torch.optim.SGD(foreach=False). As torch_adamw_float32; torch adds "
            "with fused multiply-adds and rounds once where ours rounds twice, each time by up to "
            "2^-24 of what is added, and with lr 1e-2 that is a hundredth of the parameter: 200 "
            "steps at random signs are 14 such roundings. Measured with momentum: 3e-7. Without "
            "one a parameter that is a random walk may end near zero: 9.5e-7 of a lone number, so "
            "compare tensors whose scale is their elements'."
        ),
    ),
    "statistics": Tolerance(
        rtol=5e-7,
        atol=5e-7,
        reason=(
            "Sums over float32 gradients, accumulated in float64. A term carries at most four "
            "float32 roundings (root, sum, quotient, product): 4 * 2^-24 = 2.4e-7, doubled for "
            "units that round to within one unit instead of half; the summation adds n * 2^-53. "
            "The sum of g*u cancels: give it scale = sqrt(sum g^2 * sum u^2)."
        ),
    ),
    "unrolled": Tolerance(
        rtol=1e-7,
        atol=1e-7,
        reason=(
            "The same float64 step twice, a dozen roundings each, 2e-15 of an update, and the "
            "noise's scale, rounded to float32 by one of the two: 6e-8 of a tenth of a gradient, "
            "which a dozen steps of a network neither add up nor multiply by much. Measured: 3e-9 "
            "with noise, 1e-13 without. A wrong statement of the step shows in the third digit."
        ),
    ),
    "sums_float64": Tolerance(
        rtol=1e-12,
        atol=1e-12,
        reason=(
            "Sums of the same terms in float64 that differ in the order of adding, as of shards "
            "or of runs, by at most n * 2^-53 of the sum of magnitudes: 1.1e-12 at worst for the "
            "1e4 elements of the tests, and, roundings being random, 1e-14 in fact; or that differ "
            "in half a dozen float64 roundings of each term, 1e-15. g*u as in statistics."
        ),
    ),
}


def assert_close(actual: Any, expected: Any, name: str, *, scale: float | None = None) -> None:
    """Raise unless every value of ``actual`` is within the tolerance called ``name``.

    Args:
        actual: A number, an array, or a tensor of any dtype, device and shape; complex tensors
            are compared as pairs of reals.
        expected: The same shape. NaN is refused, for it would make the comparison empty; an
            infinity must be met by the same infinity.
        name: A key of `TOLERANCES`.
        scale: What atol is relative to; None: the root mean square of the finite expected values.

    Raises:
        AssertionError: If a value is outside the tolerance, the shapes differ, or NaN is expected.
        KeyError: If there is no such tolerance.
    """
    tolerance = TOLERANCES[name]
    a, e = _as_float64(actual), _as_float64(expected)
    if a.shape != e.shape:
        raise AssertionError(f"{name}: shape {a.shape}, expected {e.shape}")
    if np.isnan(e).any():
        raise AssertionError(f"{name}: {np.isnan(e).sum()} expected values are NaN")
    if scale is None:
        scale = _root_mean_square(e[np.isfinite(e)])

    same = a == e
    error = np.abs(np.subtract(a, e, out=np.zeros_like(e), where=~same))
    allowed = np.where(np.isfinite(e), tolerance.rtol * np.abs(e) + tolerance.atol * scale, 0.0)
    wrong = ~(error <= allowed)
    if not wrong.any():
        return
    raise AssertionError(_describe(a, e, error, wrong, name, scale))


def _describe(
    a: NDArray[np.float64],
    e: NDArray[np.float64],
    error: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    name: str,
    scale: float,
) -> str:
    tolerance = TOLERANCES[name]
    # NaN counts as the largest error.
    ranked = np.where(np.isnan(error), np.inf, error)
    comparable = np.isfinite(e) & (e != 0)
    relative = np.divide(ranked, np.abs(e), out=ranked.copy(), where=comparable)
    relative[~comparable & (ranked > 0)] = np.inf
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ranked)), e.shape))
    return (
        f"{name}: {int(wrong.sum())} of {e.size} values are off by more than "
        f"{tolerance.rtol:g} * |expected| + {tolerance.atol:g} * {scale:g}; "
        f"largest absolute error {ranked.max():.3e} at {worst} "
        f"(got {float(a[worst])!r}, expected {float(e[worst])!r}), "
        f"largest relative error {relative.max():.3e}.\n"
        f"The tolerance: {tolerance.reason}"
    )


def _as_float64(values: Any) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().resolve_conj()
        if values.is_complex():
            values = torch.view_as_real(values)
        values = values.to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def _root_mean_square(values: NDArray[np.float64]) -> float:
    """The root mean square; 0 of nothing. Scaled, for squares of large losses would overflow."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0.0:
        return 0.0
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))
