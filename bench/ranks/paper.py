"""``python -m bench.ranks.paper``: what is sent per step, by formula; bench/README.md explains.

Nothing here was measured. The latencies are assumptions, stated so that they can be replaced.
"""

from __future__ import annotations

import math

NODE, LEVEL = 15e-6, 8e-6
"""Seconds of a tiny all-reduce inside a node of eight, and of each level of a tree over nodes, one
way. Assumed."""
FLOPS = 4e14
"""Floating-point operations per second and GPU that training gets. Assumed."""
RANKS = (8, 512, 16384)


def llama(layers: int, width: int, hidden: int, kv: int, vocabulary: int) -> tuple[int, int]:
    """A decoder's numbers and tensors: nine tensors a layer, and three."""
    layer = 2 * width * width + 2 * width * kv + 3 * width * hidden + 2 * width
    return layers * layer + 2 * vocabulary * width + width, 9 * layers + 3


MODELS = {
    "7B": (*llama(32, 4096, 11008, 4096, 32000), 4e6),
    "405B": (*llama(126, 16384, 53248, 1024, 128256), 16e6),
}
"""Parameters, tensors, and the tokens of a global batch"""


def row(name: str, ranks: int) -> str:
    """A line of the table: bytes and seconds of one rank's step.

    A rank puts in four float64 observed, and a float64 per sharded tensor. DDP all-reduces float32
    gradients; FSDP2 gathers bfloat16 parameters twice and reduce-scatters float32 gradients: both
    send 8 bytes per parameter, in rings. Compute is six operations per parameter and token.
    """
    parameters, tensors, tokens = MODELS[name]
    sent = 8 * parameters * ((ranks - 1) / ranks)
    once = NODE + 2 * math.log2(max(1, ranks // 8)) * LEVEL
    step = 6 * parameters * tokens / (ranks * FLOPS)
    return (
        f"| {name} | {ranks:,} | 32 B | {32 + 8 * tensors:,} B | {sent / 1e9:,.0f} GB | "
        f"{1e6 * once:.0f} µs | {2e6 * once:.0f} µs | {step:,.3g} s | {2 * once / step:.1e} |"
    )


if __name__ == "__main__":
    for name, (parameters, tensors, _) in MODELS.items():
        print(f"{name}: {parameters:,} parameters in {tensors:,} tensors")
    print("\n".join(row(name, ranks) for name in MODELS for ranks in RANKS))
