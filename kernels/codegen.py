"""The machine-code check: every kernel variant compiled for an architecture, and the result read.

Needs no GPU: Triton's compiler, cuobjdump and nvdisasm all run on the host. ``python -m
adaptiverl.kernels.codegen`` prints the table, and ends with status 1 if a variant is over budget.

What is looked at is the wide loop, the one that full blocks of aligned tensors go through. A count
is static: instructions of the loop's body over the elements that one pass of it stores (or, in the
statistics, loads), so unrolling does not change its meaning.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from adaptiverl.kernels import statistics, step, walk
from adaptiverl.kernels.chunks import CHUNK
from adaptiverl.kernels.codecs import CODECS
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (75, 80, 90, 100)
REGISTERS, REGISTERS_ROUNDED, REGISTERS_WITH_ERRORS = 64, 88, 96
"""Most per thread, on sm_90; of three slots that are rounded by chance or beside error terms, and
of slots in blocks; of the latter beside error terms"""
INSTRUCTIONS, INSTRUCTIONS_WITH_NOISE = 28.0, 55.0
"""Most per element, float32 on sm_90"""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SLOT_BYTES = BYTES | {"int8": 1}  # of blocks, whose scales are not counted
DTYPE_PAIRS = (
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
)

OPTIONS = (
    "stochastic_rounding",
    "error_terms",
    "noise",
    "sums",
    "gradient_scale",
    "noise_on_parameter",
)
"""What a `Variant` has or has not"""

_POINTERS = {
    "rows": "*i64",
    "chunks": "*i32",
    "state": "*fp64",
    "groups": "*fp64",
    "effective": "*fp64",
    "squares": "*fp64",
    "gradient_scale": "*fp64",
    "sums": "*fp64",
    "partials": "*fp32",
    "finished": "*i32",
}


@dataclass(frozen=True)
class Variant:
    """One specialisation of one kernel.

    Attributes:
        kernel: ``"sum_squares"``, or the algorithm whose step it is.
        param_dtype: Of the parameters; the statistics do not read them.
        grad_dtype: Of the gradients.
        slots: How many of the algorithm's slots are kept.
        slot_dtype: Of the slots.
        stochastic_rounding: Of parameters of 16 bits.
        noise: Whether `squares` is passed, so that noise can be drawn.
        sums: Whether `sums` is passed.
        gradient_scale: Whether `gradient_scale` is passed.
        noise_on_parameter: As in `step.step`.
        error_terms: Beside the parameters.
    """

    kernel: str
    param_dtype: str
    grad_dtype: str
    slots: int = 0
    slot_dtype: str = "float32"
    stochastic_rounding: bool = False
    noise: bool = False
    sums: bool = False
    gradient_scale: bool = False
    noise_on_parameter: bool = False
    error_terms: bool = False

    def __str__(self) -> str:
        words = [self.kernel, f"{self.param_dtype}/{self.grad_dtype}"]
        if self.kernel != "sum_squares":
            kept = "" if self.slot_dtype == "float32" else f" {self.slot_dtype}"
            words.append(f"{self.slots}{kept} slots")
        return " ".join(words + [option for option in OPTIONS if getattr(self, option)])

    def with_everything(self) -> Variant:
        """The same with noise, sums and a gradient scale."""
        return replace(self, noise=True, sums=True, gradient_scale=True)

    @property
    def is_coded(self) -> bool:
        """Slots are kept in blocks of codes."""
        return self.slot_dtype == "int8" and self.slots > 0

    @property
    def widths(self) -> set[int]:
        """Bytes of an element of everything that it walks."""
        kept = [self.slot_dtype] * (self.slots > 0) + ["int8"] * self.error_terms
        return {SLOT_BYTES[dtype] for dtype in (self.param_dtype, self.grad_dtype, *kept)}


@dataclass(frozen=True)
class WideLoop:
    """The loop over full blocks.

    Attributes:
        noise: Whether it draws noise.
        instructions: SASS instructions per element.
        loads: Widths of its loads from global memory in bits, ascending.
        stores: Widths of its stores, likewise.
        shared: How many instructions touch shared memory or wait for other threads.
    """

    noise: bool
    instructions: float
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class Report:
    """What a variant was compiled to.

    Attributes:
        variant: Which.
        architecture: 90 for sm_90.
        registers: Per thread.
        local_bytes: Local memory per thread; spilled registers are there.
        loops: The wide loops: one, or one without noise and one with.
    """

    variant: Variant
    architecture: int
    registers: int
    local_bytes: int
    loops: tuple[WideLoop, ...]

    def violations(self) -> Iterator[str]:
        """What breaks a promise, in words."""
        if self.local_bytes:
            yield f"{self}: {self.local_bytes} bytes of local memory, expected none"
        draws = self.variant.slot_dtype != "float32" or self.variant.error_terms
        rounded = self.variant.slots == step.SLOTS and draws
        budget = REGISTERS_ROUNDED if rounded or self.variant.is_coded else REGISTERS
        if self.variant.is_coded and self.variant.error_terms:
            budget = REGISTERS_WITH_ERRORS
        if self.architecture == 90 and self.registers > budget:
            yield f"{self}: {self.registers} registers, budget {budget}"
        expected = 1 + (self.variant.noise and self.variant.kernel != "sum_squares")
        if len(self.loops) != expected:
            yield f"{self}: {len(self.loops)} loops with wide loads and stores, expected {expected}"
        for loop in self.loops:
            yield from self._loop_violations(loop)

    def _loop_violations(self, loop: WideLoop) -> Iterator[str]:
        budget = INSTRUCTIONS_WITH_NOISE if loop.noise else INSTRUCTIONS
        variant = self.variant
        single = variant.widths == {4}
        if self.architecture == 90 and single and loop.instructions > budget:
            yield f"{self}: {loop.instructions:.1f} instructions per element, budget {budget:.0f}"
        # Beside float32 a thread holds four elements of 16 bits or 8, beside bfloat16 eight of 8.
        alike = len(variant.widths) == 1 or variant.kernel == "sum_squares"
        neighbours = 8 if max(variant.widths) == 2 else 4
        loads = {128} if alike else {8 * width * neighbours for width in variant.widths}
        if not set(loop.loads) <= loads:
            yield f"{self}: loads of {_bits(loop.loads)} bits, expected {_bits(loads)}"
        written = {BYTES[variant.param_dtype]}
        if variant.slots:
            written.add(SLOT_BYTES[variant.slot_dtype])
        if variant.error_terms:
            written.add(1)
        stores = {128} if alike else {8 * width * neighbours for width in written}
        if not set(loop.stores) <= stores:
            yield f"{self}: stores of {_bits(loop.stores)} bits, expected {_bits(stores)}"
        if loop.shared:
            yield f"{self}: {loop.shared} instructions on shared memory or barriers, expected none"

    def __str__(self) -> str:
        return f"sm_{self.architecture} {self.variant}"


SLOTS = {"adamw": (2, 3), "sgd": (0, 1), "lion": (1,)}
"""How many of its slots each algorithm may keep"""


def variants() -> list[Variant]:
    """The statistics; every algorithm plain and with everything, AdamW for every pair of dtypes."""
    found = [Variant("sum_squares", dtype, dtype) for dtype in BYTES]
    for slots in SLOTS["adamw"]:
        for param, grad in DTYPE_PAIRS:
            plain = Variant("adamw", param, grad, slots)
            found += [plain, plain.with_everything()]
        found.append(Variant("adamw", "float32", "float32", slots, noise=True))
    for algorithm, choices in SLOTS.items():
        single = [Variant(algorithm, "float32", "float32", slots) for slots in choices]
        half = Variant(algorithm, "bfloat16", "bfloat16", choices[-1])
        found += [*single, *(v.with_everything() for v in (*single, half))]
        found.append(replace(single[-1].with_everything(), noise_on_parameter=True))
    for algorithm, choices in SLOTS.items():
        for param, grad in (("float32", "float32"), ("bfloat16", "bfloat16")):
            kept = Variant(algorithm, param, grad, choices[-1], "bfloat16", param == "bfloat16")
            found += [kept, kept.with_everything()]
            if choices[-1] < step.SLOTS:
                found += [replace(v, slot_dtype="int8") for v in (kept, kept.with_everything())]
    for dtype in ("float32", "bfloat16"):
        coded = Variant("adamw", dtype, dtype, 2, "int8", stochastic_rounding=dtype == "bfloat16")
        found += [coded, coded.with_everything()]
    half = Variant("adamw", "bfloat16", "bfloat16", 2, "bfloat16", stochastic_rounding=True)
    found += [half, half.with_everything()]
    found += [replace(half, slot_dtype="float32"), replace(half, slot_dtype="float32", noise=True)]
    for slot_dtype in ("float32", "bfloat16", "int8"):
        for algorithm, slots in (("adamw", 2), ("sgd", 1), ("lion", 1)):
            kept = Variant(algorithm, "bfloat16", "bfloat16", slots, slot_dtype)
            kept = replace(kept, stochastic_rounding=True, error_terms=True)
            found += [kept, kept.with_everything()]
    for slot_dtype in ("float32", "bfloat16"):  # amsgrad
        kept = Variant("adamw", "bfloat16", "bfloat16", step.SLOTS, slot_dtype)
        kept = replace(kept, stochastic_rounding=True, error_terms=True)
        found += [kept, kept.with_everything()]
    found.append(replace(kept.with_everything(), noise_on_parameter=True))
    float16 = Variant("adamw", "float16", "float16", 2, stochastic_rounding=True)
    return list(dict.fromkeys([*found, float16, float16.with_everything()]))


def compile_kernel(variant: Variant, architecture: int) -> Any:
    """Triton's compiled kernel, with its intermediate stages in ``.asm``."""
    param_dtype, grad_dtype = (getattr(torch, d) for d in (variant.param_dtype, variant.grad_dtype))
    constants: dict[str, Any]
    if variant.kernel == "sum_squares":
        kernel = statistics.sum_squares_kernel
        constants = {"GRAD_CODEC": CODECS[grad_dtype], "ALWAYS": False, "OF_PARAMETERS": False}
        constants |= {"CHUNK": CHUNK, "BLOCK": statistics.BLOCK}
        options: dict[str, Any] = {"num_warps": statistics.WARPS}
    else:
        kernel = step.step_kernel
        slots = [getattr(torch, variant.slot_dtype)] * variant.slots
        if variant.slot_dtype == "int8":
            slots[1:] = [torch.uint8] * (variant.slots - 1)  # averages of squares
        constants = step.constants(
            variant.kernel,
            param_dtype,
            grad_dtype,
            slots,
            variant.noise_on_parameter,
            variant.stochastic_rounding,
            variant.error_terms,
        )
        passed = {
            "squares": variant.noise,
            "sums": variant.sums,
            "gradient_scale": variant.gradient_scale,
        }
        constants |= {name: None for name, given in passed.items() if not given}
        registers = step.register_limit(
            architecture,
            variant.slots,
            variant.noise and variant.sums,
            bool(constants["ROUND"]),
            variant.is_coded,
            variant.error_terms,
        )
        options = {"num_warps": walk.WARPS, "maxnreg": registers}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else _POINTERS[name] for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def inspect(variant: Variant, architecture: int) -> Report:
    """Compile a variant and read its machine code.

    Raises:
        subprocess.CalledProcessError: If one of Triton's tools fails.
    """
    cubin = compile_kernel(variant, architecture).asm["cubin"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path)
        sass = _run(knobs.nvidia.nvdisasm.path, "-c", path)
    # Spills are counted under STACK; LOCAL is what a kernel asks for itself.
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    local_bytes = used["STACK"] + used["LOCAL"]
    return Report(variant, architecture, used["REG"], local_bytes, _wide_loops(variant, sass))


