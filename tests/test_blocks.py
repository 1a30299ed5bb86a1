"""Blocks of 8-bit codes: the codec, and the state entry that is kept so (method.md#blocks)."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from adaptiverl.kernels.block_tensor import Blocks
from adaptiverl.kernels.blocks import BLOCK, SIGNED, UNSIGNED, Map
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pass_cases import ADAMW, STEP, assert_encoded, entry_of
from torch import Tensor

from adaptiverl.kernels import block_tensor, blocks, rounding

KINDS = {"signed": SIGNED, "unsigned": UNSIGNED}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
SEED = (0xDEADBEEF, 0x12345678)


def random_bits(numel: int, step: int = STEP) -> Tensor:
    key = (torch.tensor(SEED[0]), torch.tensor(SEED[1]))
    return rounding.random_bits(key, 5, torch.tensor(step), 0, numel)


ROUNDINGS: dict[str, Any] = {
    "nearest": lambda numel: None,
    "by chance": random_bits,
    "always down": lambda numel: torch.zeros(numel, dtype=torch.int64),
    "always up": lambda numel: torch.full((numel,), 0xFFFF),
}
each_rounding = pytest.mark.parametrize("bits_for", ROUNDINGS.values(), ids=ROUNDINGS)


def numbers(kind: Map, numel: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """As an average of gradients or of squares has them, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-5, 0, numel).float()[torch.randperm(numel, generator=generator)]
    found = size * torch.randn(numel, generator=generator) * scale
    return found if kind.signed else found.abs()


def through(values: Tensor, kind: Map, bits: Tensor | None = None) -> Tensor:
    return blocks.decode(*blocks.encode(values, kind, bits, rounding.OF_SLOTS[0]), kind)


# --- The codec -----------------------------------------------------------------------------------


@each_kind
def test_codes_by_hand(kind: Map) -> None:
    """Within a segment steps are alike; they double from each to the next; 0 is 0."""
    first = 2**kind.fraction
    codes = torch.tensor([0, 1, first, first + 1, 2 * first, kind.limit]).to(kind.dtype)
    found = blocks.decode(codes, torch.tensor([2.0]).bfloat16(), kind)
    step = 1 / first
    assert (found / 2).tolist() == [0, step, 1, 1 + 2 * step, 3, kind.top]
    if kind.signed:
        below = (codes.view(torch.uint8) + 128).view(torch.int8)
        assert torch.equal(blocks.decode(below, torch.tensor([2.0]).bfloat16(), kind), -found)


@each_kind
def test_every_code_stands_for_what_the_oracle_says(kind: Map) -> None:
    codes = torch.arange(kind.limit + 1).to(kind.dtype)
    scales = torch.ones(blocks.blocks_in(len(codes)), dtype=torch.bfloat16)
    found = blocks.decode(codes, scales, kind).double().numpy()
    theirs = oracle.BLOCK_MAPS[0 if kind.signed else 1]
    np.testing.assert_array_equal(found, theirs.value(np.arange(kind.limit + 1)))


EXTREMES = (0.0, 2.0**-149, 2.0**-121, 2.0**-120, 1e-30, 1.0, 3e38)


@each_kind
@each_rounding
@pytest.mark.parametrize("scale", EXTREMES)
def test_what_was_decoded_is_encoded_to_what_it_was(kind: Map, bits_for: Any, scale: float) -> None:
    """Whatever rounds it: of usual blocks, of a tail, of zeros, subnormal and huge numbers."""
    values = numbers(kind, 1000).clamp(-1, 1) * scale
    codes, scales = blocks.encode(values, kind, random_bits(1000), 7189)
    decoded = blocks.decode(codes, scales, kind)
    again = blocks.encode(decoded, kind, bits_for(1000), 7189)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1].view(torch.int16), scales.view(torch.int16))


@each_kind
@each_rounding
def test_every_code_and_scale_that_there_is_stays(kind: Map, bits_for: Any) -> None:
    """All codes beside the largest, with every fraction of a scale and many exponents."""
    whole = torch.arange(256)
    padded = torch.nn.functional.pad(whole, (0, -len(whole) % (BLOCK - 1)))
    rows = torch.nn.functional.pad(padded.view(-1, BLOCK - 1), (1, 0), value=kind.limit)
    for exponent in (-120, -60, -1, 0, 50, 99):
        scales = (1 + torch.arange(128) / 128) * 2.0**exponent
        codes = rows.repeat(128, 1).flatten().to(torch.uint8).view(kind.dtype)
        kept = scales.repeat_interleave(len(rows)).bfloat16()
        found = blocks.encode(blocks.decode(codes, kept, kind), kind, bits_for(len(codes)), 7189)
        assert torch.equal(found[0], codes)
        assert torch.equal(found[1], kept)


