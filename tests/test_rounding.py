"""State and parameters of 16 bits: what is stored, and rounding by chance (method.md#storage)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from pass_cases import (
    ADAMW,
    CASES,
    FACTORS,
    FORMATS,
    PATHS,
    PIECE,
    SEED,
    SIZES,
    STEP,
    Case,
    as_reals,
    assert_stored,
    copy_of,
    double,
    entry_of,
    mixed_entries,
    part_of,
    state_of,
    step,
    stored_in,
    widened,
    written,
)
from torch import Tensor

from adaptiverl.backends import CPU, REFERENCE, backend_for
from adaptiverl.kernels import blocks, reference, rounding

HALF, SINGLE = torch.bfloat16, torch.float32
STORED = [
    (HALF, HALF, HALF),
    (SINGLE, SINGLE, HALF),
    (HALF, HALF, SINGLE),
    (SINGLE, HALF, SINGLE),
    (HALF, SINGLE, HALF),
    (HALF, HALF, HALF, False),
    (HALF, HALF, torch.int8),
    (SINGLE, SINGLE, torch.int8),
]
"""Of parameters, gradients and slots; whether parameters are rounded by chance"""
KEY = (torch.tensor(SEED & 0xFFFFFFFF), torch.tensor(SEED >> 32))

each_case = pytest.mark.parametrize("case", CASES.values(), ids=str)
each_path = pytest.mark.parametrize("path", PATHS)
each_stored = pytest.mark.parametrize("stored", STORED, ids=str)


def bits_of(numel: int, offset: int = 0, index: int = 5) -> Tensor:
    return rounding.random_bits(KEY, index, torch.tensor(STEP), offset, numel)


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 2**34 - 3, 2**35 + 4, 2**60 + 5])
def test_the_bits_are_the_oracles(offset: int) -> None:
    wanted = oracle.rounding_bits(SEED, 5, STEP, offset + np.arange(100))
    assert np.array_equal(bits_of(100, offset).numpy(), wanted)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("factor", sorted(set(FACTORS)))
def test_the_rounding_is_the_oracles(dtype: torch.dtype, factor: int) -> None:
    """Of numbers of every size, subnormal ones, both zeros and what the dtype holds exactly."""
    size = torch.logspace(-9, 4, 20_000)
    values = torch.cat([size * torch.randn(20_000).sign(), torch.tensor([0.0, -0.0]), size[:100]])
    values[-100:] = values[-100:].to(dtype).float()
    bits = bits_of(values.numel())
    found = rounding.round_stochastically(values, dtype, bits, factor)
    wanted = oracle.round_by_chance(as_reals(values), bits.numpy(), factor, *FORMATS[dtype])
    assert np.array_equal(found.double().numpy(), wanted)
    assert torch.equal(found, found.to(dtype).float())
    assert torch.equal(found[-100:], values[-100:])
    assert bool((found * values >= 0).all())


@each_case
@each_path
@each_stored
@pytest.mark.parametrize(("noise", "on_parameter"), [(0.0, False), (0.3, False), (0.3, True)])
def test_what_is_stored_is_the_float32_step_rounded(
    path: str, case: Case, stored: tuple[Any, ...], noise: float, on_parameter: bool
) -> None:
    entries = [stored_in(e, *stored) for e in mixed_entries(case, SIZES)]
    backend = CPU if path == "compiled" else REFERENCE
    assert backend_for(entries[-1], noisy=True) is CPU
    for entry in entries:
        # One launch takes what is stored alike; groups may differ in the slots that they keep.
        exact = widened(entry)
        sums = torch.zeros((2, 1, 3), dtype=torch.float64)
        for each, found in ((entry, sums[0]), (exact, sums[1])):
            assert backend.accepts(each, True)
            step(path, case, [each], state_of(noise), on_parameter=on_parameter, sums=found)
        assert_stored(entry, exact)
        torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=0)


@each_case
@each_stored
@pytest.mark.parametrize("cut", [1, 4, 8, 1024, 1031, PIECE + 3])
def test_shards_round_as_the_whole(case: Case, stored: tuple[Any, ...], cut: int) -> None:
    if torch.int8 in stored:
        cut = -(-cut // blocks.BLOCK) * blocks.BLOCK  # a block that is cut is another block
    whole = stored_in(entry_of(case, (PIECE + 2052,), index=6), *stored)
    shards = [part_of(copy_of(whole), *edges) for edges in ((0, cut), (cut, PIECE + 2052))]
    for entries in ([whole], shards):
        step("compiled", case, entries, state_of())
    for pieces, tensor in zip(zip(*map(written, shards), strict=True), written(whole), strict=True):
        assert torch.equal(torch.cat(pieces), tensor)


@each_stored
def test_any_number_of_threads_gives_the_same_bits(stored: tuple[Any, ...]) -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            entries = [
                stored_in(entry_of(ADAMW, (2 * PIECE + 5,), index=i), *stored) for i in (0, 1)
            ]
            step("compiled", ADAMW, entries, state_of(0.1))
            found.append([x for entry in entries for x in written(entry)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each_path
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3.3e38])
def test_what_is_not_finite_stays_so(path: str, value: float) -> None:
    """A NaN's bits would carry into its sign; the largest numbers become infinite as others do."""
    entry = stored_in(entry_of(ADAMW, (64,)), HALF, HALF, HALF)
    before = copy_of(entry)
    entry.param[7] = before.param[7] = value
    entry.grad[9] = torch.nan
    step(path, ADAMW, [entry], state_of())
    assert entry.param[9].isnan()
    assert all(slot is None or slot[9].isnan() for slot in entry.slots)
    still = entry.param[7].item()
    assert np.isnan(still) if np.isnan(value) else abs(still) >= 3e38
    others = [i for i in range(64) if i not in (7, 9)]
    assert entry.param[others].isfinite().all()


