"""The clock: contenders in turn, and the card's own copy beside them. ``python -m`` runs it."""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from adaptiverl import AdaptiveAdamW
from bench.gpu import contenders as contenders_module
from bench.gpu.contenders import Memory, Stepper
from bench.gpu.plan import ALL, CONTENDERS, NOISE, OURS, SHAPES, Workload, workloads

ROUNDS, WARMUP = 15, 3
GRAPH_ROUNDS = 15
COPIED = 2**31
DELAY = 20_000_000
"""Cycles that the device is kept busy with while the launches are queued: about 10 ms"""

Row = dict[str, Any]


class Stopwatch:
    """Times one call, on the device and on the host, in seconds.

    The device is busy when the call is made, as it is with a backward pass in training: its time is
    that of the work, not of waiting for the next launch. What the host takes is the other number.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, work: Callable[[], Any]) -> tuple[float, float]:
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


def copy_bandwidth(device: torch.device, size: int = COPIED) -> float:
    """Bytes per second, read and written, of copying more than any cache holds."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    watch = Stopwatch(device)
    for _ in range(WARMUP):
        target.copy_(source)
    seconds = [watch(lambda: target.copy_(source))[0] for _ in range(20)]
    return 2 * size / statistics.median(seconds)


def measure(workload: Workload, device: torch.device, rounds: int = ROUNDS) -> list[Row]:
    """A row per contender, of one workload."""
    memory = Memory(workload, device)
    steppers = {name: contenders_module.build(name, memory) for name in CONTENDERS}
    seconds, host = time_rounds(memory, steppers, rounds)
    extra = {name: _temporary(memory, stepper) for name, stepper in steppers.items()}
    runs = {name: _runs(stepper) for name, stepper in steppers.items()}
    _check_noise(steppers)
    graphs = {name: _graph_times(memory, stepper) for name, stepper in steppers.items()}
    return [
        {
            "workload": str(workload),
            "shapes": workload.shapes,
            "dtype": workload.dtype,
            "elements": workload.elements,
            "tensors": workload.tensors,
            "contender": name,
            "seconds": seconds[name],
            "host_seconds": host[name],
            "temporary_bytes": extra[name],
            **runs[name],
            **graphs[name],
        }
        for name in CONTENDERS
    ]


