"""SGD's parameter step: reference and compiled sweep by hand, against the oracle and each other."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import sgd_steps
import torch
from adaptiverl.kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sgd_steps import (
    BLOCK,
    GROUPS,
    LONG,
    PATHS,
    PIECE,
    SIGMA,
    SIZES,
    SGDEntry,
    against_the_oracle,
    as_reals,
    block_of,
    compiled_sweep,
    copy_of,
    entry_of,
    knobs_of,
    mixed_entries,
    rows_of,
    sweep,
)
from tolerances import assert_close
from torch import Tensor

from adaptiverl.layout import State

# --- By hand -----------------------------------------------------------------------------------

# lr 0.1, μ 0.9, gradient 0.5 twice, from p = 1. Options, dampening, weight decay; p after each
# step and the buffer after the second.
BY_HAND = {
    # g = 0.5 + 0.2·1 = 0.7 = b, p = 1 − 0.07; g = 0.5 + 0.2·0.93 = 0.686, b = 0.63 + 0.5·0.686
    "dampened, coupled decay": (0, 0.5, 0.2, (0.93, 0.8327), 0.973),
    # b = 0.5, d = 0.5 + 0.45; b = 0.45 + 0.5, d = 0.5 + 0.855
    "nesterov": (reference.NESTEROV, 0.0, 0.0, (0.905, 0.7695), 0.95),
    # p = 0.98·1 − 0.05; p = 0.98·0.93 − 0.095
    "decoupled decay": (reference.DECOUPLED, 0.0, 0.2, (0.93, 0.8164), 0.95),
}


@pytest.mark.parametrize("case", BY_HAND)
@pytest.mark.parametrize("path", PATHS)
def test_by_hand(path: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, dampening, weight_decay, params, buffer = BY_HAND[case]
    monkeypatch.setattr(
        sgd_steps, "GROUPS", torch.tensor([[9.0, 9.0, dampening, options, weight_decay]]).double()
    )
    monkeypatch.setattr(sgd_steps, "EFFECTIVE", torch.tensor([[0.1, 0.9]], dtype=torch.float64))
    entry = entry_of((1,), steps=0)
    entry.param.fill_(1.0)
    entry.grad.fill_(0.5)
    for expected in params:
        sweep(path, [entry], block_of())
        assert entry.param.item() == pytest.approx(expected, rel=1e-6)
    assert entry.momentum_buffer is not None
    assert entry.momentum_buffer.item() == pytest.approx(buffer, rel=1e-6)


# --- Against the oracle ------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
@pytest.mark.parametrize("gradient_scale", [None, 0.3])
def test_oracle_at_all_sizes(path: str, noise: float, gradient_scale: float | None) -> None:
    entries = mixed_entries(SIZES)
    against_the_oracle(path, entries, "step_float32", noise=noise, gradient_scale=gradient_scale)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_at_the_edges_of_pieces(path: str, noise: float) -> None:
    entries = mixed_entries([PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3])
    against_the_oracle(path, entries, "step_float32", steps=2, noise=noise)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_for_every_option(
    path: str, maximize: bool, momentum: bool, steps: int, noise: float
) -> None:
    entries = [
        entry_of((7, 53), index=g, group=g, maximize=maximize, momentum=momentum, steps=steps)
        for g in range(len(GROUPS))
    ]
    against_the_oracle(path, entries, "step_float32", steps=16, noise=noise)


def test_oracle_in_float64() -> None:
    entries = mixed_entries(SIZES, dtype=torch.float64)
    against_the_oracle("reference", entries, "step_float64", steps=20, noise=0.0)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float16, "step_float16"), (torch.bfloat16, "step_bfloat16")],
    ids=str,
)
@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_oracle_in_half_precision(dtype: torch.dtype, name: str, noise: float) -> None:
    """float32 inside, rounded once: to the parameter; the buffer stays float32."""
    entries = mixed_entries(SIZES, dtype=dtype)
    against_the_oracle("reference", entries, "step_float32", steps=1, noise=noise, param_name=name)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    path=st.sampled_from(PATHS),
    noise=st.sampled_from([0.0, 0.03, 1.0]),
    scale=st.sampled_from([None, 0.01, 1.0, 3.0]),
)
def test_oracle_for_any_company(
    sizes: list[int], seed: int, path: str, noise: float, scale: float | None
) -> None:
    torch.manual_seed(seed)
    entries = mixed_entries(sizes)
    against_the_oracle(path, entries, "step_float32", steps=3, noise=noise, gradient_scale=scale)


# What is wrong with it, and what of the reference is changed for it.
MUTANTS = {
    "dampened at the first step": ("(dampening.dtype) <= 1", "(dampening.dtype) <= 0"),
    "nesterov forgotten": ("decoupled == NESTEROV", "decoupled == 7"),
    "coupled decay forgotten": ("g + weight_decay * p", "g + 0 * p"),
    "decoupled decay without the rate": ("1 - lr * weight_decay", "1 - weight_decay"),
    "not negated": ("g = -g", "g = g + 0"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_sees_a_mutant(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(reference._sgd_tensor)
    changed = source.replace(*MUTANTS[mutant])
    assert changed != source
    namespace = dict(vars(reference))
    exec(changed, namespace)
    monkeypatch.setattr(reference, "_sgd_tensor", namespace["_sgd_tensor"])
    entries = [
        entry_of((53,), index=g, group=g, maximize=g % 2 == 0, steps=0) for g in range(len(GROUPS))
    ]
    with pytest.raises(AssertionError, match="step_float32"):
        against_the_oracle("reference", entries, "step_float32", steps=2)


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_twins_agree(noise: float) -> None:
    entries = mixed_entries([*SIZES, PIECE + 1])
    twins = [copy_of(entry) for entry in entries]
    for t in range(3):
        sweep("compiled", entries, block_of(noise, step=t + 1))
        sweep("reference", twins, block_of(noise, step=t + 1))
    for a, b in zip(entries, twins, strict=True):
        assert_close(a.param, as_reals(b.param), "step_float32")
        assert a.step == b.step


# --- Bits --------------------------------------------------------------------------------------


def assert_bits(a: SGDEntry, b: SGDEntry) -> None:
    torch.testing.assert_close(
        [*a.shaped(), a.step],
        [*b.shaped(), b.step],
        rtol=0,
        atol=0,
        equal_nan=True,
    )


def run_bits(entries: Sequence[SGDEntry], noise: float = SIGMA) -> tuple[list[SGDEntry], Tensor]:
    copies = [copy_of(entry) for entry in entries]
    sums = torch.zeros(len(copies), 3, dtype=torch.float64)
    compiled_sweep(copies, block_of(noise), sums=sums)
    return copies, sums


def test_inactive_sweep_changes_nothing() -> None:
    entries = mixed_entries(SIZES)
    for entry in entries:
        entry.grad.fill_(torch.nan)
    before = [copy_of(entry) for entry in entries]
    compiled_sweep(entries, block_of(SIGMA, active=0))
    knobs = knobs_of(block_of(SIGMA, active=0))
    squares = torch.ones(len(entries), dtype=torch.float64)
    reference.sgd_step(entries, knobs, GROUPS, sgd_steps.EFFECTIVE, squares, None, True)
    for a, b in zip(entries, before, strict=True):
        assert_bits(a, b)


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_same_bits_for_any_number_of_threads(noise: float) -> None:
    entries = mixed_entries([5 * PIECE + 17, 3, 2 * PIECE, 1000, 0, 7])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run_bits(entries, noise))
    for copies, sums in results[1:]:
        for a, b in zip(copies, results[0][0], strict=True):
            assert_bits(a, b)
        assert torch.equal(sums, results[0][1])


@pytest.mark.parametrize("noise", [0.0, SIGMA])
def test_asking_for_sums_changes_no_bit(noise: float) -> None:
    entries = mixed_entries([*SIZES, PIECE + 1])
    with_sums, _ = run_bits(entries, noise)
    without = [copy_of(entry) for entry in entries]
    compiled_sweep(without, block_of(noise))
    for a, b in zip(with_sums, without, strict=True):
        assert_bits(a, b)


@pytest.mark.parametrize(
    "cuts", [[1, 2, 3, 5], [BLOCK - 1, BLOCK + 1, 4093], [PIECE - 1, LONG - 3]]
)
def test_same_bits_however_a_tensor_is_cut(cuts: list[int]) -> None:
    whole = entry_of((LONG,), index=7, group=1)
    squares = torch.zeros(1, dtype=torch.float64)
    torch.ops.adaptiverl.sum_squares_(rows_of([whole]), block_of(), squares, True)
    parts = []
    twin = copy_of(whole)
    assert twin.momentum_buffer is not None
    for begin, end in pairwise([0, *cuts, LONG]):
        place = slice(begin, end)
        parts.append(
            replace(
                twin,
                param=twin.param[place],
                grad=twin.grad[place],
                momentum_buffer=twin.momentum_buffer[place],
                offset=begin,
            )
        )
    compiled_sweep([whole], block_of(SIGMA), squares=squares)
    compiled_sweep(parts, block_of(SIGMA), squares=squares.expand(len(parts)).contiguous())
    assert_bits(whole, twin)


BITS = """
import hashlib, torch, adaptiverl
from adaptiverl.layout import State
torch.manual_seed(0)
block = torch.zeros(BLOCK, dtype=torch.float64)
block[1], block[ACTIVE], block[NOISE] = 9, 1, 0.1
digest = hashlib.sha256()
steps = [torch.tensor(5.0) for _ in range(8)]
for on_parameter in (False, True):
    for i, n in enumerate((1, 15, 1000, 4099, 70001, 33)):
        p, g, b = torch.randn(3, n).unbind()
        p, g, b = p.clone(), g.clone(), b.clone()
        row = [p.data_ptr(), g.data_ptr(), b.data_ptr() if i % 4 != 3 else 0, 0, 0,
               steps[i].data_ptr(), 0, n, 0, i, 0, n, i % 2]
        rows = torch.tensor([row])
        groups = torch.tensor([[0.1, 0.9, 0.0 if i % 2 else 0.2, i % 4, 0.1]]).double()
        squares, sums = torch.zeros(1).double(), torch.zeros(1, 3).double()
        torch.ops.adaptiverl.sum_squares_(rows, block, squares, True, on_parameter)
        torch.ops.adaptiverl.sgd_step_(
            rows, block, groups, groups[:, :2].contiguous(), squares, None, sums, on_parameter)
        for t in (p, b, squares, sums):
            digest.update(t.numpy().tobytes())
