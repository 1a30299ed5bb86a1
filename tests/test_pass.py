"""The parameter pass of every algorithm: compiled and in plain torch, against the oracle."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise as neighbours
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from grids import pairwise
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_cases import (
    ADAMW,
    BLOCK,
    CASES,
    COUNT_EFFECTIVE,
    COUNT_GROUPS,
    DECOUPLED,
    LION,
    LONG,
    NESTEROV,
    PATHS,
    PIECE,
    SEED,
    SGD,
    SIGMA,
    SIZES,
    STEP,
    Case,
    Twin,
    against_the_oracle,
    as_kept,
    as_reals,
    assert_bits,
    assert_sums_close,
    compiled_pass,
    copy_of,
    count,
    counted_tables,
    double,
    entry_of,
    expected_sums,
    knobs_of,
    mixed_entries,
    part_of,
    rows_of,
    squares_of,
    state_of,
    step,
    with_tensors,
    written,
)
from tolerances import assert_close
from torch import Tensor
from training import saved_states

from adaptiverl import Control
from adaptiverl.controller import Controller
from adaptiverl.kernels import elements, normals, reference
from adaptiverl.step.entries import COLUMNS, ParameterEntry

CSRC = Path(__file__).resolve().parents[1] / "csrc"
LARGE = [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3]
TARGETS = ("gradient", "parameter")

each_case = pytest.mark.parametrize("case", CASES.values(), ids=str)
each_path = pytest.mark.parametrize("path", PATHS)
with_and_without_noise = pytest.mark.parametrize("noise", [0.0, SIGMA])


def test_edges_are_where_the_source_has_them() -> None:
    """The sizes straddle these; a changed source must take the tests along."""
    block, pieces = (CSRC / "normals.h").read_text(), (CSRC / "pieces.h").read_text()
    assert re.search(r"kBlock = (\d+);", block)[1] == str(BLOCK)  # type: ignore[index]
    shift = re.search(r"kPiece = int64_t\{1\} << (\d+);", pieces)
    assert shift is not None
    assert 1 << int(shift[1]) == PIECE


# --- By hand -------------------------------------------------------------------------------------

# A group's row; lr and momentum in effect; from p = 1 and gradients of 0.5, p after each step and
# the first slot after the last.
BY_HAND: dict[str, tuple[Case, list[float], list[float], tuple[float, ...], float]] = {
    # m = 0.05, v = 0.25: the first update is its sign. m = 0.095/0.19 = 0.5, v = 0.25: again.
    "adamw": (ADAMW, [9, 9, 0.0, 0.0, 0.2], [0.1, 0.9], (0.88, 0.7624), 0.095),
    # g = 0.5 + 0.2·1 = 0.7 = b, p = 1 − 0.07; g = 0.5 + 0.2·0.93 = 0.686, b = 0.63 + 0.5·0.686
    "sgd, dampened, coupled decay": (SGD, [9, 9, 0.5, 0, 0.2], [0.1, 0.9], (0.93, 0.8327), 0.973),
    # b = 0.5, d = 0.5 + 0.45; b = 0.45 + 0.5, d = 0.5 + 0.855
    "sgd, nesterov": (SGD, [9, 9, 0, NESTEROV, 0], [0.1, 0.9], (0.905, 0.7695), 0.95),
    # p = 0.98·1 − 0.05; p = 0.98·0.93 − 0.095
    "sgd, decoupled": (SGD, [9, 9, 0, DECOUPLED, 0.2], [0.1, 0.9], (0.93, 0.8164), 0.95),
    # c = 0.05 > 0, m = 0.1; c = 0.14 > 0, m = 0.18: two steps of 0.1 beside the decay of 0.02.
    "lion": (LION, [9, 9, 0.8, 0, 0.2], [0.1, 0.9], (0.88, 0.7624), 0.18),
    # Independent, with a group's rate of 0.2: 0.2·0.375·0.4 = 0.03 of p, whatever lr is.
    "adamw, independent": (ADAMW, [0.2, 9, 0, 0, -0.4], [0.1, 0.9], (0.87, 0.7439), 0.095),
    "sgd, independent": (SGD, [0.2, 9, 0, DECOUPLED, -0.4], [0.1, 0.9], (0.92, 0.7974), 0.95),
    "lion, independent": (LION, [0.2, 9, 0.8, 0, -0.4], [0.1, 0.9], (0.87, 0.7439), 0.18),
}


@pytest.mark.parametrize("name", BY_HAND)
@each_path
def test_by_hand(path: str, name: str) -> None:
    case, group, effective, params, slot = BY_HAND[name]
    case = replace(case, groups=double([group]), effective=double([effective]))
    entry = entry_of(case, (1,), steps=0)
    entry.param.fill_(1.0)
    entry.grad.fill_(0.5)
    for expected in params:
        step(path, case, [entry], state_of())
        assert entry.param.item() == pytest.approx(expected, rel=1e-6)
    assert written(entry)[1].item() == pytest.approx(slot, rel=1e-6)


# --- Against the oracle --------------------------------------------------------------------------


@each_path
@pairwise(
    case=CASES.values(),
    noise=[(0.0, "gradient"), *((SIGMA, target) for target in TARGETS)],
    gradient_scale=[None, 0.125, 0.3],
)
def test_oracle_at_all_sizes(
    path: str, case: Case, noise: tuple[float, str], gradient_scale: float | None
) -> None:
    options: dict[str, Any] = {"noise": noise[0], "target": noise[1]}
    options["gradient_scale"] = gradient_scale
    against_the_oracle(path, case, mixed_entries(case, SIZES), **options)


@each_case
@each_path
@with_and_without_noise
def test_oracle_at_the_edges_of_pieces(path: str, case: Case, noise: float) -> None:
    against_the_oracle(path, case, mixed_entries(case, LARGE), steps=1, noise=noise)


@each_path
@pairwise(case=CASES.values(), maximize=[False, True], fewest=[False, True], steps=[0, 3])
def test_oracle_for_every_option(
    path: str, case: Case, maximize: bool, fewest: bool, steps: int
) -> None:
    kept = (min if fewest else max)(case.kept)
    noise = SIGMA * (maximize ^ fewest ^ (steps > 0))  # with either of any two others
    entries = [
        entry_of(case, (7, 53), index=3 + g, group=g, maximize=maximize, kept=kept, steps=steps)
        for g in range(len(case.groups))
    ]
    against_the_oracle(path, case, entries, steps=16, noise=noise)


@each_case
@pytest.mark.parametrize("gradient_scale", [None, 0.3])
def test_oracle_in_float64(case: Case, gradient_scale: float | None) -> None:
    entries = mixed_entries(case, SIZES, dtype=torch.float64)
    options: dict[str, Any] = {"noise": 0.0, "gradient_scale": gradient_scale}
    against_the_oracle("reference", case, entries, "step_float64", steps=20, **options)


@each_case
@pytest.mark.parametrize("target", TARGETS)
def test_oracle_in_float64_with_noise(case: Case, target: str) -> None:
    entries = mixed_entries(case, SIZES, dtype=torch.float64)
    against_the_oracle("reference", case, entries, gradient_scale=0.3, target=target)


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@with_and_without_noise
def test_oracle_in_half_precision(case: Case, dtype: torch.dtype, noise: float) -> None:
    """float32 inside, rounded once: to the parameter; the slots stay float32."""
    # A rate whose steps are no smaller than the rounding.
    case = replace(case, effective=case.effective * torch.tensor([40.0, 1.0]))
    entries = mixed_entries(case, SIZES, dtype=dtype)
    name = f"step_{str(dtype).removeprefix('torch.')}"
    against_the_oracle("reference", case, entries, steps=1, noise=noise, param_name=name)
    assert {x.dtype for e in entries for x in written(e)[1:]} == {torch.float32}


@each_case
@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_oracle_with_gradients_of_another_type(case: Case, grad_dtype: torch.dtype) -> None:
    entries = mixed_entries(case, SIZES, grad_dtype=grad_dtype)
    against_the_oracle("reference", case, entries, steps=3)


@each_case
@each_path
@pytest.mark.parametrize("offset", [2**32 - 5, 2**34 - 3, 2**35 + 1])
def test_shards_far_into_a_tensor(path: str, case: Case, offset: int) -> None:
    """Beyond 2^32 elements the place still counts in full."""
    entry = replace(entry_of(case, (50,)), offset=offset, logical_numel=50)
    against_the_oracle(path, case, [entry], steps=2)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    case=st.sampled_from(list(CASES.values())),
    path=st.sampled_from(PATHS),
    noise=st.sampled_from([0.0, 0.03, 1.0]),
    scale=st.sampled_from([None, 0.01, 1.0, 3.0]),
    target=st.sampled_from(TARGETS),
)
def test_oracle_for_any_company(
    sizes: list[int],
    seed: int,
    case: Case,
    path: str,
    noise: float,
    scale: float | None,
    target: str,
) -> None:
    torch.manual_seed(seed)
    entries = mixed_entries(case, sizes)
    options: dict[str, Any] = {"noise": noise, "gradient_scale": scale, "target": target}
    against_the_oracle(path, case, entries, steps=3, **options)


# What is wrong, and what of the reference is changed for it: module, right, wrong.
ANY, ON_P = "any algorithm", "noise on the parameter"
MUTANTS: dict[str, tuple[str, ModuleType, str, str]] = {
    "another element's noise": (ANY, normals, "offset - 4 * first", "offset - 4 * first + 1"),
    "too strong a noise": (ANY, normals, "2.0**-24", "2.0**-23.99"),
    "not negated": (ANY, reference, "g = -g", "g = g + 0"),
    "noise without the rate": (ON_P, reference, "square, lr)", "square, None)"),
    "noise scaled as the gradient": (ON_P, reference, "square, lr)", "square, gradient_scale)"),
    "noise of the other sign": (ON_P, reference, "p = p + _noise(", "p = p - _noise("),
    "no decay": ("adamw", elements, "decay=1 - row.decay_share", "decay=1 + 0 * row.lr"),
    "independent decay by the rate": ("adamw", elements, "own_lr * anneal", "lr"),
    "independent decay not annealed": ("adamw", elements, "own_lr * anneal", "own_lr"),
    "no maximum": ("adamw", elements, "torch.maximum(max_exp_avg_sq, v)", "v"),
    "no second correction": ("adamw", elements, "/ s.bias2_sqrt + s.eps", "+ s.eps"),
    "no eps": ("adamw", elements, "/ s.bias2_sqrt + s.eps", "/ s.bias2_sqrt"),
    "no first correction": ("adamw", elements, "row.lr / (1 - row.mu_product)", "row.lr / 1"),
    "lion's decay without the rate": (
        "lion",
        elements,
        "decay=1 - row.decay_share,\n            lr=row.lr",
        "decay=1 - row.decay_share / row.lr,\n            lr=row.lr",
    ),
    "the new moment's sign": (
        "lion",
        elements,
        "s.momentum * exp_avg + s.one",
        "s.beta2 * exp_avg + s.one",
    ),
    "one moment's decay": ("lion", elements, "(s.beta2 * exp_avg +", "(s.momentum * exp_avg +"),
    "dampened at once": ("sgd", elements, "first = row.step <= 1", "first = row.step <= 0"),
    "nesterov forgotten": ("sgd", elements, "s.nesterov == NESTEROV", "s.nesterov == 7"),
    "coupled forgotten": ("sgd", elements, "g + s.weight_decay * p", "g + 0 * p"),
    "decoupled without the rate": (
        "sgd",
        elements,
        "torch.where(decoupled, 1 - row.decay_share, 1)",
        "torch.where(decoupled, 1 - row.decay_share / row.lr, 1)",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_comparison_sees_a_mutant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, module, right, wrong = MUTANTS[name]
    source = Path(module.__file__ or "").read_text()
    assert source.count(right) >= 1
    mutant = ModuleType(module.__name__)
    mutant.__file__ = module.__file__
    monkeypatch.setitem(sys.modules, f"{module.__name__}_mutant", mutant)
    mutant.__name__ = f"{module.__name__}_mutant"
    exec(compile(source.replace(right, wrong), str(module.__file__), "exec"), vars(mutant))
    if module is reference:
        monkeypatch.setattr(reference, "_step_tensor", mutant._step_tensor)
    elif module is normals:
        monkeypatch.setattr(normals, "normals", mutant.normals)
    else:
        monkeypatch.setattr(reference, "ELEMENTS", mutant.ELEMENTS)
        monkeypatch.setattr(reference, "decay_share", mutant.decay_share)
    target = "parameter" if of == ON_P else "gradient"
    for case in CASES.values():
        if of not in (ANY, ON_P, case.name):
            continue
        entries = [
            entry_of(case, (53,), group=g, maximize=True, steps=steps, kept=max(case.kept))
            for g in range(len(case.groups))
            for steps in (0, 3)
        ]
        options: dict[str, Any] = {"noise": 3.0, "target": target, "gradient_scale": 0.3}
        with pytest.raises(AssertionError, match="step_float32"):
            against_the_oracle("reference", case, entries, steps=2, **options)


@each_case
def test_of_another_root_mean_square_it_would_be_another_noise(case: Case) -> None:
    """Noise on the parameter by the gradient's size."""
    entries = mixed_entries(case, SIZES[8:])
    twins = [Twin(case, entry) for entry in entries]
    for entry, twin in zip(entries, twins, strict=True):
        twin.take(entry.grad, entry, noise=3.0, noise_target="parameter")
    squares = torch.zeros(len(entries), dtype=torch.float64)
    reference.sum_squares(entries, squares)
    arguments = (case.groups, case.effective, squares, None, False, True)
    reference.step(case.name, entries, knobs_of(state_of(3.0)), *arguments)
    for entry, twin in zip(entries, twins, strict=True):
        with pytest.raises(AssertionError, match="step_float32"):
            twin.compare(entry, "step_float32")


