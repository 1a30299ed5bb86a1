"""Where the host's time of a step goes. ``python -m bench.speed.host`` prints a table.

Runs on a GPU where there is one, where a launch is part of the time, and else on the CPU, where the
pass over the parameters is. The first rows are by the clock; the others are our functions as
Python's profiler sees them: it makes a step slower, so they tell the parts, not the whole.
"""

from __future__ import annotations

import argparse
import cProfile
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

import adaptiverl
from adaptiverl import AdaptiveAdamW, Control, kernels
from bench.speed.tables import table

TENSORS = (1, 148, 1000)
SIZE, REPEATS, WARMUP = 1000, 60, 5
LEAST = 0.01
"""A function that takes less than this share of a step in every column is left out."""
OURS = tuple(str(Path(package.__file__ or "").parent) for package in (adaptiverl, kernels))

Column = dict[str, float]


def column_of(tensors: int, device: torch.device) -> Column:
    """Microseconds of a step and of its parts, by name.

    Args:
        tensors: How many parameters, of `SIZE` numbers each.
        device: CPU or CUDA.
    """
    params = [nn.Parameter(torch.zeros(SIZE, device=device)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = AdaptiveAdamW(params, 1e-4, control=Control(noise_bounds=(0.0, 0.0)))
    rival = torch.optim.AdamW(params, 1e-4, fused=True)
    loss = torch.tensor(1.0, device=device)

    def whole() -> None:
        optimizer.observe(loss)
        optimizer.step()

    def settle() -> None:
        # The device has nothing to do when a part begins.
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    parts: dict[str, Callable[[], object]] = {
        "torch fused, whole step": rival.step,
        "ours, observe and step": whole,
        "ours, observe": lambda: optimizer.observe(loss),
    }
    column = clocked(parts, settle)
    profile = cProfile.Profile(builtins=False)
    for _ in range(REPEATS):
        settle()
        profile.enable()
        whole()
        profile.disable()
    return column | functions_of(profile)


def clocked(parts: dict[str, Callable[[], object]], settle: Callable[[], None]) -> Column:
    """Medians, the parts in turn, warm: in training, what they look at has left the caches."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(WARMUP + REPEATS):
        for name, part in parts.items():
            settle()
            begin = time.perf_counter()
            part()
            if number >= WARMUP:
                taken[name].append(time.perf_counter() - begin)
    return {name: 1e6 * statistics.median(seconds) for name, seconds in taken.items()}


def functions_of(profile: cProfile.Profile) -> Column:
    """Our functions, with all that they call, the longest first; of a step, on average."""
    codes = [(e.code, e.totaltime) for e in profile.getstats() if not isinstance(e.code, str)]
    found = {
        f"{Path(code.co_filename).stem}.{code.co_name}": 1e6 * seconds / REPEATS
        for code, seconds in codes
        if code.co_filename.startswith(OURS)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed.host")
    parser.add_argument("--tensors", type=int, nargs="+", default=TENSORS)
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = [column_of(n, device) for n in given.tensors]
    least = [LEAST * column["ours, observe and step"] for column in columns]
    names = dict.fromkeys(name for column in reversed(columns) for name in column)
    rows = [
        (name, *(f"{column.get(name, 0):.1f}" for column in columns))
        for name in names
        if any(column.get(name, 0) >= floor for column, floor in zip(columns, least, strict=True))
    ]
    print(f"{device.type}, torch {torch.__version__}")
    print(table(("microseconds of the host", *(f"{n} tensors" for n in given.tensors)), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
