"""Which map and block keep moments best (method.md#blocks): ``python -m bench.studies.blocks``.

The moments of AdamW after some steps of trainings, every tensor of at least 512 elements, are put
through each map with exact scales, to nearest. The error is that of the update m/(√v + ε) by one of
the two moments, over the update's size.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.tasks import TASKS

EPS = 1e-8
BLOCKS = (32, 64, 128, 256)
Levels = Tensor
"""What the codes stand for, from 0 to 1, float64 and ascending"""


def power(bits: int, exponent: int) -> Levels:
    """Equal steps of a root."""
    return torch.linspace(0, 1, 2**bits, dtype=torch.float64) ** exponent


def segments(bits: int, of_segment: int) -> Levels:
    """Steps that double from each segment to the next."""
    fraction = bits - of_segment
    codes = torch.arange(2**bits, dtype=torch.float64)
    segment = (codes / 2**fraction).floor()
    values = (1 + codes / 2**fraction - segment) * 2.0**segment - 1
    return values / values[-1]


def softsign(bits: int) -> Levels:
    """x/(2 - x) of equal steps."""
    codes = power(bits, 1)
    return codes / (2 - codes)


FIRST = {
    "linear": power(7, 1),
    "root": power(7, 2),
    "cube root": power(7, 3),
    "softsign": softsign(7),
    "2 bits of segment": segments(7, 2),
    "3 bits": segments(7, 3),
    "4 bits": segments(7, 4),
}
SECOND = {
    "linear": power(8, 1),
    "root": power(8, 2),
    "fourth root": power(8, 4),
    "3 bits of segment": segments(8, 3),
    "4 bits": segments(8, 4),
    "5 bits": segments(8, 5),
}
"""Of squares; whatever is above 0 stays there"""


def kept(values: Tensor, levels: Levels, block: int, above_zero: bool) -> Tensor:
    """What codes to nearest hold."""
    padded = torch.nn.functional.pad(values.double(), (0, -len(values) % block)).view(-1, block)
    largest = padded.abs().amax(dim=1, keepdim=True)
    shares = torch.where(largest > 0, padded.abs() / largest, 0.0)
    upper = torch.searchsorted(levels, shares).clamp(max=len(levels) - 1)
    lower = (upper - 1).clamp(min=0)
    nearer = shares - levels[lower] < levels[upper] - shares
    code = torch.where(nearer, lower, upper)
    if above_zero:
        code = torch.where(shares > 0, code.clamp(min=1), code)
    return (levels[code] * largest * padded.sign()).flatten()[: len(values)]


def moments_of(name: str, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Both moments of every larger tensor after some steps."""
    problem = TASKS[name].start(0)
    params = list(problem.objective.parameters())
    optimizer = torch.optim.AdamW(params, 1e-3)
    for step in range(steps):
        loss = problem.objective(*problem.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states = [optimizer.state[p] for p in params if p.numel() >= 512]
    return [(s["exp_avg"].flatten(), s["exp_avg_sq"].flatten()) for s in states]


Through = Callable[[Tensor, Tensor], Tensor]
"""An update of the two moments, one of which is kept in codes"""


def by_first(levels: Levels, block: int) -> Through:
    """The first one is."""
    return lambda m, v: kept(m, levels, block, above_zero=False) / (v.double().sqrt() + EPS)


def by_second(levels: Levels, block: int) -> Through:
    """The second one is."""
    return lambda m, v: m.double() / (kept(v, levels, block, above_zero=True).sqrt() + EPS)


def error(moments: Sequence[tuple[Tensor, Tensor]], through: Through) -> float:
    """Of all updates, the root of the mean square over that of the exact ones."""
    off = size = 0.0
    for m, v in moments:
        exact = m.double() / (v.double().sqrt() + EPS)
        off += float((through(m, v) - exact).square().sum())
        size += float(exact.square().sum())
    return (off / size) ** 0.5


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    tasks = ["digits-cnn", "autoencoder"]
    parser.add_argument("--tasks", nargs="*", default=tasks, choices=TASKS, metavar="TASK")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args(arguments)
    moments = [pair for name in given.tasks for pair in moments_of(name, given.steps)]
    for title, maps, by in (
        ("first moment", FIRST, by_first),
        ("second moment", SECOND, by_second),
    ):
        print(f"\n| {title}, block | {' | '.join(maps)} |\n| ---: |{' ---: |' * len(maps)}")
        for block in BLOCKS:
            found = [error(moments, by(levels, block)) for levels in maps.values()]
            print(f"| {block} | {' | '.join(f'{e:.2%}' for e in found)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