# --- By chance -----------------------------------------------------------------------------------

DRAWS = 2_000_000


@pytest.fixture(scope="module")
def many_bits() -> Tensor:
    return bits_of(DRAWS)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("factor", sorted(set(FACTORS)))
def test_rounding_has_no_bias(many_bits: Tensor, dtype: torch.dtype, factor: int) -> None:
    """The mean error of n draws at the share f deviates by √(f(1 − f)/n): within 5 of these."""
    digits = 23 - FORMATS[dtype][0]
    spacing = 2.0 ** -FORMATS[dtype][0]
    for share in (2.0**-digits, 0.01, 0.25, 0.5, 0.9):
        share = round(share * 2**digits) / 2**digits
        value = torch.tensor(1.0 + share * spacing)
        found = rounding.round_stochastically(value.expand(DRAWS), dtype, many_bits, factor)
        upper = (found.double().mean().item() - 1.0) / spacing
        assert abs(upper - share) < 5 * (share * (1 - share) / DRAWS) ** 0.5


def test_what_rounds_one_array_says_nothing_of_another(many_bits: Tensor) -> None:
    """Both round up as often as independent bits would make them, for any two shares."""
    used = sorted(set(FACTORS))
    up = {
        (factor, share): ((many_bits * factor & 0xFFFF) >= 65536 * (1 - share)).float()
        for factor in used
        for share in (0.02, 0.3, 0.5, 0.8)
    }
    for (one, a), first in up.items():
        for (other, b), second in up.items():
            if one < other:
                both = (first @ second).item() / DRAWS
                bound = 5 * (a * b * (1 - a * b) / DRAWS) ** 0.5 + 5 / 65536
                assert abs(both - a * b) < bound, (one, other, a, b)


@each_path
def test_small_updates_of_a_second_moment_are_not_lost(path: str) -> None:
    """β₂ = 0.999 moves v by less than half of bfloat16's last bit: to nearest, it would stay."""
    case = replace(
        ADAMW, groups=double([[1e-3, 0.9, 0.999, 1e-8, 0.0]]), effective=double([[0.0, 0.9]])
    )
    entry = stored_in(entry_of(case, (4096,), kept=2, steps=1), HALF, HALF, HALF)
    second = entry.slots[1]
    assert second is not None
    second.fill_(1.0)
    entry.grad.fill_(0.5)
    for t in range(1000):
        step(path, case, [entry], state_of(step=t))
    wanted = 0.25 + 0.75 * 0.999**1000
    # 1000 roundings of 0.6 spacings' deviation at most, forgotten as v forgets, over 4096 elements.
    assert abs(second.float().mean().item() - wanted) < 5 * 0.6 * 2**-7 * 1000**0.5 / 4096**0.5
    assert second.float().std().item() > 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_chance", [True, False])
