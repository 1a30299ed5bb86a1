"""The figures that a card is to reach: target, measured, met."""

from __future__ import annotations

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
    ON_A_CARD,
    PLAIN,
    STOCK,
    is_ours,
)
from bench.speed.shapes import Workload
from bench.speed.tables import Row, median_ratio, share, size, with_ratios

LARGE = (Workload("gpt2-small"), Workload("1B"))
HALF = tuple(Workload(workload.shapes, "bfloat16") for workload in LARGE)
MANY = Workload("1M-in-1000")
NO_WAIT = (
    "no_step_waits_for_the_device",
    "the_profiler_sees_no_wait",
    "a_captured_step_replays_bit_for_bit",
)
"""Checks that together show that no step waits"""
SAME_BITS = ("the_same_seed_gives_the_same_bits",)

SPEEDUPS: tuple[tuple[str, str, str, tuple[Workload, ...], float], ...] = (
    ("plain, against torch fused", PLAIN, FUSED, LARGE, 1.0),
    ("noise, against torch fused without", NOISE, FUSED, LARGE, 0.95),
    ("noise + clip, against the stock composition", ALL, STOCK, LARGE, 1.7),
    ("clip only, against clip_grad_norm_ + torch fused", CLIP, CLIPPED, LARGE, 1.3),
    ("bfloat16 parameters and gradients, against torch fused", PLAIN, FUSED, HALF, 1.3),
)
"""How many times faster a contender is to be than another, and in which workloads"""
HOST_TARGET, BANDWIDTH_TARGET = 0.3, 0.95
CONTROLLER_TARGET = 0.03
"""The most that the controller's launches may take of the step's time on the device"""
LAUNCHES_TARGET = 4
CHUNK_BYTES, FIXED_BYTES = 8, 2**20


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured, and of what.
        target: In words.
        measured: In words.
        met: None where it was not measured.
    """

    name: str
    target: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Results:
    """What one run brought together.

    Attributes:
        rows: Of `card.rows_of`, with their ratios.
        copy_bandwidth: Bytes per second, or None.
        extra: By workload, bytes beyond AdamW's states, and chunks.
        checks: Outcomes by name.
    """

    rows: Sequence[Row]
    copy_bandwidth: float | None
    extra: Mapping[str, Mapping[str, int]]
    checks: Mapping[str, str]

    def row(self, workload: Workload, contender: str) -> Row | None:
        """A contender's measurements in a workload."""
        found = (r for r in self.rows if r["contender"] == contender)
        return next((r for r in found if r["workload"] == str(workload)), None)

    def speedup(self, workload: Workload, name: str, rival: str, what: str) -> float | None:
        """How many times faster a contender is than another by one of the two clocks."""
        ours, theirs = self.row(workload, name), self.row(workload, rival)
        return median_ratio(theirs[what], ours[what]) if ours and theirs else None

    def bandwidth_share(self, workload: Workload, contender: str) -> float | None:
        """Bytes that a step has to move, over its time, over what a plain copy moves."""
        row, moved = self.row(workload, contender), bytes_moved(workload, contender)
        if row is None or moved is None or self.copy_bandwidth is None:
            return None
        return moved / statistics.median(row["seconds"]) / self.copy_bandwidth


def bytes_moved(workload: Workload, contender: str) -> int | None:
    """What a step has to read and write at least; None where one pass is not the aim."""
    if contender != FUSED and not is_ours(contender):
        return None
    moments = 4 * (workload.width if contender == FUSED else 4)
    again = workload.width if contender in (NOISE, CLIP, ALL) else 0
    return workload.elements * (3 * workload.width + moments + again)


def figures(results: Results) -> list[Figure]:
    """The whole table."""
    lines = [
        _judged(
            f"{name}: {w}", results.speedup(w, ours, rival, "seconds"), at_least=target, show=times
        )
        for name, ours, rival, workloads, target in SPEEDUPS
        for w in workloads
    ]
    host = results.speedup(MANY, FUSED, PLAIN, "host_seconds")
    name = f"1,000 small tensors, host time over torch fused's: {MANY}"
    lines.append(_judged(name, host, at_most=HOST_TARGET, show=times))
    for w in LARGE:
        reached = results.bandwidth_share(w, PLAIN)
        name = f"plain, of copy bandwidth: {w}"
        lines.append(_judged(name, reached, at_least=BANDWIDTH_TARGET, show=share))
    for contender in (PLAIN, ALIGNMENT):
        row = results.row(LARGE[0], contender) or {"controller_share": None}
        name = f"controller, of the step's time: {contender}, {LARGE[0]}"
        lines.append(_judged(name, row["controller_share"], at_most=CONTROLLER_TARGET, show=share))
    counts = [row["launches"] for row in results.rows if is_ours(row["contender"])]
    most = max((count for count in counts if count is not None), default=None)
    name = "launches per step, any number of tensors"
    lines.append(_judged(name, most, at_most=LAUNCHES_TARGET, show=str))
    lines.append(_checked(results, "host synchronisations per step", "0", NO_WAIT))
    lines += [_extra(results, str(workload)) for workload in LARGE]
    lines.append(_checked(results, "two runs, same seed", "the same bits", SAME_BITS))
    return lines


def times(value: float) -> str:
    """A factor."""
    return f"{value:.2f}×"


def _judged(
    name: str,
    value: float | None,
    show: Callable[[Any], str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """A number beside its target, of which there is one."""
    target = (
        f"at least {show(at_least)}" if at_least is not None else f"at most {show(at_most or 0)}"
    )
    if value is None:
        return Figure(name, target, "not measured", None)
    met = value >= at_least if at_least is not None else value <= (at_most or 0)
    return Figure(name, target, show(value), met)


def _extra(results: Results, workload: str) -> Figure:
    name = f"extra memory beyond AdamW's states: {workload}"
    extra = results.extra.get(workload)
    if extra is None:
        return Figure(name, "at most 1 MiB + 8 B per chunk", "not measured", None)
    return _judged(
        name, extra["bytes"], show=size, at_most=FIXED_BYTES + CHUNK_BYTES * extra["chunks"]
    )


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
        for i, contender in enumerate(ON_A_CARD):
            seconds = [1e-3 * (len(ON_A_CARD) - i) * (1 + 0.01 * k) for k in range(5)]
            rows.append(
                {
                    "workload": str(workload),
                    "elements": workload.elements,
                    "tensors": workload.tensors,
                    "contender": contender,
                    "of": "",
                    "rivals": (),
                    "seconds": seconds,
                    "host_seconds": [0.1 * s for s in seconds],
                    "temporary_bytes": 512 * i,
                    "launches": 4,
                    "controller_share": 0.01,
                    "waits": 0,
                    "graph_seconds": [0.9 * s for s in seconds],
                    "graph_error": None,
                }
            )
    extra = {str(LARGE[0]): {"bytes": 700_000, "chunks": 7600}}
    return Results(with_ratios(rows), 4e12, extra, dict.fromkeys((*NO_WAIT, *SAME_BITS), "passed"))
