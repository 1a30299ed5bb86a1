"""What a card does with a step. ``python -m bench.speed.card`` writes it as it comes."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from bench.speed.measure import WARMUP_ROUNDS, Here, measure, stopwatch
from bench.speed.names import ON_A_CARD, is_ours
from bench.speed.parts import part_of
from bench.speed.shapes import CARD_WORKLOADS, SHAPES, Workload
from bench.speed.tables import Row

ROUNDS = 15
COPIED = 2**31


def copy_bandwidth(device: torch.device, size: int = COPIED) -> float:
    """Bytes per second, read and written, of copying more than any cache holds."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    watch = stopwatch(device)
    seconds = [watch(lambda: target.copy_(source))[0] for _ in range(WARMUP_ROUNDS + 20)]
    return 2 * size / statistics.median(seconds[WARMUP_ROUNDS:])


def rows_of(workload: Workload, device: torch.device, rounds: int = ROUNDS) -> list[Row]:
    here = Here(workload, ON_A_CARD, device)
    rows = measure(workload, [here.side()], rounds)
    if device.type != "cuda":
        return [row | {"launches": None, "controller_share": None} for row in rows]
    return [row | _launches(here, row["contender"]) for row in rows]


def _launches(here: Here, name: str) -> Row:
    from gpu_checks import traced

    # Ours is told the loss by a call of its own; what stock steps do beside `step` is the step.
    stepper = here.steppers[name]
    _, runs = traced(stepper.optimizer.step if is_ours(name) else stepper.step)
    return summary(runs, traced(stepper.step)[1])


def summary(runs: Sequence[tuple[str, float]], whole: Sequence[tuple[str, float]]) -> Row:
    from gpu_checks import NOT_KERNELS

    times = [(name, taken) for name, taken in whole if not name.startswith(NOT_KERNELS)]
    total = sum(taken for _, taken in times)
    # The controller's kernels are CUDA, in our namespace; the pass over the parameters is Triton.
    controller = sum(taken for name, taken in times if "adaptiverl" in name)
    return {
        "launches": sum(not name.startswith(NOT_KERNELS) for name, _ in runs),
        "controller_share": controller / total if total else None,
    }


def measure_all(device: torch.device, deadline: float, report: Callable[[Row], None]) -> None:
    """Everything until a time of `time.monotonic`; reports after each part, so that none is lost.

    A part has one key: ``"copy_bandwidth"``, ``"rows"``, ``"extra"`` or ``"left_out"``.
    """
    from gpu_checks import extra_memory

    report({"copy_bandwidth": copy_bandwidth(device)})
    longest = 0.0
    for workload in CARD_WORKLOADS:
        start = time.monotonic()
        needed, free = workload.gibibytes, torch.cuda.mem_get_info(device)[0] / 2**30
        if start + longest > deadline or needed > free:
            late = start + longest > deadline
            reason = "the time was up" if late else f"needs {needed:.0f} GiB, {free:.0f} are free"
            report({"left_out": {str(workload): reason}})
            continue
        report({"rows": rows_of(workload, device)})
        _release()
        if workload.dtype == "float32":
            sizes = [torch.Size(shape).numel() for shape in SHAPES[workload.shapes]]
            extra, chunks = extra_memory(sizes)
            report({"extra": {str(workload): {"bytes": extra, "chunks": chunks}}})
            _release()
        longest = max(longest, 0.5 * (time.monotonic() - start))


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def describe(part: Row) -> str:
    if "rows" not in part:
        return str(part)
    times = [f"{row['contender']} {statistics.median(row['seconds']):.3e}" for row in part["rows"]]
    return f"{part['rows'][0]['workload']}: {', '.join(times)}"


if __name__ == "__main__":
    with part_of("bench.speed.card", sys.argv[1:], describe) as (deadline, report):
        measure_all(torch.device("cuda", 0), deadline, report)