def test_small_updates_of_a_parameter_are_lost_only_by_rounding_to_nearest(
    path: str, by_chance: bool
) -> None:
    case = replace(CASES["lion"], groups=double([[1e-4, 0.9, 0.99, 0.0, 0.0]]))
    case = replace(case, effective=double([[1e-4, 0.9]]))
    entry = stored_in(entry_of(case, (4096,), steps=0), HALF, HALF, SINGLE, by_chance)
    entry.param.fill_(1.0)
    entry.grad.fill_(0.5)
    for t in range(200):
        step(path, case, [entry], state_of(step=t))
    mean = entry.param.float().mean().item()
    if by_chance:
        # 200 steps of 1e-4, below 1 in spacings of 2^-8.
        assert abs(mean - 0.98) < 5 * 0.5 * 2**-8 * 200**0.5 / 4096**0.5
    else:
        assert mean == 1.0


# --- Mutants -------------------------------------------------------------------------------------

MUTANTS = {
    "a bias": ("whole + bits", "whole + 2048 + bits"),
    "fewer bits": ("bits = bits * factor & 0xFFFF", "bits = bits * factor & 0xFF00"),
    "one array's bits for all": ("bits = bits * factor &", "bits = bits * 1 &"),
    "the noise's stream": ("step, ROUNDING_STREAM", "step, 0"),
    "the noise's rounds": ("STREAM, ROUNDS)", "STREAM, 10)"),
    "another element's bits": ("offset - 8 * first", "offset - 8 * first + 1"),
    "the upper half first": ("(words & 0xFFFF, words >> 16)", "(words >> 16, words & 0xFFFF)"),
    "a NaN that is a number": ("values.isnan(), torch.nan", "values.isnan(), 0.0"),
}


def _assert_as_the_oracle() -> None:
    for numel, offset in ((333, 0), (50, 3)):
        entry = entry_of(ADAMW, (numel,), index=5)
        entry = replace(stored_in(entry, HALF, HALF, HALF), offset=offset)
        exact = widened(entry)
        for each in (entry, exact):
            step("reference", ADAMW, [each], state_of())
        assert_stored(entry, exact)
    entry = stored_in(entry_of(ADAMW, (8,)), HALF, HALF, HALF)
    entry.grad[3] = torch.nan
    step("reference", ADAMW, [entry], state_of())
    assert entry.param[3].isnan()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = MUTANTS[name]
    source = Path(rounding.__file__ or "").read_text()
    assert source.count(right) == 1
    mutant = ModuleType("adaptiverl.kernels.rounding_mutant")
    exec(compile(source.replace(right, wrong), str(rounding.__file__), "exec"), vars(mutant))
    _assert_as_the_oracle()
    monkeypatch.setattr(reference, "rounding", mutant)
    with pytest.raises(AssertionError):
        _assert_as_the_oracle()


@pytest.mark.parametrize(
    ("codecs", "said"),
    [
        ([0, 0, 3], "the slots' codec must be the number of a codec, 0 to 2, got 3"),
        ([0, 2, 0], "the gradients' codec must be the number of a codec, 0 to 1, got 2"),
        ([-1, 0, 0], "the parameters' codec must be the number of a codec, 0 to 1, got -1"),
        ([1, 1], "codecs must be those of parameters, gradients and slots, got 2 numbers"),
    ],
)
@each_case
def test_the_operator_refuses_what_is_no_codec(case: Case, codecs: list[int], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        case.operator(
            torch.zeros((0, 13), dtype=torch.int64),
            state_of(),
            case.groups,
            case.effective,
            torch.zeros(0, dtype=torch.float64),
            None,
            None,
            False,
            codecs,
            True,
        )
