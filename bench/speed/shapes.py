"""The sets of parameters that a step is timed on, named by how many numbers in how many tensors."""

import math
from dataclasses import dataclass
from itertools import pairwise

Shapes = list[tuple[int, ...]]


def gpt2(vocabulary: int, context: int, width: int, layers: int) -> Shapes:
    """GPT-2's parameters (Radford et al., 2019); the output layer shares the token embedding."""
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    layer = [*norm, *attention, *norm, *mlp]
    return [(vocabulary, width), (context, width), *layer * layers, *norm]


def mlp(*widths: int) -> Shapes:
    return [shape for inside, out in pairwise(widths) for shape in ((out, inside), (out,))]


# "small" shows that everything runs, not how fast.
SHAPES: dict[str, Shapes] = {
    "gpt2-small": gpt2(vocabulary=50257, context=1024, width=768, layers=12),
    "gpt-10M": gpt2(vocabulary=8192, context=256, width=384, layers=4),
    "1B": gpt2(vocabulary=50257, context=1024, width=1792, layers=24),
    "1B-in-1": [(10**9,)],
    "small": gpt2(vocabulary=257, context=32, width=48, layers=2),
    "9k-in-8": mlp(8, 64, 64, 64, 4),
    "1M-in-160": [(6250,)] * 160,
    "1M-in-1000": [(1000,)] * 1000,
}
SMALL_NETS = ("9k-in-8", "1M-in-160", "1M-in-1000")
"""A policy of reinforcement learning, and models whose step costs by the tensor"""

ON_A_CARD = ("gpt2-small", "1M-in-1000", "1B", "1B-in-1")
"""In the order in which they are measured: should the time run out, the first ones matter most."""


@dataclass(frozen=True)
class Workload:
    shapes: str  # key of SHAPES
    dtype: str = "float32"  # by torch's name

    def __post_init__(self) -> None:
        if self.shapes not in SHAPES:
            raise ValueError(f"shapes must be one of {', '.join(SHAPES)}, got {self.shapes!r}")

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in SHAPES[self.shapes])

    @property
    def tensors(self) -> int:
        return len(SHAPES[self.shapes])

    @property
    def width(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.dtype]

    @property
    def gibibytes(self) -> float:
        moments = 2 * 4 + 2 * 2
        return self.elements * (3 * self.width + moments + 4 * self.width) / 2**30

    def __str__(self) -> str:
        return f"{self.shapes}, {self.dtype}"


CARD_WORKLOADS = tuple(
    Workload(name, dtype) for dtype in ("float32", "bfloat16") for name in ON_A_CARD
)