def _advance(rows: Tensor, effective: Tensor, active: int) -> None:
    controller = Controller(Control.frozen(), 1.0, 0.5)
    flag = torch.tensor(1.0 - active)
    controller.advance(COUNT_GROUPS + double([[1, 0, 0, 0, 0]]), effective, [rows], flag)


def _count_steps(rows: Tensor, effective: Tensor, active: int) -> None:
    state = state_of(0.0, active=active)
    torch.ops.adaptiverl.count_steps_(rows, state, COUNT_GROUPS, effective)


@pytest.mark.parametrize("active", [0, 1])
@pytest.mark.parametrize("by", ["advance", "count_steps", "reference"])
def test_a_count_that_was_edited_alone_has_a_power_for_its_product(by: str, active: int) -> None:
    """And one whose product came with it has that: each twin, by hand."""
    rows, products, steps, after = counted_tables()
    expected = after if active else torch.cat([products, steps[:, None].double()], dim=1)
    if by == "reference":
        flag = None if active else torch.tensor(0.0)
        for step, product, row in zip(steps, products, rows, strict=True):
            kept = product if row[COLUMNS.index("mu_product")] else None
            entry = replace(entry_of(ADAMW, (1,)), step=step, mu_product=kept)
            reference.count_step(entry, COUNT_GROUPS[0], COUNT_EFFECTIVE[0, 1], flag)
    elif by == "count_steps":
        _count_steps(rows, COUNT_EFFECTIVE, active)
    else:  # at rest, so what it has in effect is what was given
        expected = expected.clone()
        expected[:-1, :2] *= 2 if active else 1
        _advance(rows, torch.zeros(1, 2, dtype=torch.float64), active)
    assert torch.equal(torch.cat([products, steps[:, None].double()], dim=1), expected)