def steps_at(values: Tensor, kind: Map) -> tuple[Tensor, Tensor]:
    """No less than from each number's code to the next, of whole blocks; which have no bias.

    Squares below the first code are kept above 0.
    """
    x = values.double().abs().view(-1, BLOCK)
    unit = x.amax(dim=1, keepdim=True) / kind.top
    first = 0 if kind.signed else 1
    usual = x > 1.01 * first * unit * 2.0**-kind.fraction
    return ((unit + x) * 2.0**-kind.fraction).flatten(), usual.flatten()


@settings(max_examples=30, deadline=None, phases=(Phase.generate,))
@given(
    kind=st.sampled_from(list(KINDS.values())),
    exponent=st.floats(-20, 30),
    seed=st.integers(0, 2**20),
    by_chance=st.booleans(),
)
def test_an_error_is_bounded(kind: Map, exponent: float, seed: int, by_chance: bool) -> None:
    """By a step at the number, by chance, and by half of one to nearest, and the scale's rounding.

    Squares below the first code by a whole one; a scale is rounded by 2^-7 of it, or by half that.
    """
    values = numbers(kind, 4 * BLOCK, 10.0**exponent, seed)
    values[::37] = 0.0
    found = through(values, kind, random_bits(len(values), seed) if by_chance else None)
    steps, usual = steps_at(values, kind)
    bound = steps * torch.where(usual & (not by_chance), 0.5, 1.0)
    bound += values.abs() * 2.0**-7 * (1.0 if by_chance else 0.5)
    assert bool(((found.double() - values).abs() <= 1.01 * bound).all())
    assert bool((found[::37] == 0).all())
    assert bool((found * values.sign() >= 0).all())
    if not kind.signed:
        assert bool((found >= 0.49 * values).all())


def test_a_square_above_zero_never_becomes_zero() -> None:
    """An update divides by its root: the smallest keeps a code, which is more than it was."""
    values = torch.full((BLOCK,), 1e-12)
    values[3], values[9] = 1.0, 0.0
    for bits_for in ROUNDINGS.values():
        found = through(values, UNSIGNED, bits_for(BLOCK))
        assert found[9] == 0
        small = torch.cat([found[:3], found[4:9], found[10:]])
        assert bool((small >= 1e-12).all())
        assert bool((small <= 2e-6).all())


@each_kind
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_block_with_something_not_finite_is_nan_and_others_are_not(
    kind: Map, value: float
) -> None:
    values = numbers(kind, 3 * BLOCK)
    values[BLOCK + 7] = value
    codes, scales = blocks.encode(values, kind)
    found = blocks.decode(codes, scales, kind).view(3, BLOCK)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    again = blocks.encode(found.flatten(), kind)
    assert torch.equal(again[0], codes)
    assert scales.isnan().tolist() == again[1].isnan().tolist() == [False, True, False]


@each_kind
def test_rounding_by_chance_has_no_bias(kind: Map) -> None:
    """A mean of n errors is within 5 of its deviations.

    One deviates by half a step at most, and all of a block together by half of what its scale is
    rounded by, 2^-8 of a number at most, which is under a quarter of a step.
    """
    blocks_here, draws = 16, 100
    values = numbers(kind, blocks_here * BLOCK)
    steps, usual = steps_at(values, kind)
    drawn = [through(values, kind, random_bits(len(values), t)) for t in range(draws)]
    off = (torch.stack(drawn).double() - values).mean(dim=0) / steps
    magnitudes = off * values.sign()
    own, common = 0.5 / (draws * int(usual.sum())) ** 0.5, 0.25 / (draws * blocks_here) ** 0.5
    assert abs(off[usual].mean()) < 5 * (own**2 + common**2) ** 0.5
    assert abs(magnitudes[usual].mean()) < 5 * (own**2 + common**2) ** 0.5
    assert magnitudes[usual].abs().max() < 5 * 0.75 / draws**0.5


# --- Mutants -------------------------------------------------------------------------------------

MUTANTS = {
    "a scale shifted by a block": ("repeat_interleave(BLOCK)", "roll(1).repeat_interleave(BLOCK)"),
    "a bias": ("(bits * factor & KEPT) + HALF", "(bits * factor & KEPT) + HALF + 2048"),
    "one array's bits for all": ("_random(bits, factor) <<", "_random(bits, 1) <<"),
    "the scale has the code's bits": ("_random(bits, kind.factor)", "_random(bits, 7189)"),
    "a scale to nearest": (
        "if bits is None else _random(bits, kind",
        "if True else _random(bits, kind",
    ),
    "codes to nearest": ("    if bits is None:\n        return", "    if True:\n        return"),
    "a coarser code": ("fraction=5", "fraction=4"),
    "codes of the rounded scale": ("kind.top / largest.view(torch.float32)", "1 / scales"),
    "squares become zero": ("(magnitude > 0).to(codes.dtype)", "0 * magnitude.to(codes.dtype)"),
    "the sign is lost": ("torch.where(raw < 0, kind.limit + 1, 0)", "0"),
}


