"""From seconds to rows, a Markdown table and files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.step.contenders import CONTENDERS, FUSED
from bench.step.machine import ROOT, provenance, slug
from bench.step.measure import Measurement

RESULTS = ROOT / "bench" / "results"
HEADINGS = ("one step", "median", "20 % to 80 %", "time / fused", "faster than its stock rival")
BASELINE_COLUMN = HEADINGS.index("time / fused")

Row = dict[str, Any]


def make_rows(measurement: Measurement) -> list[Row]:
    """One row per contender; each carries all that its numbers depend on.

    Ratios are medians of ratios within one round, so that a machine that slows down for a while
    slows both sides of them.
    """
    shared = {
        **provenance(measurement.device),
        "parameters": measurement.parameters,
        "elements": measurement.elements,
        "tensors": measurement.tensors,
        "rounds": measurement.rounds,
        "load": measurement.load,
    }
    return [
        {
            "name": name,
            **_times(seconds),
            "ratio_to_fused": _ratio(seconds, measurement.seconds[FUSED]),
            "speedups": {
                rival: _ratio(measurement.seconds[rival], seconds)
                for rival in CONTENDERS[name].rivals
            },
            "sigma": measurement.sigma[name],
            **shared,
            "seconds": seconds,
        }
        for name, seconds in measurement.seconds.items()
    ]


def _times(seconds: list[float]) -> dict[str, float]:
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return {"median_s": statistics.median(seconds), "p20_s": fifths[0], "p80_s": fifths[-1]}


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def markdown(rows: list[Row], command: str) -> str:
    """The table as Markdown, with what it was measured on and how to measure it again."""
    lines = [_line(HEADINGS), _line(("---", *["---:"] * (len(HEADINGS) - 1)))]
    lines += [_line(cells(row)) for row in rows]
    first = rows[0]
    about = (
        f"{first['elements']:,} float32 parameters in {first['tensors']} tensors, "
        f"{first['rounds']} rounds; {first['device']}, CPU threads: {first['threads']}, "
        f"load average {first['load']:.1f} before; torch {first['torch']}, "
        f"Python {first['python']}, adaptiverl {first['adaptiverl']} at {first['commit']}, "
        f"{first['date']}. `{command}`"
    )
    return "\n".join([*lines, "", about, ""])


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of `HEADINGS`."""
    speedups = " / ".join(f"{speedup:.2f}×" for speedup in row["speedups"].values())
    spread = f"{_duration(row['p20_s'])} to {_duration(row['p80_s'])}"
    ratio = row["ratio_to_fused"]
    return (
        row["name"],
        _duration(row["median_s"]),
        spread,
        f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.1e}",
        speedups,
    )


def _line(texts: tuple[str, ...]) -> str:
    return f"| {' | '.join(texts)} |"


def _duration(seconds: float) -> str:
    milliseconds = seconds * 1e3
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.0f} µs"
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def save(rows: list[Row], text: str, folder: Path = RESULTS) -> list[Path]:
    """Write the rows as JSON and the table as Markdown, named by machine and date."""
    first = rows[0]
    size = "" if first["parameters"] == "gpt2-small" else f"{first['parameters']}-"
    machine = slug(f"{first['device']} {first['threads']} threads")
    stem = folder / f"step-{size}{machine}-{first['date']}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [stem.parent / f"{stem.name}.json", stem.parent / f"{stem.name}.md"]
    paths[0].write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(text, encoding="utf-8")
    return paths
