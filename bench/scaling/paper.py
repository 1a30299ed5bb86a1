"""``python -m bench.scaling.paper``: what is sent per step, by formula; bench/README.md explains.

Nothing here was measured. The latencies are assumptions, stated so that they can be replaced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NODE, LEVEL = 15e-6, 8e-6
"""Seconds of a tiny all-reduce inside a node of eight, and of each level of a tree over nodes, one
way. Assumed."""
FLOPS = 4e14
"""Floating-point operations per second and GPU that training gets. Assumed."""


@dataclass(frozen=True)
class Model:
    """A decoder of Llama's kind.

    Attributes:
        name: for the table.
        parameters: of the model.
        tensors: parameters as an optimizer counts them.
        tokens: of a global batch.
    """

    name: str
    parameters: int
    tensors: int
    tokens: float


def llama(
    name: str, layers: int, width: int, hidden: int, kv: int, vocabulary: int, tokens: float
) -> Model:
    """Count the model's numbers and tensors: nine tensors a layer, and three."""
    layer = 2 * width * width + 2 * width * kv + 3 * width * hidden + 2 * width
    return Model(name, layers * layer + 2 * vocabulary * width + width, 9 * layers + 3, tokens)


MODELS = (
    llama("7B", 32, 4096, 11008, 4096, 32000, 4e6),
    llama("405B", 126, 16384, 53248, 1024, 128256, 16e6),
)


def payload(model: Model, squares: bool) -> int:
    """Bytes that one rank puts in: four float64 observed, and a float64 per sharded tensor."""
    return 32 + (8 * model.tensors if squares else 0)


def training_bytes(model: Model, ranks: int) -> float:
    """Bytes that one rank sends for the model itself, in rings.

    DDP all-reduces float32 gradients; FSDP2 gathers bfloat16 parameters twice and
    reduce-scatters float32 gradients.
    """
    share = (ranks - 1) / ranks
    return 8 * model.parameters * share


def latency(ranks: int) -> float:
    """Seconds of one tiny all-reduce: within the node, then up and down a tree of nodes."""
    nodes = max(1, ranks // 8)
    return NODE + 2 * math.log2(nodes) * LEVEL


def step_seconds(model: Model, ranks: int) -> float:
    """Compute alone, six operations per parameter and token, nothing waited for."""
    return 6 * model.parameters * model.tokens / (ranks * FLOPS)


def rows() -> list[str]:
    """Return the table's lines."""
    lines = []
    for model in MODELS:
        for ranks in (8, 512, 16384):
            one, two = latency(ranks), 2 * latency(ranks)
            step = step_seconds(model, ranks)
            lines.append(
                f"| {model.name} | {ranks:,} | {payload(model, False)} B | "
                f"{payload(model, True):,} B | {training_bytes(model, ranks) / 1e9:,.0f} GB | "
                f"{1e6 * one:.0f} µs | {1e6 * two:.0f} µs | {step:,.3g} s | {two / step:.1e} |"
            )
    return lines


if __name__ == "__main__":
    for model in MODELS:
        print(f"{model.name}: {model.parameters:,} parameters in {model.tensors:,} tensors")
    print("\n".join(rows()))
