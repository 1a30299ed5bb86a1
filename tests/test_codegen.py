"""The machine code of every kernel variant, compiled for GPUs that are not there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip(
    "triton", reason="the kernels need triton, which torch's CPU wheels do not bring along"
)

from adaptiverl.kernels.chunks import CHUNK
from broken_kernels import break_kernel
from triton import knobs

from adaptiverl.algorithms import ALGORITHMS
from adaptiverl.kernels import codegen, walk

pytestmark = pytest.mark.skipif(
    knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled in this process"
)

EVERYTHING = codegen.Variant("adamw", "float32", "float32", 3).with_everything()
SQUARES = codegen.Variant("sum_squares", "bfloat16", "bfloat16")
HALVES = codegen.Variant("adamw", "bfloat16", "bfloat16", 2).with_everything()
PLAIN = codegen.Variant("adamw", "float32", "float32", 2)
CODED = codegen.Variant("adamw", "bfloat16", "bfloat16", 2, "int8", True).with_everything()
ERRORS = replace(CODED, error_terms=True)
THREE_SLOTS = replace(ERRORS, slots=3, slot_dtype="bfloat16")
LARGEST = [EVERYTHING, THREE_SLOTS]
# Whose instructions are counted: every algorithm with all its slots and everything in it, AdamW
# also with what the algorithms share: noise of the parameter's size, slots of 16 bits. All have the
# loop without noise as well, with more in it than where sums and scale are left out.
SINGLE = [
    codegen.Variant("sum_squares", "float32", "float32"),
    PLAIN,
    *(
        v
        for v in codegen.variants()
        if v.grad_dtype == "float32" and v.sums and v.slots == len(ALGORITHMS[v.kernel].slots)
        if v.kernel == "adamw" or (v.slot_dtype == "float32" and not v.noise_on_parameter)
    ),
]
OTHERS = [HALVES, SQUARES, CODED, ERRORS, replace(ERRORS, slot_dtype="float32"), THREE_SLOTS]


@pytest.mark.parametrize(
    ("architecture", "variants"),
    [
        (codegen.ARCHITECTURES[0], LARGEST),
        (90, [*SINGLE, *OTHERS]),
        (codegen.ARCHITECTURES[-1], LARGEST),
    ],
    ids=["oldest", "90", "newest"],
)
def test_variants_are_within_their_budgets(
    architecture: int, variants: list[codegen.Variant]
) -> None:
    """`make codegen` shows it of every variant on every architecture."""
    reports = [codegen.inspect(variant, architecture) for variant in variants]
    print(codegen.table(reports))
    broken = [line for report in reports for line in report.violations()]
    assert not broken, "\n".join(broken)


def test_every_option_is_compiled() -> None:
    found = codegen.variants()
    assert {v.grad_dtype for v in found if v.kernel == "sum_squares"} == set(codegen.BYTES)
    for algorithm, rule in ALGORITHMS.items():
        steps = [v for v in found if v.kernel == algorithm]
        assert max(v.slots for v in steps) == len(rule.slots)
        for option in (
            "noise",
            "sums",
            "gradient_scale",
            "noise_on_parameter",
            "stochastic_rounding",
            "error_terms",
        ):
            assert {getattr(v, option) for v in steps} == {False, True}
        assert {v.slot_dtype for v in steps} == {"float32", "bfloat16", "int8"}
    pairs = {(v.param_dtype, v.grad_dtype) for v in found if v.kernel == "adamw"}
    assert pairs == set(codegen.DTYPE_PAIRS)
    assert {*LARGEST, *SINGLE, *OTHERS} <= {*found}


@pytest.mark.parametrize(
    ("file", "old", "new", "variant", "said"),
    [
        (
            "walk.py",
            "pointer = tl.multiple_of(pointer, 16)",
            "pointer = pointer",
            PLAIN,
            "0 loops with wide loads and stores, expected 1",
        ),
        (
            "statistics.py",
            "here = tl.multiple_of(here, 16)",
            "here = here",
            codegen.Variant("sum_squares", "float32", "float32"),
            "0 loops with wide loads and stores, expected 1",
        ),
        (
            "philox.py",
            "ROUNDS: tl.constexpr = 10",
            "ROUNDS: tl.constexpr = 12",
            EVERYTHING,
            "budget 55",
        ),
        (
            "adamw.py",
            "denominator = _scaled_root(v_hat) *",
            "denominator = tl.exp2(tl.log2(tl.sqrt_rn(v_hat) * ROOT_SCALE)) *",
            PLAIN,
            "budget 28",
        ),
        (
            "block_codes.py",
            "_store_of_blocks(of_each, half, opens_block, NEIGHBOURS)",
            "tl.store(of_each, half.to(tl.int16).to(tl.bfloat16, bitcast=True), opens_block)",
            codegen.Variant("sgd", "float32", "float32", 1, "int8"),
            "on shared memory or barriers, expected none",
        ),
        ("step.py", "return 88 if", "return 40 if True or", EVERYTHING, "of local memory"),
        ("step.py", "return 88 if", "return 96 if True or", EVERYTHING, "budget 64"),
    ],
    ids=["hint", "statistics' hint", "rounds", "root", "scales", "spill", "registers"],
)
def test_a_regression_is_noticed(
    tmp_path: Path,
    file: str,
    old: str,
    new: str,
    variant: codegen.Variant,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = break_kernel(monkeypatch, tmp_path, file, old, new)["codegen"]
    report = broken.inspect(broken.Variant(**vars(variant)), 90)
    assert said in "\n".join(report.violations())


def test_a_wrong_width_is_noticed() -> None:
    loop = codegen.WideLoop(noise=False, instructions=20, loads=(32, 128), stores=(64,), shared=2)
    report = codegen.Report(PLAIN, 100, 72, 0, (loop,))
    said = "\n".join(report.violations())
    assert "loads of 32, 128 bits, expected 128" in said
    assert "stores of 64 bits, expected 128" in said
    assert "2 instructions on shared memory or barriers" in said


@pytest.fixture(scope="module")
def everything() -> Any:
    return codegen.compile_kernel(EVERYTHING, 90).asm


def test_no_index_overflows_beyond_two_to_the_thirty_first_elements(everything: Any) -> None:
    ir = everything["ttir"]
    constants = dict(re.findall(r"(%\w+) = arith\.constant (-?\d+) : i(?:32|64)", ir))
    narrow = {
        constants.get(right) for right in re.findall(r"arith\.muli %\w+, (%\w+)(?: .*)? : i32", ir)
    }
    # In 32 bits only what stays inside a chunk is multiplied: a block's number by its size.
    block = walk.block_size([torch.float32])
    inside = {block, walk.NARROW.value, block // walk.NARROW.value}
    assert narrow == {str(size) for size in inside}
    wide = re.findall(r"arith\.muli %\w+, (%\w+)(?: .*)? : i64", ir)
    assert str(CHUNK) in {constants.get(right) for right in wide}
    # The program's number is widened before anything is done with it.
    programs = re.findall(r"(%\w+) = tt\.get_program_id x", ir)
    assert programs
    for program in programs:
        uses = [line for line in ir.splitlines() if re.search(rf"{program}\b", line)]
        assert all("get_program_id" in line or "arith.extsi" in line for line in uses), uses


def test_halves_are_rounded_to_nearest() -> None:
    for dtype, conversion in (("bfloat16", "cvt.rn.bf16"), ("float16", "cvt.rn.f16")):
        asm = codegen.compile_kernel(codegen.Variant("adamw", dtype, dtype, 2), 90).asm
        assert conversion in asm["ptx"]
        assert not re.search(r"cvt\.r[zmp]\.(bf16|f16)", asm["ptx"])


def test_nothing_that_changes_is_an_argument(everything: Any) -> None:
    parameters = re.findall(r"\.param (\S+) (?:\S+ )*\S*_param_\d+", everything["ptx"])
    assert parameters
    assert set(parameters) <= {".u64", ".b64"}
    assert "atom.global.gpu.acq_rel.add.u32" in everything["ptx"].replace(".relaxed", "")
    assert not re.search(r"(atom|red)\.\S*\.f(32|64)", everything["ptx"])
