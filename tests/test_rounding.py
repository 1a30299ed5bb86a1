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
from adaptiverl.kernels.block_tensor import Blocks
from grids import pairwise
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
    assert_parted,
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
from adaptiverl.kernels import blocks, error_term, reference, rounding
from adaptiverl.step.entries import COLUMNS

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
    (HALF, HALF, SINGLE, True, True),
    (HALF, HALF, HALF, False, True),
    (HALF, SINGLE, torch.int8, True, True),
]
"""Of parameters, gradients and slots; whether parameters are rounded by chance; whether they have
error terms"""
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


@each_path
@pairwise(case=CASES.values(), stored=STORED, noise=[(0.0, False), (0.3, False), (0.3, True)])
def test_what_is_stored_is_the_float32_step_rounded(
    path: str, case: Case, stored: tuple[Any, ...], noise: tuple[float, bool]
) -> None:
    sigma, on_parameter = noise
    entries = [stored_in(e, *stored) for e in mixed_entries(case, SIZES)]
    backend = CPU if path == "compiled" else REFERENCE
    assert backend_for(entries[-1], noisy=True) is CPU
    for entry in entries:
        # One launch takes what is stored alike; groups may differ in the slots that they keep.
        exact = widened(entry)
        sums = torch.zeros((2, 1, 3), dtype=torch.float64)
        noisy = entry.param if on_parameter else entry.grad  # of which error terms are no part
        options: dict[str, Any] = {"on_parameter": on_parameter}
        options["squares"] = noisy.double().square().sum().reshape(1)
        for each, found in ((entry, sums[0]), (exact, sums[1])):
            assert backend.accepts(each, True)
            step(path, case, [each], state_of(sigma), sums=found, **options)
        assert_stored(entry, exact)
        torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=0)


@pairwise(case=CASES.values(), stored=STORED, cut=[1, 4, 8, 1024, 1031, PIECE + 3])
def test_shards_round_as_the_whole(case: Case, stored: tuple[Any, ...], cut: int) -> None:
    if torch.int8 in stored[:3]:
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


@each_case
@pytest.mark.parametrize("weights", [SINGLE, HALF])
def test_blocks_without_a_scale_are_the_references(case: Case, weights: torch.dtype) -> None:
    """Of the compiled loops, which encode a block while the next one is stepped."""
    entry = stored_in(entry_of(case, (5 * blocks.BLOCK + 9,)), weights, weights, torch.int8)
    parts = entry.grad.split(blocks.BLOCK)
    for part, value in zip(parts[1:5], (torch.nan, 0.0, 1e-38, torch.inf), strict=True):
        part[40:] = value
    for slot in entry.slots:
        if slot is not None:
            slot[blocks.BLOCK : 4 * blocks.BLOCK] = 0  # 0 and what is next to it have no scale
    parts[3].fill_(1e-38)
    found = [copy_of(entry), copy_of(entry)]
    for path, each in zip(PATHS, found, strict=True):
        step(path, case, [each], state_of())
    for ours, theirs in zip(*map(written, found), strict=True):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
        if isinstance(ours, Blocks):  # whose scale says NaN or 0 whatever the codes are
            codes, other = (blocks.parts(x.buffer, x.numel(), x.kind)[0] for x in (ours, theirs))
            assert torch.equal(codes, other)


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


@each_path
@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize("by_chance", [True, False])
def test_small_updates_of_a_parameter_are_lost_only_by_rounding_to_nearest(
    path: str, by_chance: bool, errors: bool
) -> None:
    case = replace(CASES["lion"], groups=double([[1e-4, 0.9, 0.99, 0.0, 0.0]]))
    case = replace(case, effective=double([[1e-4, 0.9]]))
    entry = stored_in(entry_of(case, (4096,), steps=0), HALF, HALF, SINGLE, by_chance, errors)
    entry.param.fill_(1.0)
    if entry.error is not None:
        entry.error.zero_()
    entry.grad.fill_(0.5)
    for t in range(200):
        step(path, case, [entry], state_of(step=t))
    mean = widened(entry).param.mean().item()
    if errors:
        # Below 1, numbers of 24 bits are 2^-16 apart: half a spacing in each step, at most.
        assert abs(mean - 0.98) < 200 * 2**-17
        assert by_chance or entry.param.unique().numel() == 1
    elif by_chance:
        # 200 steps of 1e-4, below 1 in spacings of 2^-8.
        assert abs(mean - 0.98) < 5 * 0.5 * 2**-8 * 200**0.5 / 4096**0.5
    else:
        assert mean == 1.0