@each_path
@pytest.mark.parametrize("amsgrad", [False, True])
def test_what_is_not_finite_travels_as_in_torch(path: str, amsgrad: bool) -> None:
    entry = entry_of(ADAMW, (40,), kept=3 if amsgrad else 2)
    entry.grad[3], entry.grad[20], entry.grad[39] = torch.nan, torch.inf, -torch.inf
    _, exp_avg_sq, top = entry.slots
    assert exp_avg_sq is not None
    if top is not None:
        top[7] = torch.nan
    step(path, ADAMW, [entry], state_of())
    bad = {3, 20, 39} | ({7} if amsgrad else set())
    assert set(torch.nonzero(~entry.param.isfinite()).flatten().tolist()) == bad
    assert exp_avg_sq[20] == torch.inf
    if top is not None:
        assert top[3].isnan()
        assert top[7].isnan()


@each_case
@each_path
def test_a_nan_stays_where_it_is(path: str, case: Case) -> None:
    entry = entry_of(case, (40,), kept=max(case.kept))
    entry.grad[7] = torch.nan
    step(path, case, [entry], state_of())
    for tensor in written(entry):
        assert tensor.isnan().nonzero().flatten().tolist() == [7]


@each_case
@each_path
def test_zero_gradients_are_finite(path: str, case: Case) -> None:
    """No gradient, no noise: its RMS is 0, and only decay and the old slots move the parameter."""
    entries = mixed_entries(case, SIZES)
    for entry in entries:
        entry.grad.zero_()
    expected = [copy_of(entry) for entry in entries]
    step(path, case, entries, state_of(SIGMA))
    step(path, case, expected, state_of(0.0))
    for a, b in zip(entries, expected, strict=True):
        assert_bits(a, b)
        assert a.param.isfinite().all()


