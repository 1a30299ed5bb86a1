"""From seconds to medians, ratios, Markdown tables and files."""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.speed.names import FUSED

Row = dict[str, Any]
Cell = Callable[[Row], str]


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its median, its spread, and its ratios to others of its workload.

    Ratios are medians of ratios within one round: a machine that slows down slows both sides.
    """
    known = {(row["workload"], row["of"], row["contender"]): row["seconds"] for row in rows}
    done = []
    for row in rows:
        workload, of, name, seconds = (row[k] for k in ("workload", "of", "contender", "seconds"))
        fifths = statistics.quantiles(seconds, n=5, method="inclusive")
        fused = known.get((workload, of, FUSED))
        rivals = {rival: known.get((workload, of, rival)) for rival in row["rivals"]}
        same = [key for key in known if key[::2] == (workload, name) and key[1] != of]
        others = [] if of else [known[key] for key in same]
        ratios = {
            "median_s": statistics.median(seconds),
            "p20_s": fifths[0],
            "p80_s": fifths[-1],
            "ratio_to_fused": median_ratio(seconds, fused) if fused else None,
            "speedups": {r: median_ratio(s, seconds) for r, s in rivals.items() if s},
            "ratio_to_other": median_ratio(seconds, others[0]) if others else None,
        }
        done.append(row | ratios)
    return done


def joined(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """Rows that were measured twice as one: of each round the geometric mean of the two times."""
    return [
        row
        | {
            key: [math.sqrt(a * b) for a, b in zip(row[key], again[key], strict=True)]
            for key in ("seconds", "host_seconds")
        }
        for row, again in zip(first, second, strict=True)
    ]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


STEP_COLUMNS: dict[str, Cell] = {
    "one step": lambda row: row["contender"] + (f" @ {row['of']}" if row["of"] else ""),
    "median": lambda row: duration(row["median_s"]),
    "20 % to 80 %": lambda row: f"{duration(row['p20_s'])} to {duration(row['p80_s'])}",
    "time / fused": lambda row: ratio(row["ratio_to_fused"]),
    "faster than its stock rival": lambda row: " / ".join(
        f"{speedup:.2f}×" for speedup in row["speedups"].values()
    ),
}
OTHER_COLUMN: dict[str, Cell] = {"time / other's": lambda row: ratio(row["ratio_to_other"])}


def step_table(rows: Sequence[Row]) -> str:
    return columns(STEP_COLUMNS | (OTHER_COLUMN if any(row["of"] for row in rows) else {}), rows)


def columns(cells: Mapping[str, Cell], rows: Sequence[Row]) -> str:
    return table(tuple(cells), [[cell(row) for cell in cells.values()] for row in rows])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1e}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def duration(seconds: float) -> str:
    scaled, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "µs")
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"


def size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count} B" if count < 4096 else f"{count / 2**20:.2f} MiB"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def save(folder: Path, name: str, data: Any, text: str) -> tuple[Path, Path]:
    """Write the numbers as JSON and the tables as Markdown; a run of the same name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.json", folder / f"{name}.md"
    paths[0].write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(text, encoding="utf-8")
    return paths