def _assert_as_the_oracle(codec: Any) -> None:
    entry = entry_of(ADAMW, (1000,), index=5)
    for place, kind in enumerate((codec.SIGNED, codec.UNSIGNED)):
        values = numbers(kind, 1000)
        values[5] = 1e-30
        found = Blocks.zeros(values.shape, kind, values.device)
        bits = torch.from_numpy(oracle.rounding_bits(SEED_OF_CASES, 5, STEP, np.arange(1000)))
        for own, new in zip(
            blocks.parts(found.buffer, 1000, kind),
            codec.encode(values, kind, bits, rounding.OF_SLOTS[place]),
            strict=True,
        ):
            own.copy_(new)
        assert_encoded(found, values, entry, place + 1)


SEED_OF_CASES = (0xDEADBEEF << 32) + 0x12345678


def test_codes_are_the_oracles() -> None:
    _assert_as_the_oracle(blocks)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_a_mutant(name: str) -> None:
    right, wrong = MUTANTS[name]
    source = Path(blocks.__file__ or "").read_text()
    assert source.count(right) == 1
    mutant = ModuleType("adaptiverl.kernels.blocks_mutant")
    exec(compile(source.replace(right, wrong), str(blocks.__file__), "exec"), vars(mutant))
    with pytest.raises(AssertionError):
        _assert_as_the_oracle(mutant)


# --- The entry -----------------------------------------------------------------------------------


@pytest.fixture
def entry() -> Blocks:
    return Blocks.of(numbers(SIGNED, 3000).view(30, 100), SIGNED)


def test_an_entry_looks_like_the_float32_tensor_that_it_shows(entry: Blocks) -> None:
    shown = entry.decode()
    assert (entry.shape, entry.dtype, entry.device) == (shown.shape, shown.dtype, shown.device)
    assert entry.is_contiguous()
    assert torch.equal(entry, shown)
    assert repr(shown) in repr(entry)
    assert entry.tolist() == shown.tolist()
    assert np.array_equal(entry.numpy(), shown.numpy())
    for found in (entry + 1, entry[3:5], entry.t(), entry.double(), torch.zeros_like(entry)):
        assert type(found) is Tensor
    assert torch.equal(torch.cat([entry, shown]), torch.cat([shown, shown]))
    assert entry.buffer.nbytes == 3008 + 2 * 24


COPIES: dict[str, Any] = {
    "clone": torch.clone,
    "deepcopy": copy.deepcopy,
    "to": lambda x: x.to("cpu", copy=True),
}
SAME: dict[str, Any] = {
    "detach": torch.detach,
    "data": lambda x: x.data,
    "view_as": lambda x: x.view_as(x),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_codes(entry: Blocks, copied: Any) -> None:
    other = copied(entry)
    assert isinstance(other, Blocks)
    assert torch.equal(other.buffer, entry.buffer)
    other.zero_()
    assert entry.any()


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_a_view_of_all_shares_the_memory(entry: Blocks, same: Any) -> None:
    same(entry).zero_()
    assert not entry.any()


WRITES: dict[str, Any] = {
    "zero_": lambda x: x.zero_(),
    "mul_": lambda x: x.mul_(0.5),
    "copy_": lambda x: x.copy_(torch.ones(30, 100)),
    "add out": lambda x: torch.add(x, 1.0, out=x),
    "foreach": lambda x: torch._foreach_mul_([x], 2.0),
    "masked": lambda x: x.masked_fill_(torch.arange(100) % 3 == 0, 0.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_in_place_is_encoded(entry: Blocks, write: Any) -> None:
    plain = entry.decode()
    result = write(entry)
    write(plain)
    assert result is None or result is entry or result[0] is entry
    assert torch.equal(entry, Blocks.of(plain, SIGNED))


@pytest.mark.parametrize("place", [3, slice(2, 9), torch.arange(30) % 2 == 0, (4, slice(5))])
def test_rows_can_be_set(entry: Blocks, place: Any) -> None:
    plain = entry.decode()
    entry[place] = plain[place] = 0.0
    assert not entry[place].any()
    assert torch.equal(entry, Blocks.of(plain, SIGNED))


def test_a_pickle_has_the_numbers_and_nothing_of_ours(entry: Blocks) -> None:
    for found in (
        pickle.loads(pickle.dumps(entry)),
        _saved_and_loaded(entry),
    ):
        assert type(found) is Tensor
        assert torch.equal(found, entry.decode())


def _saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_an_empty_entry_is_harmless() -> None:
    empty = Blocks.zeros((0, 3), UNSIGNED, torch.device("cpu"))
    empty.copy_(torch.zeros(0, 3))
    assert empty.decode().shape == (0, 3)
    assert block_tensor.stored(empty).nbytes == 0