# --- A skipped step ------------------------------------------------------------------------------


@each_case
@each_path
def test_an_inactive_pass_changes_nothing(path: str, case: Case) -> None:
    entries = mixed_entries(case, SIZES)
    for entry in entries[::2]:
        entry.grad.fill_(torch.nan)
    before = [copy_of(entry) for entry in entries]
    sums = torch.full((len(entries), 3), 7.0, dtype=torch.float64)
    state = state_of(SIGMA, active=0)
    if path == "compiled":
        squares = torch.full((len(entries),), 7.0, dtype=torch.float64)
        torch.ops.adaptiverl.sum_squares_(rows_of(entries), state, squares, True)
        assert squares.eq(7).all()
        compiled_pass(case, entries, state, squares=squares, sums=sums)
    else:
        step(path, case, entries, state, sums=sums)
    for a, b in zip(entries, before, strict=True):
        assert_bits(a, b)
        assert a.step == b.step
        if a.mu_product is not None and b.mu_product is not None:
            assert torch.equal(a.mu_product, b.mu_product)
    assert sums.eq(7).all()


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scaler_skips_and_unscales(case: Case, dtype: torch.dtype) -> None:
    """What a GradScaler leaves to a fused step: `grad_scale` and `found_inf` on the optimizer."""
    start = torch.randn(300, dtype=dtype)
    scaled, plain = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    scaling, ordinary = optimizer_of(case, [scaled]), optimizer_of(case, [plain])
    scaling.grad_scale, scaling.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    for t in range(6):
        grad = torch.randn(300, dtype=dtype)
        plain.grad = grad
        if t in (0, 3):
            before = everything(scaling, scaled)
            scaled.grad = grad.clone()
            scaled.grad[5] = torch.inf
            scaling.found_inf.fill_(1.0)
            scaling.step()
            scaling.found_inf.fill_(0.0)
            if t:
                assert everything(scaling, scaled) == before
            torch.testing.assert_close(scaled, plain, rtol=0, atol=0)
        scaled.grad = grad * 1024
        scaling.step()
        ordinary.step()
        # A factor of 2^10 is exact: not a bit may differ.
        torch.testing.assert_close(scaled, plain, rtol=0, atol=0)
    assert not torch.equal(plain, start)


