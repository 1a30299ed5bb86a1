"""Results as Markdown and JSON, named by card and date."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.figures import Figure, Results, figures
from bench.gpu.plan import CONTENDERS, FUSED, SANITIZERS, workloads

MET = {True: "yes", False: "**no**", None: "–"}
HEADINGS = (
    "contender",
    "time",
    "over torch fused's",
    "of copy bandwidth",
    "in a CUDA graph",
    "host time",
    "launches",
    "temporary",
    "controller",
)


def markdown(
    results: Results, about: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]
) -> str:
    """The whole report.

    Args:
        results: What was measured.
        about: Card, versions, commit, date; and ``left_out``, ``sanitizer`` if there are.
        checks: Outcomes of `checks.run`.
    """
    parts = [
        f"# {about.get('card', 'no card')}, {about.get('date', 'no date')}",
        _provenance(results, about),
        "## Figures to reach",
        _figures(figures(results)),
        "## Checks",
        _checks(checks, about.get("sanitizer", {})),
    ]
    for workload in workloads():
        name = str(workload)
        reason = about.get("left_out", {}).get(name)
        parts.append(f"## {name}")
        if reason is not None:
            parts.append(f"Not measured: {reason}.")
        elif any((name, contender) in results.rows for contender in CONTENDERS):
            parts.append(f"{workload.elements:,} numbers in {workload.tensors:,} tensors.")
            parts.append(_contenders(results, workload))
        else:
            parts.append("Not measured.")
    parts.append(
        "Time: the device's, median, contenders in turn, the launches queued while the device was "
        "still busy; ratios are medians of ratios within a round. Host time: until the call "
        "returns. Launches: of `step` alone; telling the loss is one more. Temporary: peak memory "
        "of one step beside what is kept. Controller: its share of the device's time. Bandwidth: "
        "the bytes that one pass over the tensors must move (two over the gradient with noise or "
        "clipping), over the time."
    )
    return "\n\n".join(parts) + "\n"


def _provenance(results: Results, about: Mapping[str, Any]) -> str:
    copy = results.copy_bandwidth
    speed = "not measured" if copy is None else f"{copy / 1e12:.2f} TB/s read and written"
    keys = ("torch", "triton", "cuda", "driver", "python", "adaptiverl", "commit")
    versions = ", ".join(f"{key} {about[key]}" for key in keys if key in about)
    return f"{versions}. A plain copy: {speed}. `bench/gpu.sh`"


def _figures(lines: Sequence[Figure]) -> str:
    rows = [(f.name, f.target, f.measured, MET[f.met]) for f in lines]
    return table(("figure", "target", "measured", "met"), rows)


def _checks(checks: Sequence[Mapping[str, Any]], sanitizer: Mapping[str, str]) -> str:
    rows = [
        (c["name"].replace("_", " "), c["outcome"], f"{c.get('seconds', 0):.1f} s", _last(c))
        for c in checks
    ]
    for tool in SANITIZERS:
        rows.append((f"{tool} on a small case", sanitizer.get(tool, "not run"), "", ""))
    return table(("check", "outcome", "took", "why"), rows)


def _last(check: Mapping[str, Any]) -> str:
    """The last line of a message, which is what went wrong."""
    lines = str(check.get("message", "")).strip().splitlines()
    return lines[-1].replace("|", "\\|") if lines else ""


def _contenders(results: Results, workload: Any) -> str:
    rows = []
    fused = results.row(workload, FUSED)
    for name in CONTENDERS:
        row = results.row(workload, name)
        if row is None:
            continue
        ratio = "–"
        if fused is not None:
            pairs = zip(row["seconds"], fused["seconds"], strict=True)
            ratio = f"{statistics.median(a / b for a, b in pairs):.2f}"
        share = results.bandwidth_share(workload, name)
        rows.append(
            (
                name,
                duration(row["seconds"]),
                ratio,
                "–" if share is None else f"{share:.0%}",
                duration(row["graph_seconds"]) if row["graph_seconds"] else row["graph_error"],
                duration(row["host_seconds"]),
                "–" if row["launches"] is None else str(row["launches"]),
                size(row["temporary_bytes"]),
                "–" if row["controller_share"] is None else f"{row['controller_share']:.1%}",
            )
        )
    return table(HEADINGS, rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, everything but the first column to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def duration(seconds: Sequence[float]) -> str:
    """The median, in a unit that suits it."""
    microseconds = statistics.median(seconds) * 1e6
    return f"{microseconds:.1f} µs" if microseconds < 1000 else f"{microseconds / 1e3:.3f} ms"


def size(count: int | None) -> str:
    """Bytes, in a unit that suits them."""
    if count is None:
        return "–"
    return f"{count} B" if count < 4096 else f"{count / 2**20:.2f} MiB"


def save(
    results: Results,
    about: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    folder: Path,
) -> tuple[Path, Path]:
    """Write ``<card>-<date>.json`` and ``.md``; a run of the same day and card replaces them."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{slug(str(about.get('card', 'no card')))}-{about.get('date', 'no-date')}"
    data = {
        **about,
        "copy_bandwidth": results.copy_bandwidth,
        "figures": [vars(figure) for figure in figures(results)],
        "checks": list(checks),
        "extra_memory": dict(results.extra),
        "rows": list(results.rows.values()),
    }
    paths = folder / f"{stem}.json", folder / f"{stem}.md"
    paths[0].write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(results, about, checks), encoding="utf-8")
    return paths


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