def time_rounds(
    memory: Memory, steppers: dict[str, Stepper], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Every contender once a round, in an order that is shuffled anew."""
    watch, order = Stopwatch(memory.device), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    host: dict[str, list[float]] = {name: [] for name in steppers}
    gc.collect()
    gc.disable()
    try:
        for number in range(WARMUP + rounds):
            names = list(steppers)
            order.shuffle(names)
            for name in names:
                memory.restore()
                on_device, on_host = watch(steppers[name].step)
                if number >= WARMUP:
                    seconds[name].append(on_device)
                    host[name].append(on_host)
    finally:
        gc.enable()
    return seconds, host


def _check_noise(steppers: dict[str, Stepper]) -> None:
    for name in set(OURS) & set(steppers):
        sigma = contenders_module.noise_of(steppers[name])
        wanted = contenders_module.SIGMA if name in (NOISE, ALL) else 0.0
        if abs(sigma - wanted) > 1e-9:
            raise RuntimeError(f"{name} ended with σ = {sigma!r}, expected {wanted!r}")


def _temporary(memory: Memory, stepper: Stepper) -> int | None:
    """Peak bytes that one step takes beside what it keeps."""
    if memory.device.type != "cuda":
        return None
    memory.restore()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    stepper.step()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_stats()["requested_bytes.all.peak"] - before)


def _runs(stepper: Stepper) -> Row:
    """What the profiler sees of a step; `summary` has the keys."""
    if not torch.cuda.is_available():
        return summary([], [], []) | {"launches": None}
    from gpu_checks import traced

    # Ours is told the loss by a call of its own; what stock steps do beside `step` is the step.
    ours = isinstance(stepper.optimizer, AdaptiveAdamW)
    calls, runs = traced(stepper.optimizer.step if ours else stepper.step)
    return summary(calls, runs, traced(stepper.step)[1])


def summary(
    calls: Sequence[str],
    runs: Sequence[tuple[str, float]],
    whole: Sequence[tuple[str, float]],
) -> Row:
    """Launches, waits, and the controller's share of the device's time.

    Args:
        calls: What the step asked of the runtime.
        runs: What the device ran of it, with microseconds.
        whole: The same with telling the loss.
    """
    from gpu_checks import NOT_KERNELS, waits_among

    times = [(name, time) for name, time in whole if not name.startswith(NOT_KERNELS)]
    total = sum(time for _, time in times)
    controller = ("advance_kernel", "observe_kernel", "reduce_alignment_kernel")
    own = sum(time for name, time in times if any(kernel in name for kernel in controller))
    return {
        "launches": sum(not name.startswith(NOT_KERNELS) for name, _ in runs),
        "controller_share": own / total if total else None,
        "waits": sum(waits_among(Counter(calls)).values()),
    }


def _graph_times(memory: Memory, stepper: Stepper) -> Row:
    """Seconds of a replay, or why there is none."""
    if memory.device.type != "cuda" or stepper.frozen_step is None:
        return {"graph_seconds": [], "graph_error": "not captured"}
    try:
        memory.restore()
        stepper.frozen_step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            stepper.frozen_step()
        watch = Stopwatch(memory.device)
        seconds = []
        for number in range(WARMUP + GRAPH_ROUNDS):
            memory.restore()
            elapsed, _ = watch(graph.replay)
            if number >= WARMUP:
                seconds.append(elapsed)
    except RuntimeError as error:
        return {"graph_seconds": [], "graph_error": str(error).splitlines()[0]}
    return {"graph_seconds": seconds, "graph_error": None}


def measure_all(device: torch.device, deadline: float, report: Callable[[Row], None]) -> None:
    """Everything in the plan until the time is up; reports after each part, so that none is lost.

    Args:
        device: The GPU.
        deadline: Of `time.monotonic`.
        report: Takes a dict with one key: ``"copy_bandwidth"``, ``"rows"``, ``"extra"``,
            or ``"left_out"``.
    """
    from gpu_checks import extra_memory

    report({"copy_bandwidth": copy_bandwidth(device)})
    longest = 0.0
    for workload in workloads():
        start = time.monotonic()
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        if start + longest > deadline:
            report({"left_out": {str(workload): "the time was up"}})
            continue
        if workload.gibibytes > free:
            reason = f"needs {workload.gibibytes:.0f} GiB, {free:.0f} are free"
            report({"left_out": {str(workload): reason}})
            continue
        report({"rows": measure(workload, device)})
        if workload.dtype == "float32":
            _release()
            sizes = [torch.Size(shape).numel() for shape in SHAPES[workload.shapes]]
            extra, chunks = extra_memory(sizes)
            report({"extra": {str(workload): {"bytes": extra, "chunks": chunks}}})
        _release()
        longest = max(longest, 0.5 * (time.monotonic() - start))


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main(arguments: Sequence[str]) -> int:
    """Write one JSON object per line to a file, as they come."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.measure")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=240.0)
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + given.seconds
    with given.out.open("w", encoding="utf-8") as stream:

        def report(part: Row) -> None:
            print(json.dumps(part), file=stream, flush=True)
            print(f"{time.monotonic() - deadline + given.seconds:6.1f} s  {describe(part)}")
            sys.stdout.flush()

        measure_all(torch.device("cuda", 0), deadline, report)
    return 0


def describe(part: Row) -> str:
    """A part of the results in a line."""
    if "rows" in part:
        medians = [f"{r['contender']} {statistics.median(r['seconds']):.3e}" for r in part["rows"]]
        return f"{part['rows'][0]['workload']}: " + ", ".join(medians)
    ((name, value),) = part.items()
    return f"{name}: {value}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
