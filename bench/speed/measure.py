"""The clock: every contender once per round, in an order that is shuffled anew for each round."""

import gc
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.speed.contenders import CONTENDERS, Stepper
from bench.speed.shapes import Workload
from bench.speed.tables import Row
from bench.speed.workspace import Workspace

WARMUP_ROUNDS = 3
DELAY = 20_000_000  # cycles that a GPU is kept busy with while the launches are queued: about 10 ms

Times = tuple[float, float]
"""Seconds that the work took on its device, and seconds until the call returned."""


def stopwatch(device: torch.device) -> Callable[[Callable[[], object]], Times]:
    """What times one call, on the device and on the host.

    A GPU is busy when the call is made, as it is with a backward pass in training: its time is
    that of the work, not of waiting for the next launch. What the host takes is the other number.
    """

    def on_cpu(work: Callable[[], object]) -> Times:
        start = time.perf_counter()
        work()
        elapsed = time.perf_counter() - start
        return elapsed, elapsed

    def on_cuda(work: Callable[[], object]) -> Times:
        torch.cuda.synchronize()
        torch.cuda._sleep(DELAY)
        start = time.perf_counter()
        begin.record()
        work()
        end.record()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e-3, host

    if device.type != "cuda":
        return on_cpu
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    return on_cuda


@dataclass(frozen=True)
class Side:
    """A process with contenders: this one, or one with another commit's package."""

    commit: str  # of the package that it runs; empty for this one
    names: Sequence[str]  # of the contenders, keys of CONTENDERS
    time: Callable[[str], Times]  # one step of a contender
    noise: Callable[[str], float]  # σ in effect


class Here:
    """The contenders of this process on memory that they share; `in_a_row` is `--in-a-row`."""

    def __init__(
        self, workload: Workload, names: Sequence[str], device: torch.device, in_a_row: int = 1
    ) -> None:
        self.workspace = Workspace(workload, device)
        self.steppers: dict[str, Stepper] = {
            name: CONTENDERS[name].build(self.workspace) for name in names
        }
        self._watch, self._in_a_row = stopwatch(device), in_a_row

    def time(self, name: str) -> Times:
        """Seconds of one step, the gradients new; of several in a row the median."""
        times = []
        for _ in range(self._in_a_row):
            self.workspace.restore_gradients()
            times.append(self._watch(self.steppers[name].step))
        return sorted(times)[self._in_a_row // 2]

    def noise(self, name: str) -> float:
        return self.steppers[name].noise()

    def side(self) -> Side:
        return Side("", list(self.steppers), self.time, self.noise)


def time_rounds(clocks: Mapping[Any, Callable[[], Times]], rounds: int) -> dict[Any, list[Times]]:
    """Call every clock once a round, in an order of its own; the warm-up's times are dropped."""
    times: dict[Any, list[Times]] = {key: [] for key in clocks}
    order, shuffle = list(clocks), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(-WARMUP_ROUNDS, rounds):
            shuffle(order)
            for key in order:
                taken = clocks[key]()
                if number >= 0:
                    times[key].append(taken)
    finally:
        if collecting:
            gc.enable()
    return times


def measure(workload: Workload, sides: Sequence[Side], rounds: int) -> list[Row]:
    if rounds < 2:
        raise ValueError(f"rounds must be 2 or more, got {rounds}: one shows no spread")
    places = [(name, side) for name in sides[0].names for side in sides if name in side.names]
    clocks = {
        (name, side.commit): lambda name=name, side=side: side.time(name) for name, side in places
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never told a loss")  # some are there for that
        times = time_rounds(clocks, rounds)
    return [
        {
            "workload": str(workload),
            "elements": workload.elements,
            "tensors": workload.tensors,
            "contender": name,
            "of": side.commit,
            "rivals": CONTENDERS[name].rivals,
            "rounds": rounds,
            "sigma": checked_noise(side, name),
            "seconds": [on_device for on_device, _ in times[name, side.commit]],
            "host_seconds": [on_host for _, on_host in times[name, side.commit]],
        }
        for name, side in places
    ]


def checked_noise(side: Side, name: str) -> float:
    """σ at the end, which is to be what the contender's name says."""
    sigma, expected = side.noise(name), CONTENDERS[name].sigma
    if not math.isclose(sigma, expected, rel_tol=1e-9):
        raise RuntimeError(
            f"{name!r} ended with σ = {sigma!r}, expected {expected!r}: its times are of "
            "another step than its name says"
        )
    return sigma
