"""Where the host's time of a step goes, part by part. ``python -m bench.gpu.host`` prints a table.

Runs on a GPU where there is one, where a launch is part of the time, and else on the CPU, where the
sweep's work is. The parts run alone and warm: in training, what they look at has left the caches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from adaptiverl import AdaptiveAdamW, Control
from adaptiverl.fingerprint import Fingerprint
from bench.gpu.report import table

TENSORS = (1, 148, 1000)
SIZE, REPEATS, WARMUP = 1000, 60, 5

Parts = dict[str, Callable[[], object]]


def parts_of(tensors: int, device: torch.device) -> Parts:
    """What a step does on the host, by name, each to be called again and again."""
    params = [nn.Parameter(torch.zeros(SIZE, device=device)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = AdaptiveAdamW(params, 1e-4, control=Control(noise_bounds=(0.0, 0.0)))
    rival = torch.optim.AdamW(params, 1e-4, fused=True)
    loss = torch.tensor(1.0, device=device)
    for _ in range(2):
        optimizer.step(loss=loss)
    keys = optimizer._group_keys()
    last = Fingerprint.of(keys, optimizer.state)
    assert last is not None
    (bucket,) = optimizer._buckets.of_step(keys, optimizer.state, optimizer._entries)
    decision = optimizer._advance([bucket], None, False)

    def whole() -> None:
        optimizer.observe(loss)
        optimizer.step()

    return {
        "torch fused, whole step": rival.step,
        "ours, whole step and observe": whole,
        "observe": lambda: optimizer.observe(loss),
        "look at every tensor": lambda: Fingerprint.of(keys, optimizer.state),
        "compare with the last look": lambda: last.is_followed_by(last),
        "gradients' addresses": lambda: bucket.move_gradients(last.gradients),
        "controller": lambda: optimizer._advance([bucket], None, False),
        "sweep": lambda: bucket.backend.step(bucket, decision, bucket.squares, None),
    }


def seconds_of(parts: Parts, device: torch.device) -> dict[str, float]:
    """Medians, the parts in turn; the device has nothing to do when one begins."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(WARMUP + REPEATS):
        for name, part in parts.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begin = time.perf_counter()
            part()
            if number >= WARMUP:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.host")
    parser.add_argument("--tensors", type=int, nargs="+", default=TENSORS)
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = [seconds_of(parts_of(n, device), device) for n in given.tensors]
    heads = ("microseconds of the host", *(f"{n} tensors" for n in given.tensors))
    rows = [(name, *(f"{1e6 * column[name]:.1f}" for column in columns)) for name in columns[0]]
    print(f"{device.type}, torch {torch.__version__}")
    print(table(heads, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