def everything(optimizer: Any, param: Tensor) -> list[Any]:
    """The parameter, its state and the controller's memory."""
    state = {name: x.tolist() for name, x in saved_states(optimizer).get(param, {}).items()}
    return [param.tolist(), state, str(optimizer._controller.memory.tolist())]


# --- Layouts, through the optimizer --------------------------------------------------------------

NOISY = replace(Control.frozen(), noise_bounds=(SIGMA, SIGMA))
"""σ and all else at rest"""


def optimizer_of(case: Case, params: Any, **options: Any) -> Any:
    return case.optimizer(params, **case.options | {"control": NOISY, "seed": SEED} | options)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "matrix": lambda: torch.randn(9, 7),
    "transposed": lambda: torch.randn(9, 7).t(),
    "strided": lambda: torch.randn(8, 30)[::2, 1::3],
    "odd address": lambda: torch.randn(50)[1:],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "size-one dimensions": lambda: torch.randn(1, 6, 1).transpose(0, 2),
    "permuted": lambda: torch.randn(4, 5, 6).permute(2, 0, 1),
    "complex": lambda: torch.randn(4, 5, dtype=torch.complex64),
    "complex transposed": lambda: torch.randn(4, 5, dtype=torch.complex64).t(),
    "float64": lambda: torch.randn(5, 3, dtype=torch.float64),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as the parameter": torch.randn_like,
    "contiguous": lambda p: torch.randn(p.shape, dtype=p.dtype),
    "other strides": lambda p: torch.randn(p.shape[::-1], dtype=p.dtype).permute(
        tuple(reversed(range(p.dim())))
    ),
    "expanded": lambda p: torch.randn((), dtype=p.dtype).expand(p.shape),
}


def entry_in(optimizer: Any, param: Tensor, index: int) -> ParameterEntry:
    """A parameter as its optimizer has it; before the first step with slots of zeros."""
    group, rule = optimizer.param_groups[0], optimizer._algorithm
    state = saved_states(optimizer).get(param, {})
    names = rule.slots_of(group)
    zeros = torch.zeros_like(param)
    step = state.get("step", torch.tensor(0.0))
    product = as_kept(float(state.get("mu_product", 1.0)), int(step))
    return ParameterEntry(
        param=param,
        grad=zeros,
        slots=tuple(state.get(name, zeros) if name in names else None for name in rule.slots),
        step=step,
        mu_product=product if rule.corrects_bias else None,
        group=0,
        index=index,
        offset=0,
        logical_numel=param.numel(),
        maximize=group["maximize"],
    )


def numbers_in(optimizer: Any) -> dict[str, Any]:
    """What a twin takes for the group's row, and for what is in effect where all is at rest."""
    row = [float(x) for x in optimizer._algorithm.numbers_of(optimizer.param_groups[0])]
    return {"group": row, "effective": row[:2]}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("case", "options"),
    [*((case, {}) for case in CASES.values()), (ADAMW, {"amsgrad": True, "maximize": True})],
    ids=str,
)
def test_layouts(gradient: str, case: Case, options: dict[str, bool]) -> None:
    """Wherever an element lies, its noise is that of its place in the tensor, in C order."""
    params = [torch.nn.Parameter(make()) for make in LAYOUTS.values()]
    optimizer = optimizer_of(case, params, **options)
    twins = [Twin(case, entry_in(optimizer, p, i)) for i, p in enumerate(params)]
    optimizer.state.clear()
    for t in range(1, 6):
        for i, (param, twin) in enumerate(zip(params, twins, strict=True)):
            param.grad = GRADIENTS[gradient](param)
            entry = entry_in(optimizer, param, i)
            twin.take(param.grad, entry, noise=SIGMA, step=t, **numbers_in(optimizer))
            if t == 1:
                optimizer.state.clear()
        optimizer.step()
    for i, (name, param) in enumerate(zip(LAYOUTS, params, strict=True)):
        try:
            twins[i].compare(entry_in(optimizer, param, i), "step_float32")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@each_case