# --- Error terms ---------------------------------------------------------------------------------

EVERY_HALF = torch.arange(-(2**15), 2**15).to(torch.int16).view(HALF)
TERMS = (-128, -127, -65, -1, 0, 1, 64, 127)


@pytest.mark.parametrize("term", TERMS)
def test_a_bfloat16_and_its_error_term_are_one_number_of_24_bits(term: int) -> None:
    """Every pair is a number of its own, which both ways of rounding leave as it is."""
    errors = torch.full(EVERY_HALF.shape, term, dtype=torch.int8)
    numbers = error_term.decode(EVERY_HALF, errors)
    known = ~EVERY_HALF.isnan()
    wanted = oracle.joined(as_reals(EVERY_HALF), term)
    assert np.array_equal(numbers[known].double().numpy(), wanted[known.numpy()])
    alone = (EVERY_HALF == 0) | ~EVERY_HALF.isfinite()
    for bits in (None, torch.full(errors.shape, 0xFFFF), torch.zeros(errors.shape).long()):
        param, error = error_term.encode(numbers, bits)
        assert torch.equal(param[known].view(torch.int16), EVERY_HALF[known].view(torch.int16))
        assert torch.equal(error, errors.masked_fill(alone, 0))
        again = error_term.encode(error_term.decode(param, error), bits)
        assert torch.equal(again[0][known], param[known])
        assert torch.equal(again[1], error)
    assert param[~known].isnan().all()


@pytest.mark.parametrize("by_chance", [True, False])
def test_the_error_terms_are_the_oracles(by_chance: bool) -> None:
    """Of numbers of every size, powers of two and their neighbours, and the largest ones."""
    size = torch.logspace(-44, 38, 20_000)
    edges = torch.ldexp(torch.ones(277), torch.arange(-149, 128))
    near = [edges.view(torch.int32) + step for step in (-1, 1, 127, 128, 129, -64, -65)]
    values = torch.cat([size, edges, *(x.clamp(min=0).view(SINGLE) for x in near)])
    values = torch.cat([values, -values, torch.tensor([0.0, -0.0, 3.4e38, 3.39e38])])
    bits = bits_of(values.numel()) if by_chance else None
    wanted = oracle.parted(as_reals(values), None if bits is None else bits.numpy())
    for found, oracles in zip(error_term.encode(values, bits), wanted, strict=True):
        assert np.array_equal(found.double().numpy(), oracles)


@each_path
@pytest.mark.parametrize("value", [0.0, -0.0, torch.inf, -torch.inf, torch.nan])
def test_error_terms_that_are_left_beside_other_weights_change_nothing(
    path: str, value: float
) -> None:
    """Weights that were set to 0 stay 0, and others are off by half a spacing at most."""
    case = replace(ADAMW, effective=ADAMW.effective * torch.tensor([0.0, 1.0]))
    entry = stored_in(entry_of(case, (512,)), HALF, HALF, SINGLE, errors=True)
    stale = entry.error
    assert stale is not None
    entry.param[:256] = value
    before = entry.param.clone()
    step(path, case, [entry], state_of())
    torch.testing.assert_close(entry.param, before, rtol=0, atol=0, equal_nan=True)
    assert not stale[:256].any()
    assert stale[256:].any()


