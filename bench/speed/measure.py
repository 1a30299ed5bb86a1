"""The clock: every contender once per round, in an order that is shuffled anew for each round."""

from __future__ import annotations

import gc
import math
import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from bench.speed.contenders import CONTENDERS
from bench.speed.shapes import Workload
from bench.speed.tables import Row
from bench.speed.workspace import Workspace

WARMUP_ROUNDS = 3
DELAY = 20_000_000
"""Cycles that a GPU is kept busy with while the launches are queued: about 10 ms"""

Times = tuple[float, float]
"""Seconds that the work took on its device, and seconds until the call returned."""


class Stopwatch:
    """Times one call, on the device and on the host, in seconds.

    A GPU is busy when the call is made, as it is with a backward pass in training: its time is
    that of the work, not of waiting for the next launch. What the host takes is the other number.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, work: Callable[[], object]) -> Times:
        """The work's time on the device; and how long the caller was busy."""
        if not self._cuda:
            start = time.perf_counter()
            work()
            elapsed = time.perf_counter() - start
            return elapsed, elapsed
        torch.cuda.synchronize()
        torch.cuda._sleep(DELAY)
        start = time.perf_counter()
        self._begin.record()
        work()
        self._end.record()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return self._begin.elapsed_time(self._end) * 1e-3, host


class Side(Protocol):
    """A process that holds contenders: this one, or one with another commit's package.

    Attributes:
        commit: Of the package that it runs; empty for this one.
        workload: What they step.
        names: Keys of `CONTENDERS`.
    """

    commit: str
    workload: Workload
    names: Sequence[str]

    def time(self, name: str) -> Times:
        """Seconds of one step."""
        ...

    def noise(self, name: str) -> float:
        """σ in effect."""
        ...


class Here:
    """The contenders of this process, on memory that they share.

    Args:
        workload: What they step.
        names: Keys of `CONTENDERS`.
        device: CPU or CUDA.
        in_a_row: Steps of a contender in every round, of which the median counts.
    """

    commit = ""

    def __init__(
        self,
        workload: Workload,
        names: Sequence[str],
        device: torch.device,
        in_a_row: int = 1,
    ) -> None:
        self.workload, self.names, self._in_a_row = workload, names, in_a_row
        self.workspace = Workspace(workload, device)
        self.steppers = {name: CONTENDERS[name].build(self.workspace) for name in names}
        self._watch = Stopwatch(device)

    def time(self, name: str) -> Times:
        """Seconds of one step; the gradients are new in each."""
        times = []
        for _ in range(self._in_a_row):
            self.workspace.restore_gradients()
            times.append(self._watch(self.steppers[name].step))
        return sorted(times)[self._in_a_row // 2]

    def noise(self, name: str) -> float:
        """σ in effect; waits for the device."""
        return self.steppers[name].noise()


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


def measure(sides: Sequence[Side], rounds: int) -> list[Row]:
    """Time `rounds` steps of every contender of every side, in turn.

    Returns:
        A row per contender, each followed by the same one of another side.

    Raises:
        ValueError: Too few rounds.
        RuntimeError: A contender drew noise that it should not, or none that it should.
    """
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
            "workload": str(side.workload),
            "shapes": side.workload.shapes,
            "dtype": side.workload.dtype,
            "elements": side.workload.elements,
            "tensors": side.workload.tensors,
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