@pytest.mark.parametrize("layout", ["matrix", "transposed", "float64"])
def test_lazily_negated_gradients(case: Case, layout: str) -> None:
    """What autograd makes of an imaginary part: the memory holds the gradient's negative."""
    start, negative = LAYOUTS[layout](), torch.randn_like(LAYOUTS[layout]())
    results = []
    for grad in (torch._neg_view(negative), -negative):
        param = torch.nn.Parameter(start.clone())
        param.grad = grad
        optimizer_of(case, [param]).step()
        results.append(param.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@each_case
def test_a_layout_of_its_own_is_left_as_it_is(case: Case) -> None:
    param = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    strides, address = param.stride(), param.data_ptr()
    optimizer = optimizer_of(case, [param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert (param.stride(), param.data_ptr()) == (strides, address)
    assert optimizer.state[param][case.algorithm.slots[0]].stride() == strides


@each_case
@pytest.mark.parametrize("layout", ["matrix", "transposed"])
def test_autograd_learns_of_the_step(case: Case, layout: str) -> None:
    param = torch.nn.Parameter(LAYOUTS[layout]())
    version = param._version
    param.grad = torch.randn_like(param)
    optimizer_of(case, [param]).step()
    assert param._version > version


# --- Bits ----------------------------------------------------------------------------------------


def first_slot(entry: ParameterEntry) -> Tensor:
    slot = entry.slots[0]
    assert slot is not None
    return slot


@each_case
@each_path
def test_noise_depends_on_its_key_and_on_nothing_else(path: str, case: Case) -> None:
    entry = entry_of(case, (3000,), index=4)

    def slot(sigma: float = SIGMA, index: int = 4, **key: int) -> Tensor:
        copy = replace(copy_of(entry), index=index)
        step(path, case, [copy], state_of(sigma, **key))
        return first_slot(copy)

    noisy, quiet = slot(), slot(0.0)
    torch.testing.assert_close(slot(), noisy, rtol=0, atol=0)
    # A slot's share of σ·RMS(g)·ξ, and no more: its size is known, the share is the gradient's.
    shares = entry.grad.clone()
    entry.grad.add_(1.0)
    share = (slot(0.0) - quiet).mean()
    entry.grad.copy_(shares)
    xi = (noisy - quiet) / (share * SIGMA * entry.grad.square().mean().sqrt())
    assert 0.9 < xi.std() < 1.1
    others = [slot(index=5), slot(seed=SEED + 1), slot(step=STEP + 1)]
    others += [slot(seed=SEED + 2**32), slot(2 * SIGMA), quiet]
    for i, a in enumerate([noisy, *others]):
        for b in others[i:]:
            assert (a != b).float().mean() > 0.9
    # The counter holds the step's lower 32 bits; the seed's upper half is not lost.
    torch.testing.assert_close(slot(step=STEP + 2**32), noisy, rtol=0, atol=0)


def run_bits(
    case: Case, entries: Sequence[ParameterEntry], noise: float = SIGMA, on_parameter: bool = False
) -> tuple[list[ParameterEntry], Tensor, Tensor]:
    copies = [copy_of(entry) for entry in entries]
    count(case, copies)
    sums = torch.zeros(len(copies), 3, dtype=torch.float64)
    squares = squares_of(copies, state_of(noise), True, on_parameter)
    options: dict[str, Any] = {"squares": squares, "sums": sums, "on_parameter": on_parameter}
    compiled_pass(case, copies, state_of(noise), **options)
    return copies, squares, sums


@each_case
@with_and_without_noise
def test_same_bits_for_any_number_of_threads(case: Case, noise: float) -> None:
    entries = mixed_entries(case, [5 * PIECE + 17, 3, 2 * PIECE, 1000, 0, 7])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run_bits(case, entries, noise))
    for copies, squares, sums in results[1:]:
        for a, b in zip(copies, results[0][0], strict=True):
            assert_bits(a, b)
        torch.testing.assert_close(squares, results[0][1], rtol=0, atol=0)
        torch.testing.assert_close(sums, results[0][2], rtol=0, atol=0)


@each_case
@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_same_bits_in_a_bucket_at_odd_addresses(case: Case, shift: int) -> None:
    """Views into one long tensor, as DistributedDataParallel's buckets are."""
    entries = mixed_entries(case, [5, 1000, 1, 3 * BLOCK + 1, 64])
    expected, _, _ = run_bits(case, entries)
    bucket, begin, held = torch.full((40_000,), torch.nan), shift, 0

    def put(tensor: Tensor) -> Tensor:
        nonlocal begin, held
        place = bucket[begin : begin + tensor.numel()]
        begin += tensor.numel() + shift
        held += tensor.numel()
        return place.copy_(tensor)

    views = [with_tensors(entry, put) for entry in entries]
    assert any(view.param.data_ptr() % 16 for view in views)
    count(case, views)
    compiled_pass(case, views, state_of(SIGMA), squares=squares_of(views, state_of(SIGMA), True))
    for a, b in zip(views, expected, strict=True):
        assert_bits(a, b)
    # Nothing beside the views was written: the NaNs around them are still there.
    assert int((~bucket.isnan()).sum()) == held


CUTS = [1, 2, 3, 5, 7, BLOCK - 1, BLOCK, BLOCK + 1, 4093, PIECE - 1, PIECE, PIECE + 2, LONG - 3]
CUT = {str(cut): [cut] for cut in CUTS} | {"all": CUTS, "many": list(range(0, LONG - 2, 3989))}


@pairwise(case=CASES.values(), cut=CUT, on_parameter=[False, True])
def test_same_bits_however_a_tensor_is_cut(case: Case, cut: str, on_parameter: bool) -> None:
    entry = entry_of(case, (LONG,), index=6, kept=max(case.kept))
    [whole], squares, sums = run_bits(case, [entry], on_parameter=on_parameter)
    parted, edges = copy_of(entry), list(neighbours([0, *CUT[cut], LONG]))
    count(case, [parted])
    pieces = [part_of(parted, *edge) for edge in edges]
    partial = torch.zeros(len(pieces), 3, dtype=torch.float64)
    options: dict[str, Any] = {"squares": squares.repeat(len(pieces))}
    options["on_parameter"] = on_parameter
    compiled_pass(case, pieces, state_of(SIGMA), sums=partial, **options)
    assert_bits(parted, whole)
    assert_close(partial.sum(0)[1:], sums[0, 1:], "statistics")
    # The comparison can fail: pieces that do not know their place draw other noise.
    lost = copy_of(entry)
    count(case, [lost])
    strays = [replace(part_of(lost, *edge), offset=0) for edge in edges]
    compiled_pass(case, strays, state_of(SIGMA), **options)
    assert not all(map(torch.equal, written(lost), written(whole)))


BITS = """
import hashlib, torch, pass_cases
out = torch.empty(5003)
torch.ops.adaptiverl.normals_(1, 2, 3, 4, 5, out)
for name, case in pass_cases.CASES.items():
    digest = hashlib.sha256(out.numpy().tobytes())
    for on_parameter, noise in ((False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)):
        torch.manual_seed(0)
        entries = pass_cases.mixed_entries(case, [1, 15, 1000, 4099, 70001, 33, 5003, 17, 64, 129])
        state = pass_cases.state_of(noise)
        squares = pass_cases.squares_of(entries, state, True, on_parameter)
        pass_cases.count(case, entries)
        sums = torch.zeros(len(entries), 3, dtype=torch.float64)
        pass_cases.compiled_pass(
            case, entries, state, squares=squares, sums=sums, on_parameter=on_parameter)
        for t in (squares, sums, *(t for e in entries for t in pass_cases.written(e))):
            digest.update(t.numpy().tobytes())
    print(name, digest.hexdigest())
"""


def digests_in(printed: str) -> dict[str, str]:
    return dict(line.split() for line in printed.splitlines())


def test_same_bits_for_every_instruction_set(tmp_path: Path) -> None:
    with redirect_stdout(io.StringIO()) as said:
        exec(BITS, {})
    digests = {"the best here": digests_in(said.getvalue())}
    for isa in ("baseline", "avx2"):
        # Not in the source tree, which would be imported instead of a wheel.
        run = subprocess.run(
            [sys.executable, "-c", BITS],
            env=os.environ
            | {"ADAPTIVERL_CPU": isa, "OMP_NUM_THREADS": "1"}
            | {"PYTHONPATH": str(Path(__file__).parent)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            # What this machine lacks cannot be compared on it; the baseline runs everywhere.
            assert isa == "avx2", run.stderr
            assert "which this CPU does not have" in run.stderr
            continue
        digests[isa] = digests_in(run.stdout)
    if "avx2" not in digests:
        pytest.skip("this CPU has the baseline's instruction set only: nothing to compare it with")
    assert digests["baseline"].keys() == CASES.keys()
    assert all(digest == digests["baseline"] for digest in digests.values()), digests


# --- Sums ----------------------------------------------------------------------------------------


@each_path
@pairwise(case=CASES.values(), noise=[0.0, SIGMA], gradient_scale=[None, 0.3])
def test_sums_are_the_oracles(
    path: str, case: Case, noise: float, gradient_scale: float | None
) -> None:
    """Where a slot is missing (an optimizer refuses that with the alignment law) u is 0."""
    entries = mixed_entries(case, [*SIZES, PIECE + 1])
    expected = expected_sums(case, entries, gradient_scale)
    sums = torch.full((len(entries), 3), torch.nan, dtype=torch.float64)
    step(path, case, entries, state_of(noise), gradient_scale=gradient_scale, sums=sums)
    for row, wanted in zip(sums, expected, strict=True):
        assert_sums_close(row, wanted)
    assert (expected[:, 0] > 0).any()
    assert (expected[:, 0] < 0).any()


@each_case
@each_path
@with_and_without_noise
def test_asking_for_sums_changes_no_bit(path: str, case: Case, noise: float) -> None:
    entries = mixed_entries(case, [*SIZES, PIECE + 1])
    without = [copy_of(entry) for entry in entries]
    sums = torch.zeros(len(entries), 3, dtype=torch.float64)
    step(path, case, entries, state_of(noise), sums=sums)
    step(path, case, without, state_of(noise))
    for a, b in zip(entries, without, strict=True):
        assert_bits(a, b)


def test_sums_of_squares() -> None:
    entries = mixed_entries(SGD, [*SIZES, *LARGE])
    expected = [float(np.sum(as_reals(e.grad) ** 2)) for e in entries]
    for state, always, done in (
        (state_of(SIGMA), False, True),
        (state_of(0.0), True, True),
        (state_of(0.0), False, False),
    ):
        squares = torch.full((len(entries),), -1.0, dtype=torch.float64)
        torch.ops.adaptiverl.sum_squares_(rows_of(entries), state, squares, always)
        if done:
            assert_close(squares, expected, "statistics")
        else:
            assert squares.eq(-1).all()
    for on_parameter in (False, True):
        of = [e.param if on_parameter else e.grad for e in entries]
        plain = torch.full((len(entries),), -1.0, dtype=torch.float64)
        reference.sum_squares(entries, plain, on_parameter)
        assert_close(plain, [float(np.sum(as_reals(t) ** 2)) for t in of], "statistics")
        assert_close(squares_of(entries, state_of(), True, on_parameter), plain, "statistics")


def test_squares_of_a_complex_gradient() -> None:
    entry = replace(entry_of(SGD, (3,)), grad=torch.tensor([3 + 4j, 1j, 0]))
    out = torch.zeros(1, dtype=torch.float64)
    reference.sum_squares([entry], out)
    assert out.item() == 26.0  # 9 + 16 + 1


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_leaves_the_gradients_and_comes_before_the_noise(
    case: Case, dtype: torch.dtype
) -> None:
    """RMS(g) is that of the clipped gradient; the norm that of the raw one, over all parameters."""
    params = [torch.nn.Parameter(torch.randn(n, dtype=dtype)) for n in (400, 30)]
    grads = [torch.randn(n, dtype=dtype) for n in (400, 30)]
    optimizer = optimizer_of(case, params, max_grad_norm=2.0)
    scale = oracle.clip_coefficient([g.numpy() for g in grads], 2.0)
    assert 0 < scale < 0.2
    twins = []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        param.grad = grad.clone()
        entry = entry_in(optimizer, param, i)
        twins.append(Twin(case, entry))
        options = numbers_in(optimizer) | {"gradient_scale": scale}
        twins[-1].take(grad, entry, noise=SIGMA, step=1, **options)
    optimizer.state.clear()
    optimizer.step()
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        twins[i].compare(entry_in(optimizer, param, i), "step_float32")
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("max_norm", "grad_scale", "expected"),
    [
        (None, None, None),
        (None, 4.0, 0.25),
        (10.0, None, 1.0),  # the norm is 5: nothing to clip
        (2.5, None, 2.5 / (5 + 1e-6)),
        # Scaled by 4 the true norm is 1.25: within 2, and beyond 1.
        (2.0, 4.0, 0.25),
        (1.0, 4.0, 0.25 / (1.25 + 1e-6)),
    ],
)
def test_gradient_scale(
    max_norm: float | None, grad_scale: float | None, expected: float | None
) -> None:
    squares = [torch.tensor([9.0, 0.0]).double(), torch.tensor([16.0]).double()]
    scale = None if grad_scale is None else torch.tensor([grad_scale])
    actual = reference.gradient_scale(squares, max_norm, scale)
    if expected is None:
        assert actual is None
    else:
        assert_close(actual, expected, "law")


# --- The operators -------------------------------------------------------------------------------


def test_opcheck() -> None:
    ops, check = torch.ops.adaptiverl, torch.library.opcheck
    entries = mixed_entries(SGD, [5, 6])
    squares = torch.zeros(2, dtype=torch.float64)
    check(ops.sum_squares_.default, (rows_of(entries), state_of(SIGMA), squares, True))
    # Without rows: what addresses point at is written anew by each of the checks' runs.
    sums = torch.zeros(0, 3, dtype=torch.float64)
    for case in CASES.values():
        for scale in (None, torch.tensor(0.5, dtype=torch.float64)):
            tables = (state_of(SIGMA), case.groups, case.effective, squares[:0], scale, sums)
            check(case.operator.default, (rows_of([]), *tables))
    check(ops.normals_.default, (1, 2, 3, 4, 5, torch.zeros(9)))
    check(ops.philox_words_.default, (1, 2, 3, 4, 5, torch.zeros(9, 4, dtype=torch.int32)))


@each_case
@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(2, 12, dtype=torch.int64), r"rows must be of shape \[tensors, 14\]"),
        (0, torch.zeros(2, 14), "rows must be int64"),
        (1, torch.zeros(5, dtype=torch.float64), "the controller's (block|state) must hold"),
        (2, torch.zeros(2, 5), "groups must be float64"),
        (2, torch.ones(1, 5, dtype=torch.float64), "row 1 names group 1, but there are 1"),
        (3, torch.zeros(1, 2, dtype=torch.float64), "effective must hold at least . records"),
        (4, torch.zeros(1, dtype=torch.float64), "squares must hold at least 2 records"),
        (5, torch.tensor(1.0), "gradient_scale must be float64"),
        (6, torch.zeros(1, 3, dtype=torch.float64), "sums must hold at least 2 records"),
    ],
)
def test_operator_checks_what_it_is_given(
    case: Case, place: int, wrong: Tensor, message: str
) -> None:
    entries = mixed_entries(case, [5, 6])
    before = [copy_of(entry) for entry in entries]
    squares = torch.ones(2, dtype=torch.float64)
    given_: list[Any] = [rows_of(entries), state_of(SIGMA), case.groups, case.effective, squares]
    given_ += [None, None]
    given_[place] = wrong
    with pytest.raises(RuntimeError, match=message):
        case.operator(*given_)
    for a, b in zip(entries, before, strict=True):
        assert_bits(a, b)
