"""What is measured: the sets of parameters, the contenders, the figures to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.step.shapes import GPT2, MODELS

DTYPES = ("float32", "bfloat16")
BYTES = {"float32": 4, "bfloat16": 2}

FUSED, FOREACH = "torch fused", "torch foreach"
CLIPPED, STOCK = "torch clip + fused", "torch clip + noise + fused"
PLAIN, NOISE, CLIP, ALL = "ours plain", "ours noise", "ours clip", "ours all"
SEARCH = "ours find_lr"
"""The law that reads the sweep's sums, which a third launch of the controller gathers"""
OURS = (PLAIN, NOISE, CLIP, ALL, SEARCH)
CONTENDERS = (FUSED, FOREACH, CLIPPED, STOCK, *OURS)

GPT2_SMALL, BILLION, SMALL, ONE = "gpt2-small", "1B", "1000 of 1000", "one of 10^9"
SHAPES: dict[str, list[tuple[int, ...]]] = {
    GPT2_SMALL: MODELS["gpt2-small"].shapes,
    SMALL: [(1000,)] * 1000,
    BILLION: GPT2(vocabulary=50257, context=1024, width=1792, layers=24).shapes,
    ONE: [(10**9,)],
}
"""In the order in which they are measured: should the time run out, the first ones matter most."""


@dataclass(frozen=True)
class Workload:
    """Parameters of these shapes and this dtype, with gradients of the same.

    Attributes:
        shapes: Key of `SHAPES`, or of what a test puts there.
        dtype: By torch's name.
    """

    shapes: str
    dtype: str

    @property
    def elements(self) -> int:
        """Numbers in all parameters together."""
        return sum(math.prod(shape) for shape in SHAPES[self.shapes])

    @property
    def tensors(self) -> int:
        """How many parameters."""
        return len(SHAPES[self.shapes])

    @property
    def gibibytes(self) -> float:
        """Memory that its contenders need, the largest of their temporaries included."""
        width = BYTES[self.dtype]
        moments = 2 * 4 + (2 * width if width < 4 else 0)
        return self.elements * (3 * width + moments + 4 * width) / 2**30

    def bytes_moved(self, contender: str) -> int | None:
        """What a step has to read and write at least; None where one pass is not the aim."""
        width = BYTES[self.dtype]
        state = {FUSED: 4 * width}.get(contender, 4 * 4)
        once = self.elements * (3 * width + state)
        again = self.elements * width if contender in (NOISE, CLIP, ALL) else 0
        return once + again if contender in (FUSED, *OURS) else None

    def __str__(self) -> str:
        return f"{self.shapes}, {self.dtype}"


def workloads() -> list[Workload]:
    """All of them, float32 first."""
    return [Workload(shapes, dtype) for dtype in DTYPES for shapes in SHAPES]


@dataclass(frozen=True)
class Ratio:
    """A figure: how many times faster a contender is than another, in one round.

    Attributes:
        name: What the table calls it.
        contender: Whose time divides.
        rival: Whose time is divided.
        workloads: In which of them.
        target: The least that will do; for `host`, the most that one of ours may take of a rival's.
        host: Of the host's time, and as a share: ours over the rival's.
    """

    name: str
    contender: str
    rival: str
    workloads: tuple[Workload, ...]
    target: float
    host: bool = False


LARGE = (Workload(GPT2_SMALL, "float32"), Workload(BILLION, "float32"))
HALF = (Workload(GPT2_SMALL, "bfloat16"), Workload(BILLION, "bfloat16"))
RATIOS = (
    Ratio("plain, against torch fused", PLAIN, FUSED, LARGE, 1.0),
    Ratio("noise, against torch fused without", NOISE, FUSED, LARGE, 0.95),
    Ratio("noise + clip, against the stock composition", ALL, STOCK, LARGE, 1.7),
    Ratio("clip only, against clip_grad_norm_ + torch fused", CLIP, CLIPPED, LARGE, 1.3),
    Ratio("bfloat16 parameters and gradients, against torch fused", PLAIN, FUSED, HALF, 1.3),
    Ratio(
        "1,000 small tensors, host time over torch fused's",
        PLAIN,
        FUSED,
        (Workload(SMALL, "float32"),),
        0.3,
        host=True,
    ),
)
BANDWIDTH_TARGET = 0.95
CONTROLLER_TARGET = 0.03
"""The most that observe, advance and gather may take of the step's time on the device"""
LAUNCHES_TARGET = 4
CHUNK_BYTES, FIXED_BYTES = 8, 2**20
SANITIZERS = ("memcheck", "racecheck")
"""Tools of compute-sanitizer that go over a small case"""
NO_WAIT = (
    "no_step_waits_for_the_device",
    "the_profiler_sees_no_wait",
    "a_captured_step_replays_bit_for_bit",
)
"""Checks that together show that no step waits"""
SAME_BITS = ("the_same_seed_gives_the_same_bits",)
