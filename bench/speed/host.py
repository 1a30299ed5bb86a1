"""Where the host's time of a step goes. ``python -m bench.speed.host`` prints a table.

Runs on a GPU where there is one, where a launch is part of the time, and else on the CPU, where the
pass over the parameters is. The first rows are by the clock, warm: in training, what a step looks
at has left the caches. The others are our functions, with all that they call, as Python's profiler
sees them: it makes a step slower, so they tell the parts, not the whole.
"""

from __future__ import annotations

import argparse
import cProfile
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

import adaptiverl
from adaptiverl import AdaptiveAdamW, Control, kernels
from bench.speed.measure import stopwatch, time_rounds
from bench.speed.tables import table

SIZE, REPEATS = 1000, 60
WHOLE = "ours, observe and step"
LEAST = 0.01
"""A function that takes less than this share of a step in every column is left out."""
OURS = tuple(str(Path(package.__file__ or "").parent) for package in (adaptiverl, kernels))


def column_of(tensors: int, device: torch.device) -> dict[str, float]:
    """Microseconds of a step on so many parameters of `SIZE` numbers, and of its parts, by name."""
    params = [nn.Parameter(torch.zeros(SIZE, device=device)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = AdaptiveAdamW(params, 1e-4, control=Control(noise_bounds=(0.0, 0.0)))
    loss = torch.tensor(1.0, device=device)

    def whole() -> None:
        optimizer.observe(loss)
        optimizer.step()

    parts: dict[str, Callable[[], object]] = {
        "torch fused, whole step": torch.optim.AdamW(params, 1e-4, fused=True).step,
        WHOLE: whole,
        "ours, observe": lambda: optimizer.observe(loss),
    }
    watch = stopwatch(device)
    times = time_rounds({name: partial(watch, part) for name, part in parts.items()}, REPEATS)
    column = {
        name: 1e6 * statistics.median(host for _, host in taken) for name, taken in times.items()
    }
    profile = cProfile.Profile(builtins=False)
    for _ in range(REPEATS):
        watch(lambda: profile.runcall(whole))
    codes = [(e.code, e.totaltime) for e in profile.getstats() if not isinstance(e.code, str)]
    for code, seconds in sorted(codes, key=lambda item: -item[1]):
        if code.co_filename.startswith(OURS):
            name = f"{Path(code.co_filename).stem}.{code.co_name}"
            column[name] = 1e6 * seconds / REPEATS
    return column


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.host")
    parser.add_argument("--tensors", type=int, nargs="+", default=(1, 148, 1000))
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = [column_of(n, device) for n in given.tensors]
    names = dict.fromkeys(name for column in reversed(columns) for name in column)
    rows = [
        (name, *(f"{column.get(name, 0):.1f}" for column in columns))
        for name in names
        if any(column.get(name, 0) >= LEAST * column[WHOLE] for column in columns)
    ]
    print(f"{device.type}, torch {torch.__version__}")
    print(table(("microseconds of the host", *(f"{n} tensors" for n in given.tensors)), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
