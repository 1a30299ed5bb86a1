"""What a card did, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.speed.figures import Results, figures
from bench.speed.shapes import CARD_WORKLOADS, Workload
from bench.speed.tables import Cell, columns, duration, ratio, share, table

MET = {True: "yes", False: "**no**", None: "–"}
SANITIZERS = ("memcheck", "racecheck")  # tools of compute-sanitizer that go over a small case
VERSIONS = ("torch", "triton", "cuda", "driver", "python", "adaptiverl", "commit")
LEGEND = (
    "Time: the device's, median, contenders in turn, the launches queued while the device was "
    "still busy; ratios are medians of ratios within a round. Host time: until the call returns. "
    "Launches: of `step` alone; telling the loss is one more. "
    "Controller: its share of the device's time. Bandwidth: the bytes that "
    "one pass over the tensors must move (two over the gradient with noise or clipping), over the "
    "time."
)


def markdown(
    results: Results, about: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]
) -> str:
    copy = results.copy_bandwidth
    speed = "not measured" if copy is None else f"{copy / 1e12:.2f} TB/s read and written"
    versions = ", ".join(f"{key} {about[key]}" for key in VERSIONS if key in about)
    reached = [(f.name, f.target, f.measured, MET[f.met]) for f in figures(results)]
    parts = [
        f"# {about['card']}, {about['date']}",
        f"{versions}. A plain copy: {speed}. `bench/gpu.sh`",
        "## Figures to reach",
        table(("figure", "target", "measured", "met"), reached),
        "## Checks",
        _checks(checks, about.get("sanitizer", {})),
    ]
    for workload in CARD_WORKLOADS:
        reason = about.get("left_out", {}).get(str(workload))
        rows = [row for row in results.rows if row["workload"] == str(workload)]
        parts.append(f"## {workload}")
        if reason is not None or not rows:
            parts.append(f"Not measured: {reason}." if reason else "Not measured.")
        else:
            parts.append(f"{workload.elements:,} numbers in {workload.tensors:,} tensors.")
            parts.append(columns(_cells(results, workload), rows))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _cells(results: Results, workload: Workload) -> dict[str, Cell]:
    return {
        "contender": lambda row: row["contender"],
        "time": lambda row: duration(row["median_s"]),
        "over torch fused's": lambda row: ratio(row["ratio_to_fused"]),
        "of copy bandwidth": lambda row: share(results.bandwidth_share(workload, row["contender"])),
        "host time": lambda row: duration(statistics.median(row["host_seconds"])),
        "launches": lambda row: "–" if row["launches"] is None else str(row["launches"]),
        "controller": lambda row: share(row["controller_share"]),
    }


def _checks(checks: Sequence[Mapping[str, Any]], sanitizer: Mapping[str, str]) -> str:
    rows = []
    for check in checks:
        # The last line of a message is what went wrong.
        why = (str(check.get("message", "")).strip().splitlines() or [""])[-1].replace("|", "\\|")
        took = f"{check.get('seconds', 0):.1f} s"
        rows.append((check["name"].replace("_", " "), check["outcome"], took, why))
    for tool in SANITIZERS:
        rows.append((f"{tool} on a small case", sanitizer.get(tool, "not run"), "", ""))
    return table(("check", "outcome", "took", "why"), rows)
