"""The Triton kernels in Triton's interpreter against the oracle. `test_kernels.py` runs this file.

By hand: ``TRITON_INTERPRET=1 pytest tests/interpreted_pass.py``. The interpreter is chosen when
triton is imported, so these tests need a process of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise as neighbours
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import triton
import triton.language as tl
from adaptiverl.kernels.chunks import CHUNK, chunk_table, partial_sums
from broken_kernels import break_kernel
from grids import covering, pairwise
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pass_cases import (
    ADAMW,
    CASES,
    SEED,
    SGD,
    Case,
    Twin,
    assert_stored,
    assert_sums_close,
    copy_of,
    count,
    entry_of,
    expected_sums,
    part_of,
    rows_of,
    state_of,
    stored_in,
    widened,
    with_tensors,
    written,
)
from tolerances import assert_close
from torch import Tensor
from triton import knobs
from triton.runtime import interpreter

from adaptiverl.codecs import dtype_of
from adaptiverl.kernels import philox, statistics, walk
from adaptiverl.kernels import step as triton_step
from adaptiverl.layout import SLOT
from adaptiverl.step.entries import ParameterEntry

if not knobs.runtime.interpret:
    raise RuntimeError("set TRITON_INTERPRET=1 before Python starts: these tests run interpreted")

# Triton 3.6's interpreter does this at every loop, and says nothing of it from 3.7 on.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

TOLERANCE = {
    torch.float32: "step_float32",
    torch.bfloat16: "step_bfloat16",
    torch.float16: "step_float16",
}
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]
HALF, SINGLE = torch.bfloat16, torch.float32
STORED = [
    (HALF, HALF, HALF),
    (SINGLE, SINGLE, HALF),
    (HALF, HALF, SINGLE),
    (torch.float16, torch.float16, SINGLE),
    (torch.float16, torch.float16, HALF),
    (HALF, HALF, HALF, False),
    (HALF, HALF, torch.int8),
    (SINGLE, SINGLE, torch.int8),
    (HALF, HALF, SINGLE, True, True),
    (HALF, HALF, HALF, False, True),
    (HALF, HALF, torch.int8, True, True),
]
"""Of parameters, gradients and slots; whether parameters are rounded by chance; whether they have
error terms"""
each_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


@pytest.fixture(autouse=True)
def _hardware_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 off to bfloat16; GPUs round, as `test_codegen.py` checks."""
    cut_off = interpreter._convert_float

    def convert(values: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut_off(values, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return rounded.view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def _patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch patches the language, and so would every call inside its kernel: a third of all."""
    patch_language = interpreter._patch_lang

    def patch(_: Any) -> Any:
        if not tl.core.is_builtin(tl.load):
            return None
        return patch_language(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))

    monkeypatch.setattr(interpreter, "_patch_lang", patch)


def place(values: Tensor, skipped: int = 0) -> Tensor:
    """The values in memory of their own, so many elements past a multiple of 16 bytes."""
    memory = torch.full((values.numel() + skipped + 4,), 77, dtype=values.dtype)
    assert memory.data_ptr() % 16 == 0
    return memory[skipped : skipped + values.numel()].copy_(values.flatten())


def make(case: Case, numel: int, misaligned: str = "", **options: Any) -> ParameterEntry:
    """An entry whose tensors are aligned but for one: "param", "grad", or a slot's number."""
    entry = with_tensors(entry_of(case, (numel,), **options), place)
    if misaligned in ("param", "grad"):
        return replace(entry, **{misaligned: place(getattr(entry, misaligned), 1)})  # type: ignore[arg-type]
    return replace(
        entry,
        slots=tuple(
            place(slot, 1) if slot is not None and misaligned == str(i) else slot
            for i, slot in enumerate(entry.slots)
        ),
    )


class Launch:
    """The tables of one launch, and the launches; all entries keep as many slots as the first."""

    def __init__(self, case: Case, entries: Sequence[ParameterEntry]) -> None:
        self.case, self.entries = case, entries
        self.rows = rows_of(entries)
        self.chunks = chunk_table([e.param.numel() for e in entries])
        self.partials, self.finished = partial_sums(
            len(self.chunks), len(entries), torch.device("cpu")
        )
        self.partials.fill_(torch.nan)
        self.squares = torch.full((len(entries),), torch.nan, dtype=torch.float64)

    def statistics(self, state: Tensor, always: bool, of_parameters: bool = False) -> Tensor:
        first = self.entries[0]
        statistics.sum_squares(
            self.rows,
            self.chunks,
            state,
            self.squares,
            self.partials,
            self.finished,
            always=always,
            grad_dtype=first.param.dtype if of_parameters else first.grad.dtype,
            of_parameters=of_parameters,
        )
        return self.squares

    def step(
        self,
        noise: float = 0.0,
        *,
        gradient_scale: float | None = None,
        sums: bool = False,
        on_parameter: bool = False,
        state: Tensor | None = None,
        squares: Tensor | None = None,
    ) -> Tensor | None:
        """One step, counters included; the sums, where they were asked for."""
        state = state_of(noise) if state is None else state
        if state[SLOT["active"]] != 0:
            count(self.case, self.entries)
        if squares is None:
            of = [e.param if on_parameter else e.grad for e in self.entries]
            squares = torch.stack([t.double().square().sum() for t in of])
        scale = None
        if gradient_scale is not None:
            scale = torch.tensor(gradient_scale, dtype=torch.float64)
        out = torch.full((len(self.entries), 3), torch.nan, dtype=torch.float64) if sums else None
        first = self.entries[0]
        triton_step.step(
            self.rows,
            self.chunks,
            state,
            self.case.groups,
            self.case.effective,
            squares,
            scale,
            out,
            self.partials,
            self.finished,
            algorithm=self.case.name,
            param_dtype=first.param.dtype,
            grad_dtype=first.grad.dtype,
            slot_dtypes=[dtype_of(slot) for slot in first.slots if slot is not None],
            noise_on_parameter=on_parameter,
            stochastic_rounding=first.stochastic_rounding,
            error_terms=first.error is not None,
        )
        assert not self.finished.any(), "a ticket was not handed back"
        return out


def check(
    case: Case,
    entries: Sequence[ParameterEntry],
    noise: float = 0.0,
    gradient_scale: float | None = None,
    sums: bool = False,
    on_parameter: bool = False,
) -> None:
    """Step all entries in one launch and compare everything with the oracle."""
    scale = 1.0 if gradient_scale is None else gradient_scale
    target = "parameter" if on_parameter else "gradient"
    twins = [Twin(case, entry) for entry in entries]
    wanted = expected_sums(case, entries, gradient_scale)
    for entry, twin in zip(entries, twins, strict=True):
        twin.take(entry.grad, entry, noise=noise, gradient_scale=scale, noise_target=target)
    options: dict[str, Any] = {"sums": sums, "on_parameter": on_parameter}
    got = Launch(case, entries).step(noise, gradient_scale=gradient_scale, **options)
    for entry, twin in zip(entries, twins, strict=True):
        twin.compare(entry, "step_float32", TOLERANCE[entry.param.dtype])
    if got is not None:
        for row, expected in zip(got, wanted, strict=True):
            assert_sums_close(row, expected)


# Philox and the normals


@triton.jit
def _words_kernel(counters, keys, out, COUNT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    c0 = tl.load(counters + lanes).to(tl.uint32)
    c1 = tl.load(counters + COUNT + lanes).to(tl.uint32)
    c2 = tl.load(counters + 2 * COUNT + lanes).to(tl.uint32)
    c3 = tl.load(counters + 3 * COUNT + lanes).to(tl.uint32)
    k0, k1 = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox.philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out + lanes, w0.to(tl.int64))
    tl.store(out + COUNT + lanes, w1.to(tl.int64))
    tl.store(out + 2 * COUNT + lanes, w2.to(tl.int64))
    tl.store(out + 3 * COUNT + lanes, w3.to(tl.int64))


def words(counters: Tensor, keys: Sequence[int]) -> np.ndarray:
    out = torch.empty_like(counters)
    _words_kernel[(1,)](counters, torch.tensor(keys), out, COUNT=counters.shape[1])
    return out.numpy()


def test_philox_gives_the_published_answers() -> None:
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answers = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, answer in answers:
        assert tuple(words(torch.tensor(counter)[:, None], key)[:, 0]) == answer


def test_philox_words_are_the_oracles() -> None:
    counters = torch.randint(0, 2**32, (4, 64))
    keys = torch.randint(0, 2**32, (2,)).tolist()
    assert np.array_equal(words(counters, keys), oracle.philox4x32(*counters.numpy(), *keys))


@triton.jit
def _normals_kernel(first, numbers, by_quad, by_element, QUADS: tl.constexpr):
    element = tl.load(first)
    index = tl.load(numbers).to(tl.uint32)
    step = tl.load(numbers + 1).to(tl.uint32)
    k0, k1 = tl.load(numbers + 2).to(tl.uint32), tl.load(numbers + 3).to(tl.uint32)
    lanes = tl.arange(0, 4 * QUADS)
    xi = philox.quad_normals(element >> 2, index, step, k0, k1, QUADS)
    tl.store(by_quad + lanes, xi)
    tl.store(by_element + lanes, philox.element_normals(element + lanes, index, step, k0, k1))


@pytest.mark.parametrize("first", [0, 4096, 2**34 - 2048, 2**60])
def test_normals_are_the_oracles_by_quad_and_by_element(first: int) -> None:
    index, step, quads = 2**32 - 5, 2**31 + 3, 1024
    numbers = torch.tensor([index, step, SEED & 0xFFFFFFFF, SEED >> 32])
    by_quad, by_element = torch.empty(4 * quads), torch.empty(4 * quads)
    _normals_kernel[(1,)](torch.tensor(first), numbers, by_quad, by_element, QUADS=quads)
    wanted = oracle.noise(SEED, index, step, np.arange(first, first + 4 * quads))
    assert_close(by_quad, wanted, "normals", scale=1.0)
    # Not only against the normals' scale: each to the bound that philox.py states.
    assert float(np.max(np.abs(by_quad.double().numpy() / wanted - 1))) < 4.1e-6
    assert torch.equal(by_quad, by_element)


# Statistics

SIZES = (0, CHUNK - 1, 1, CHUNK, 0, 0, CHUNK + 1, 7, 1000, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_parameters", [False, True])
def test_squares_are_summed_per_tensor(of_parameters: bool, dtype: torch.dtype) -> None:
    entries = [make(SGD, n, dtype=dtype) for n in (*SIZES, 2 * CHUNK + 5000)]
    entries += [make(SGD, n, name, dtype=dtype) for n in (3000, 5) for name in ("grad", "param")]
    launch = Launch(SGD, entries)
    squares = launch.statistics(state_of(), True, of_parameters)
    for entry, square in zip(entries, squares, strict=True):
        of = entry.param if of_parameters else entry.grad
        assert_close(square, float(of.double().square().sum()), "statistics")
    assert not launch.finished.any()
    again = squares.clone()
    assert torch.equal(launch.statistics(state_of(), True, of_parameters), again)


@pytest.mark.parametrize(
    ("noise", "active", "always", "runs"),
    [(0.1, 1, False, True), (0.0, 1, False, False), (0.1, 0, True, False), (0.0, 1, True, True)],
)
def test_statistics_end_at_once_where_nobody_needs_them(
    noise: float, active: float, always: bool, runs: bool
) -> None:
    launch = Launch(SGD, [make(SGD, 100)])
    squares = launch.statistics(state_of(noise, active=active), always)
    assert bool(squares.isfinite().all()) == runs
    assert bool(launch.partials[:, 0].isfinite().all()) == runs


# The pass


@pairwise(
    case=CASES.values(),
    pair=PAIRS,
    # Noise on the gradient with every slot: where any tensor may be misaligned.
    noise=[(False, 0.0, False), (True, 0.3, False), (False, 0.3, True)],
)
def test_step_is_the_oracles_with_every_option(
    case: Case, pair: tuple[torch.dtype, torch.dtype], noise: tuple[bool, float, bool]
) -> None:
    (param_dtype, grad_dtype), (fewest, sigma, on_parameter) = pair, noise
    if param_dtype != torch.float32:
        # A rate whose steps are no smaller than the rounding.
        case = replace(case, effective=case.effective * torch.tensor([10.0, 1.0]))
    options: dict[str, Any] = {"dtype": param_dtype, "grad_dtype": grad_dtype}
    options["kept"] = (min if fewest else max)(case.kept)
    last = len(case.groups) - 1
    entries = [
        make(case, 0, **options),
        make(case, 1030, index=1, **options),
        make(case, 1, index=2, group=1, maximize=True, **options),
        make(case, 300, "grad", index=3, group=last, maximize=True, **options),
        make(case, 40, index=4, group=last // 2, steps=0, **options),
        make(case, 60, index=5, group=min(3, last), **options),
    ]
    check(case, entries, sigma, 0.37, True, on_parameter)


FEW = {"steps": (0, 3), "gradient_scale": (None, 0.01), "sums": (False, True)}


@pairwise(case=CASES.values(), **FEW)
def test_step_is_the_oracles_with_few_options(
    case: Case, steps: int, gradient_scale: float | None, sums: bool
) -> None:
    entries = [
        make(case, 1030, steps=steps, maximize=sums),
        make(case, 40, index=1, group=1, steps=steps, maximize=sums),
    ]
    check(case, entries, 0.0, gradient_scale, sums)


@pytest.mark.parametrize(
    ("file", "old", "new", "name"),
    [
        ("adamw.py", "exp_avg_sq * beta2 +", "exp_avg_sq * beta2 + 2 *", "adamw"),
        ("sgd.py", "one_minus_dampening * g", "one_minus_dampening * -g", "sgd"),
        ("decay.py", "weight_decay < 0", "weight_decay < -9", "adamw"),
        ("decay.py", "* tl.load(state + STATE_ANNEAL)", "", "lion"),
        ("step_kernel.py", "load(grad, inside", "load(param, inside", "lion"),
    ],
)
def test_a_broken_kernel_is_noticed_with_any_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, old: str, new: str, name: str
) -> None:
    broken = break_kernel(monkeypatch, tmp_path, file, old, new)["step"]
    monkeypatch.setitem(globals(), "triton_step", broken)
    for options in covering(*FEW.values()):
        with pytest.raises(AssertionError):
            test_step_is_the_oracles_with_few_options(CASES[name], *options)


@each_case
def test_chunks_meet_at_their_edges_and_empty_tensors_are_harmless(case: Case) -> None:
    groups = len(case.groups)
    entries = [make(case, n, index=i, group=i % groups) for i, n in enumerate(SIZES)]
    check(case, entries, sums=True)


@each_case
def test_a_tensor_of_several_chunks_is_summed_whole(case: Case) -> None:
    check(case, [make(case, 2 * CHUNK + 1500)], noise=0.2, sums=True)


@pairwise(
    lambda case, name, _: not name.isdigit() or int(name) < max(case.kept),  # it has such a slot
    case=CASES.values(),
    misaligned=["param", "grad", "0", "1", "2"],
    on_parameter=[False, True],
)
def test_any_tensor_may_be_misaligned(case: Case, misaligned: str, on_parameter: bool) -> None:
    entry = make(case, 1100, misaligned, kept=max(case.kept))
    check(case, [entry], 0.2, sums=True, on_parameter=on_parameter)


@settings(max_examples=16, phases=(Phase.generate,))
@given(
    case=st.sampled_from(list(CASES.values())),
    sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=4),
    pair=st.sampled_from(PAIRS),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
    gradient_scale=st.none() | st.floats(1e-3, 10),
    misaligned=st.sampled_from(["", "grad", "param"]),
    fewest=st.booleans(),
    on_parameter=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_step_is_the_oracles_over_random_shapes(
    case: Case,
    sizes: list[int],
    pair: tuple[torch.dtype, torch.dtype],
    noise: float,
    gradient_scale: float | None,
    misaligned: str,
    fewest: bool,
    on_parameter: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    kept, groups = (min if fewest else max)(case.kept), len(case.groups)
    options: dict[str, Any] = {"dtype": pair[0], "grad_dtype": pair[1], "kept": kept}
    entries = [
        make(
            case, n, misaligned * (i % 2), index=i, group=i % groups, maximize=i % 3 == 1, **options
        )
        for i, n in enumerate(sizes)
    ]
    check(case, entries, noise, gradient_scale, True, on_parameter)


# Long shards that begin with each element of a quad, and short ones, down to a single element.
CUTS = (0, 1, 1030, 2051, 3080, 4108, 4109, 4111, 4115)


@each_case
@pytest.mark.parametrize("on_parameter", [False, True])
def test_shards_draw_the_noise_of_the_whole(case: Case, on_parameter: bool) -> None:
    whole = make(case, CUTS[-1], index=6, group=1)
    shards = [part_of(copy_of(whole), *edges) for edges in neighbours(CUTS)]
    # As a reduction over the shards gives it.
    square = (whole.param if on_parameter else whole.grad).double().square().sum()
    for entries in ([whole], shards):
        squares = square.repeat(len(entries))
        Launch(case, entries).step(0.5, on_parameter=on_parameter, squares=squares)
    for pieces, tensor in zip(zip(*map(written, shards), strict=True), written(whole), strict=True):
        assert torch.equal(torch.cat(pieces), tensor)


@pairwise(
    case=CASES.values(),
    stored=STORED,
    # On the wide path without and with noise, and element by element, far into a tensor.
    at=[(0.0, 8), (0.3, 0), (0.3, 2**35 + 5)],
)
def test_what_is_stored_is_the_float32_step_rounded_by_the_oracle(
    case: Case, stored: tuple[Any, ...], at: tuple[float, int]
) -> None:
    noise, offset = at
    options: dict[str, Any] = {"index": 5, "offset": offset, "kept": max(case.kept)}
    entry = stored_in(make(case, 1100, **options), *stored)
    exact = widened(entry)
    for each in (entry, exact):
        Launch(case, [each]).step(noise)
    assert_stored(entry, exact)


@pairwise(
    case=CASES.values(),
    stored=[*STORED[:2], (HALF, HALF, SINGLE, True, True)],
    cut=[1, 4, 8, 1031],
)
def test_shards_round_as_the_whole(case: Case, stored: tuple[Any, ...], cut: int) -> None:
    whole = stored_in(make(case, 2052, index=6), *stored)
    shards = [part_of(copy_of(whole), *edges) for edges in ((0, cut), (cut, 2052))]
    for entries in ([whole], shards):
        Launch(case, entries).step()
    for pieces, tensor in zip(zip(*map(written, shards), strict=True), written(whole), strict=True):
        assert torch.equal(torch.cat(pieces), tensor)


@each_case
def test_a_shard_far_inside_a_tensor_draws_its_own_noise(case: Case) -> None:
    for offset in (2**34 - 4, 2**34 + 1):
        check(case, [make(case, 1100, offset=offset)], noise=1.0)


@each_case
def test_a_chunk_beyond_two_to_the_thirty_first_elements_is_found(case: Case) -> None:
    entry = make(case, 1100)
    twin, launch = Twin(case, entry), Launch(case, [entry])
    twin.take(entry.grad, entry)
    # The addresses of a tensor whose last elements are the ones that are here.
    launch.rows[0, :5] -= 4 * 2**32 * (launch.rows[0, :5] != 0)
    launch.rows[0, 7] += 2**32
    launch.chunks[0, 1] = 2**32 // CHUNK
    launch.step()
    twin.compare(entry, "step_float32")


@each_case
@pytest.mark.parametrize("on_parameter", [False, True])
def test_a_skipped_step_changes_nothing(case: Case, on_parameter: bool) -> None:
    entry = make(case, 1100, kept=max(case.kept))
    entry.grad[5] = torch.nan
    before = [t.clone() for t in written(entry)]
    state = state_of(0.3, active=0)
    sums = Launch(case, [entry]).step(sums=True, state=state, on_parameter=on_parameter)
    assert all(torch.equal(t, b) for t, b in zip(written(entry), before, strict=True))
    assert sums is not None
    assert bool(sums.isnan().all())


@each_case
def test_without_noise_no_random_word_is_drawn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def refuse(*arguments: object) -> None:
        drawn.append(arguments)
        raise AssertionError("a normal was drawn")

    monkeypatch.setattr(walk, "quad_normals", refuse)
    monkeypatch.setattr(walk, "element_normals", refuse)
    check(case, [make(case, 1100)])
    assert not drawn
    with pytest.raises(Exception, match="a normal was drawn"):
        Launch(case, [make(case, 1100)]).step(noise=0.1)
    assert drawn


@each_case
def test_a_nan_stays_where_it_is(case: Case) -> None:
    entry = make(case, 1100, kept=max(case.kept))
    entry.grad[1030] = torch.nan
    Launch(case, [entry]).step()
    for t in written(entry):
        assert t.isnan().nonzero().flatten().tolist() == [1030]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_eps_of_zero_is_right_for_subnormal_second_moments() -> None:
    case = replace(ADAMW, groups=ADAMW.groups * torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]))
    entry = make(case, 1100)
    for tensor, factor in ((entry.grad, 1e-22), (entry.slots[0], 1e-22)):
        assert tensor is not None
        tensor.mul_(factor)
    assert entry.slots[1] is not None
    entry.slots[1].fill_(1e-41)
    twin = Twin(case, entry)
    twin.take(entry.grad, entry)
    sums = Launch(case, [entry]).step(sums=True)
    # The second moment itself has only a subnormal's bits.
    assert float(np.abs(entry.param.double().numpy() - twin.param).max()) < 2e-4
    assert sums is not None
    assert bool(sums.isfinite().all())


@each_case
def test_no_tensors_is_no_launch(case: Case) -> None:
    launch = Launch(case, [make(case, 5)])
    before = launch.entries[0].param.clone()
    launch.rows, launch.chunks = launch.rows[:0], launch.chunks[:0]
    launch.statistics(state_of(), always=True)
    launch.step()
    assert launch.squares.isnan().all()
    assert torch.equal(launch.entries[0].param, before)
