"""The figures to reach: target, measured, met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu.plan import (
    BANDWIDTH_TARGET,
    CHUNK_BYTES,
    CONTENDERS,
    CONTROLLER_TARGET,
    FIXED_BYTES,
    LARGE,
    LAUNCHES_TARGET,
    NO_WAIT,
    OURS,
    PLAIN,
    RATIOS,
    SAME_BITS,
    SEARCH,
    Ratio,
    Workload,
)

Row = Mapping[str, Any]


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


class Results:
    """What one run brought together.

    Args:
        rows: Of `measure.measure`.
        copy_bandwidth: Bytes per second, or None.
        extra: By workload, bytes beyond AdamW's states, and chunks.
        checks: Outcomes of `checks.run`.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        copy_bandwidth: float | None,
        extra: Mapping[str, Mapping[str, int]],
        checks: Sequence[Row],
    ) -> None:
        self.rows = {(row["workload"], row["contender"]): row for row in rows}
        self.copy_bandwidth = copy_bandwidth
        self.extra = extra
        self.checks = {check["name"]: check["outcome"] for check in checks}

    def row(self, workload: Workload, contender: str) -> Row | None:
        """A contender's measurements in a workload."""
        return self.rows.get((str(workload), contender))

    def bandwidth_share(self, workload: Workload, contender: str) -> float | None:
        """Bytes that a step has to move, over its time, over what a plain copy moves."""
        row, moved = self.row(workload, contender), workload.bytes_moved(contender)
        if row is None or moved is None or self.copy_bandwidth is None:
            return None
        return moved / statistics.median(row["seconds"]) / self.copy_bandwidth


def figures(results: Results) -> list[Figure]:
    """The whole table."""
    lines = [_ratio(results, ratio, w) for ratio in RATIOS for w in ratio.workloads]
    lines += [_bandwidth(results, workload) for workload in LARGE]
    lines += [_controller(results, LARGE[0], name) for name in (PLAIN, SEARCH)]
    lines.append(_launches(results))
    lines.append(_checked(results, "host synchronisations per step", "0", NO_WAIT))
    lines += [_extra(results, str(workload)) for workload in LARGE]
    lines.append(_checked(results, "two runs, same seed", "the same bits", SAME_BITS))
    return lines


def _ratio(results: Results, ratio: Ratio, workload: Workload) -> Figure:
    ours, rival = results.row(workload, ratio.contender), results.row(workload, ratio.rival)
    name = f"{ratio.name}: {workload}"
    target = f"at most {ratio.target:g}×" if ratio.host else f"at least {ratio.target:g}×"
    if ours is None or rival is None:
        return Figure(name, target, "not measured", None)
    if ratio.host:
        value = median_ratio(ours["host_seconds"], rival["host_seconds"])
        return Figure(name, target, f"{value:.2f}×", value <= ratio.target)
    value = median_ratio(rival["seconds"], ours["seconds"])
    return Figure(name, target, f"{value:.2f}×", value >= ratio.target)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of ratios within one round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _bandwidth(results: Results, workload: Workload) -> Figure:
    share = results.bandwidth_share(workload, PLAIN)
    name, target = f"plain, of copy bandwidth: {workload}", f"at least {BANDWIDTH_TARGET:.0%}"
    if share is None:
        return Figure(name, target, "not measured", None)
    return Figure(name, target, f"{share:.1%}", share >= BANDWIDTH_TARGET)


def _controller(results: Results, workload: Workload, contender: str) -> Figure:
    name = f"controller, of the step's time: {contender}, {workload}"
    target = f"at most {CONTROLLER_TARGET:.0%}"
    row = results.row(workload, contender)
    share = None if row is None else row["controller_share"]
    if share is None:
        return Figure(name, target, "not measured", None)
    return Figure(name, target, f"{share:.1%}", share <= CONTROLLER_TARGET)


def _launches(results: Results) -> Figure:
    counts = [row["launches"] for (_, name), row in results.rows.items() if name in OURS]
    known = [count for count in counts if count is not None]
    name, target = "launches per step, any number of tensors", f"at most {LAUNCHES_TARGET}"
    if not known:
        return Figure(name, target, "not measured", None)
    return Figure(name, target, str(max(known)), max(known) <= LAUNCHES_TARGET)


def _extra(results: Results, workload: str) -> Figure:
    name = f"extra memory beyond AdamW's states: {workload}"
    target = "less than 1 MiB + 8 B per chunk"
    if workload not in results.extra:
        return Figure(name, target, "not measured", None)
    extra = results.extra[workload]
    allowed = FIXED_BYTES + CHUNK_BYTES * extra["chunks"]
    measured = f"{extra['bytes'] / 2**20:.2f} MiB of {allowed / 2**20:.2f}"
    return Figure(name, target, measured, extra["bytes"] < allowed)


def _checked(results: Results, name: str, target: str, needed: Sequence[str]) -> Figure:
    outcomes = [results.checks.get(check, "not run") for check in needed]
    if any(outcome == "failed" for outcome in outcomes):
        return Figure(name, target, "no", False)
    if all(outcome == "passed" for outcome in outcomes):
        return Figure(name, target, "yes", True)
    return Figure(name, target, "not measured", None)


def fake_results() -> Results:
    """Numbers of no card, so that the table can be written where there is none."""
    rows = []
    for workload in {w for ratio in RATIOS for w in ratio.workloads}:
        for i, contender in enumerate(CONTENDERS):
            seconds = [1e-3 * (len(CONTENDERS) - i) * (1 + 0.01 * k) for k in range(5)]
            rows.append(
                {
                    "workload": str(workload),
                    "shapes": workload.shapes,
                    "dtype": workload.dtype,
                    "elements": workload.elements,
                    "tensors": workload.tensors,
                    "contender": contender,
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
    checks = [{"name": n, "outcome": "passed"} for n in (*NO_WAIT, *SAME_BITS)]
    extra = {str(LARGE[0]): {"bytes": 700_000, "chunks": 7600}}
    return Results(rows, 4e12, extra, checks)
