"""The figures that a card is to reach: target, measured, met."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.speed.names import (
    ALIGNMENT,
    ALL,
    CLIP,
    CLIPPED,
    FUSED,
    NOISE,
    PLAIN,
    SHORT,
    STOCK,
    is_ours,
)
from bench.speed.names import ON_A_CARD as CONTENDERS
from bench.speed.shapes import Workload
from bench.speed.tables import Row, median_ratio, share, size, with_ratios

LARGE = (Workload("gpt2-small"), Workload("1B"))
HALF = tuple(Workload(workload.shapes, "bfloat16") for workload in LARGE)
MANY = Workload("1M-in-1000")
# Checks that together show that no step waits, and that two runs are the same.
NO_WAIT = (
    "no_step_waits_for_the_device",
    "the_profiler_sees_no_wait",
    "a_captured_step_replays_bit_for_bit",
)
SAME_BITS = ("the_same_seed_gives_the_same_bits",)

SPEEDUPS: tuple[tuple[str, str, str, tuple[Workload, ...], float], ...] = (
    ("plain, against torch fused", PLAIN, FUSED, LARGE, 1.0),
    ("noise, against torch fused without", NOISE, FUSED, LARGE, 0.95),
    ("noise + clip, against the stock composition", ALL, STOCK, LARGE, 1.7),
    ("clip only, against clip_grad_norm_ + torch fused", CLIP, CLIPPED, LARGE, 1.3),
    ("bfloat16 parameters and gradients, against torch fused", PLAIN, FUSED, HALF, 1.3),
    ("bfloat16 parameters, gradients and state, against torch fused", SHORT, FUSED, HALF, 1.0),
    ("bfloat16 state, against float32 state", SHORT, PLAIN, LARGE, 1.2),
)  # how many times faster a contender is to be than another, and in which workloads
HOST_TARGET, BANDWIDTH_TARGET, LAUNCHES_TARGET = 0.3, 0.95, 4
CONTROLLER_TARGET = 0.03
"""The most that the controller's launches may take of the step's time on the device"""
CHUNK_BYTES, FIXED_BYTES = 8, 2**20


@dataclass(frozen=True)
class Figure:
    """One line of the table, in words; `met` is None where it was not measured."""

    name: str
    target: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Results:
    rows: Sequence[Row]  # of card.rows_of, with their ratios
    copy_bandwidth: float | None  # bytes per second, or None
    extra: Mapping[str, Mapping[str, int]]  # by workload, bytes beyond AdamW's states, and chunks
    checks: Mapping[str, str]  # outcomes by name

    def row(self, workload: Workload, contender: str) -> Row | None:
        wanted = str(workload), contender
        return next((r for r in self.rows if (r["workload"], r["contender"]) == wanted), None)

    def speedup(self, workload: Workload, name: str, rival: str, what: str) -> float | None:
        ours, theirs = self.row(workload, name), self.row(workload, rival)
        return median_ratio(theirs[what], ours[what]) if ours and theirs else None

    def bandwidth_share(self, workload: Workload, contender: str) -> float | None:
        row, moved = self.row(workload, contender), bytes_moved(workload, contender)
        if row is None or moved is None or self.copy_bandwidth is None:
            return None
        return moved / statistics.median(row["seconds"]) / self.copy_bandwidth


def bytes_moved(workload: Workload, contender: str) -> int | None:
    """What a step has to read and write at least; None where one pass is not the aim."""
    if contender != FUSED and not is_ours(contender):
        return None
    kept = workload.width if contender == FUSED else 2 if contender == SHORT else 4
    moments = 4 * kept
    again = workload.width if contender in (NOISE, CLIP, ALL) else 0
    return workload.elements * (3 * workload.width + moments + again)


def figures(results: Results) -> list[Figure]:
    lines = []
    for name, ours, rival, workloads, target in SPEEDUPS:
        for w in workloads:
            speedup = results.speedup(w, ours, rival, "seconds")
            lines.append(_least(f"{name}: {w}", speedup, target, times))
    host = results.speedup(MANY, FUSED, PLAIN, "host_seconds")
    name = f"1,000 small tensors, host time over torch fused's: {MANY}"
    lines.append(_most(name, host, HOST_TARGET, times))
    for w in LARGE:
        reached = results.bandwidth_share(w, PLAIN)
        lines.append(_least(f"plain, of copy bandwidth: {w}", reached, BANDWIDTH_TARGET, share))
    for contender in (PLAIN, ALIGNMENT):
        row = results.row(LARGE[0], contender) or {"controller_share": None}
        name = f"controller, of the step's time: {contender}, {LARGE[0]}"
        lines.append(_most(name, row["controller_share"], CONTROLLER_TARGET, share))
    counts = [row["launches"] for row in results.rows if is_ours(row["contender"])]
    most = max((count for count in counts if count is not None), default=None)
    lines.append(_most("launches per step, any number of tensors", most, LAUNCHES_TARGET, str))
    lines.append(_checked(results, "host synchronisations per step", "0", NO_WAIT))
    for w in LARGE:
        extra = results.extra.get(str(w), {"bytes": None, "chunks": 0})
        allowed = FIXED_BYTES + CHUNK_BYTES * (extra["chunks"] or 0)
        name = f"extra memory beyond AdamW's states: {w}"
        lines.append(_most(name, extra["bytes"], allowed, size))
    lines.append(_checked(results, "two runs, same seed", "the same bits", SAME_BITS))
    return lines


def times(value: float) -> str:
    return f"{value:.2f}×"


def _least(name: str, value: Any, bound: float, show: Callable[[Any], str]) -> Figure:
    if value is None:
        return Figure(name, f"at least {show(bound)}", "not measured", None)
    return Figure(name, f"at least {show(bound)}", show(value), value >= bound)


def _most(name: str, value: Any, bound: float, show: Callable[[Any], str]) -> Figure:
    if value is None:
        return Figure(name, f"at most {show(bound)}", "not measured", None)
    return Figure(name, f"at most {show(bound)}", show(value), value <= bound)


def _checked(results: Results, name: str, target: str, needed: Iterable[str]) -> Figure:
    outcomes = {results.checks.get(check, "not run") for check in needed}
    if "failed" in outcomes:
        return Figure(name, target, "no", False)
    if outcomes == {"passed"}:
        return Figure(name, target, "yes", True)
    return Figure(name, target, "not measured", None)


def fake_results() -> Results:
    """Numbers of no card, so that the report can be written where there is none."""
    rows = []
    for workload in (*LARGE, *HALF, MANY):
        for i, contender in enumerate(CONTENDERS):
            seconds = [1e-3 * (len(CONTENDERS) - i) * (1 + 0.01 * k) for k in range(5)]
            host = [0.1 * s for s in seconds]
            row: Row = {"workload": str(workload), "contender": contender, "of": "", "rivals": ()}
            row |= {"seconds": seconds, "host_seconds": host}
            rows.append(row | {"launches": 4, "controller_share": 0.01})
    extra = {str(LARGE[0]): {"bytes": 700_000, "chunks": 7600}}
    return Results(with_ratios(rows), 4e12, extra, dict.fromkeys((*NO_WAIT, *SAME_BITS), "passed"))