def test_an_error_term_is_no_bias(many_bits: Tensor) -> None:
    """As of 16 bits: within 5 deviations of the mean error of n draws."""
    for share in (1 / 256, 100 / 256, 0.5, 255 / 256):
        value = torch.tensor(1.0 + share * 2.0**-15)
        param, error = error_term.encode(value.expand(DRAWS), many_bits)
        upper = (error_term.decode(param, error).double().mean().item() - 1.0) * 2**15
        assert abs(upper - share) < 5 * (share * (1 - share) / DRAWS) ** 0.5


def test_the_operator_refuses_error_terms_beside_float32() -> None:
    entry = replace(entry_of(ADAMW, (4,)), error=torch.zeros(4, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="row 0 has error terms, which only parameters in bf"):
        step("compiled", ADAMW, [entry], state_of())


# --- Mutants -------------------------------------------------------------------------------------

ERROR_MUTANTS = {
    "a shifted scale": ("torch.int32) << DROPPED", "torch.int32) << 7"),
    "a sign that acts on the number": ("whole + term)", "whole + term * whole.sign())"),
    "a bias": ("(bits >> (16 - DROPPED))", "((bits >> (16 - DROPPED)) + 16)"),
    "the lower bits": ("(bits >> (16 - DROPPED))", "(bits & 0xFF)"),
    "ties to odd": ("(whole >> DROPPED & 1) +", "(1 - (whole >> DROPPED & 1)) +"),
    "the lower half": ("nearest = (kept + 128)", "nearest = (kept + 0)"),
    "a term beside infinity": ("(magnitude >= INFINITY)", "(magnitude > INFINITY)"),
    "a term beside 0": ("(magnitude == 0) |", "(magnitude < 0) |"),
    "a NaN that is a number": ("masked_fill(nan, torch.nan)", "masked_fill(nan, 0.0)"),
}


def _assert_error_terms() -> None:
    for by_chance in (True, False):
        torch.manual_seed(4)
        entry = stored_in(entry_of(ADAMW, (4000,), index=5), HALF, HALF, SINGLE, by_chance, True)
        assert entry.error is not None
        entry.param[:3], entry.error[:5] = 0.0, torch.tensor([-7, -1, 5, 7, 7])
        entry.param[3:5] = torch.tensor([torch.inf, torch.nan])
        entry.param[5:2000].mul_(1e-3)
        exact = widened(entry)
        for each in (entry, exact):
            step("reference", ADAMW, [each], state_of())
        assert entry.param[3].item() == torch.inf
        assert entry.param[4].isnan()
        assert not entry.error[3:5].any()
        for edges in ((0, 3), (5, 4000)):
            assert_parted(part_of(entry, *edges), part_of(exact, *edges).param)
        # Where a number lies between two of 24 bits, and where between two of bfloat16.
        values = 8 * (1 + torch.arange(1 << 10) * 2.0**-17)
        for found, wanted in zip(
            reference.error_term.encode(values), oracle.parted(as_reals(values), None), strict=True
        ):
            assert np.array_equal(found.double().numpy(), wanted)


@pytest.mark.parametrize("name", ERROR_MUTANTS)
def test_the_comparison_sees_a_mutant_of_the_error_terms(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _assert_error_terms()
    monkeypatch.setattr(reference, "error_term", mutant_of(error_term, *ERROR_MUTANTS[name]))
    with pytest.raises(AssertionError):
        _assert_error_terms()


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


def mutant_of(module: ModuleType, right: str, wrong: str) -> ModuleType:
    """The module with one thing wrong."""
    source = Path(module.__file__ or "").read_text()
    assert source.count(right) == 1
    mutant = ModuleType(f"{module.__name__}_mutant")
    exec(compile(source.replace(right, wrong), str(module.__file__), "exec"), vars(mutant))
    return mutant


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
    _assert_as_the_oracle()
    monkeypatch.setattr(reference, "rounding", mutant_of(rounding, *MUTANTS[name]))
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
            torch.zeros((0, len(COLUMNS)), dtype=torch.int64),
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