def _run(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _wide_loops(variant: Variant, sass: str) -> tuple[WideLoop, ...]:
    loops = [_measure(variant, body) for body in innermost_loops(sass)]
    memory = [(loop, elements) for loop, elements in loops if loop and _is_wide(variant, loop)]
    widest: dict[bool, tuple[WideLoop, float]] = {}
    for loop, elements in memory:
        # Where the compiler unrolled, the remainder has a loop as well; the longer pass counts.
        if loop.noise not in widest or elements > widest[loop.noise][1]:
            widest[loop.noise] = (loop, elements)
    return tuple(widest[noise][0] for noise in sorted(widest))


def _is_wide(variant: Variant, loop: WideLoop) -> bool:
    accesses = loop.loads if variant.kernel == "sum_squares" else loop.stores
    return max(accesses, default=0) >= 64


def innermost_loops(sass: str) -> list[list[str]]:
    """The instructions of every loop that has no loop inside, from its label to its branch back."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(found[1])
    spans = []
    for end, instruction in enumerate(instructions):
        back = re.match(r"BRA\b.*?(\.L_\w+)", instruction)
        if back and labels[back[1]] <= end:
            spans.append((labels[back[1]], end))
    return [
        instructions[start : end + 1]
        for start, end in spans
        if not any((s, e) != (start, end) and start <= s and e <= end for s, e in spans)
    ]


def _measure(variant: Variant, body: list[str]) -> tuple[WideLoop | None, float]:
    loads = [_width(line) for line in body if line.startswith(("LDG", "LD."))]
    stores = [_width(line) for line in body if line.startswith(("STG", "ST."))]
    waits = ("LDS", "STS", "BAR") if variant.is_coded else ("LDS", "STS", "BAR", "SHFL")
    if variant.is_coded:
        # Besides, the scales of blocks, whose largest numbers a warp's threads find together.
        loads, stores = ([width for width in widths if width > 16] for widths in (loads, stores))
    strong = any("STRONG" in line for line in body)
    if variant.kernel == "sum_squares":
        elements = sum(loads) / 8 / BYTES[variant.grad_dtype]
    else:
        per_element = BYTES[variant.param_dtype] + SLOT_BYTES[variant.slot_dtype] * variant.slots
        per_element += variant.error_terms
        elements = sum(stores) / 8 / per_element
    if elements == 0 or strong:
        return None, 0.0
    # Only Box and Muller take a logarithm.
    noise = any(line.startswith("MUFU.LG2") for line in body)
    shared = sum(line.startswith(waits) for line in body)
    widths = tuple(sorted(set(loads))), tuple(sorted(set(stores)))
    return WideLoop(noise, len(body) / elements, *widths, shared), elements


def _width(instruction: str) -> int:
    """Bits of one access."""
    opcode = instruction.split()[0]
    if size := re.search(r"\.(64|128|256)\b", opcode):
        return int(size[1])
    if re.search(r"\.[US]16\b", opcode):
        return 16
    return 8 if re.search(r"\.[US]8\b", opcode) else 32


def _bits(widths: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(widths))) or "no"


def table(reports: Iterable[Report]) -> str:
    """The reports as lines of text, one per wide loop."""
    lines = [
        f"{'arch':<8}{'variant':<80}{'noise':<6}{'instr/el':>9}{'regs':>6}{'local':>7}  "
        f"{'loads':<13}stores"
    ]
    for report in reports:
        for loop in report.loops:
            lines.append(
                f"sm_{report.architecture:<5}{report.variant!s:<80}"
                f"{'yes' if loop.noise else 'no':<6}"
                f"{loop.instructions:>9.1f}{report.registers:>6}{report.local_bytes:>7}  "
                f"{_bits(loop.loads):<13}{_bits(loop.stores)}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and every broken promise; 1 if there is one."""
    parser = argparse.ArgumentParser(
        description="Compile every kernel variant and read its machine code."
    )
    parser.add_argument(
        "--architectures", type=int, nargs="+", default=list(ARCHITECTURES), metavar="SM"
    )
    chosen = parser.parse_args(arguments).architectures
    every = [(variant, architecture) for architecture in chosen for variant in variants()]
    with ProcessPoolExecutor() as pool:
        reports = list(pool.map(inspect, *zip(*every, strict=True)))
    print(table(reports))
    broken = [line for report in reports for line in report.violations()]
    print("\n".join(broken) if broken else "Every variant is within its budget.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