print(digest.hexdigest())
"""


def test_same_bits_for_every_instruction_set(tmp_path: Path) -> None:
    names = list(State.__dataclass_fields__)
    code = BITS.replace("BLOCK", str(len(names))).replace("ACTIVE", str(names.index("active")))
    code = code.replace("NOISE", str(names.index("noise")))
    digests = {}
    for isa in ("baseline", "avx2", "avx512"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ADAPTIVERL_CPU": isa, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,  # not the source tree, which would be imported instead of a wheel
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            # What this machine lacks cannot be compared on it; the baseline runs everywhere.
            assert isa in ("avx2", "avx512"), run.stderr
            assert "which this CPU does not have" in run.stderr
            continue
        digests[isa] = run.stdout
    if len(digests) < 2:
        pytest.skip("this CPU has the baseline's instruction set only: nothing to compare it with")
    assert len(set(digests.values())) == 1, digests


# --- Statistics and the operator's door ---------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, SIGMA])
@pytest.mark.parametrize("gradient_scale", [None, 0.3])
def test_sums_are_the_oracles(noise: float, gradient_scale: float | None) -> None:
    entries = mixed_entries([*SIZES, PIECE + 1])
    scale = 1.0 if gradient_scale is None else gradient_scale
    expected = []
    for e in entries:
        _, _, _, options, weight_decay = GROUPS[e.group].tolist()
        expected.append(
            oracle.sgd_alignment_sums(
                as_reals(e.param),
                as_reals(e.grad),
                None if e.momentum_buffer is None else as_reals(e.momentum_buffer),
                0.0 if int(options) & 2 else weight_decay,
                gradient_scale=scale,
                maximize=e.maximize,
            )
        )
    sums = torch.full((len(entries), 3), torch.nan, dtype=torch.float64)
    factor = None if gradient_scale is None else torch.tensor(scale, dtype=torch.float64)
    compiled_sweep(entries, block_of(noise), gradient_scale=factor, sums=sums)
    for row, (gu, gg, uu) in zip(sums, expected, strict=True):
        assert_close(row[0], gu, "statistics", scale=float(np.sqrt(gg * uu)))
        assert_close(row[1:], np.array([gg, uu]), "statistics")


def test_opcheck() -> None:
    entries = mixed_entries([5, 100])
    squares, sums = torch.zeros(2).double(), torch.zeros(2, 3).double()
    torch.library.opcheck(
        torch.ops.adaptiverl.sgd_step_,
        (rows_of(entries), block_of(), GROUPS, sgd_steps.EFFECTIVE, squares, None, sums, False),
    )


GOOD: list[Any] = [
    torch.zeros((0, 13), dtype=torch.int64),
    block_of(),
    GROUPS,
    sgd_steps.EFFECTIVE,
    torch.zeros(0, dtype=torch.float64),
]


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros((1, 12), dtype=torch.int64), "rows must be of shape"),
        (1, torch.zeros(5, dtype=torch.float64), "the controller's block must hold"),
        (2, torch.zeros((1, 5)), "groups must be float64"),
        (3, torch.zeros((1, 2), dtype=torch.float64), "effective must hold at least"),
    ],
)
def test_operator_checks_what_it_is_given(place: int, wrong: Tensor, message: str) -> None:
    arguments = [*GOOD]
    torch.ops.adaptiverl.sgd_step_(*arguments, None, None)
    arguments[place] = wrong
    with pytest.raises(RuntimeError, match=message):
        torch.ops.adaptiverl.sgd_step_(*arguments, None, None)
