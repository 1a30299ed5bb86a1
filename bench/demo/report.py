"""What a run comes to: the table, the sentences under it, and every number as JSON.

Every sentence is made from the numbers of this run; none is written beforehand.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.demo.measure import Measures, best, measure
from bench.demo.methods import Adaptive, ConstantAdamW, CosineAdamW
from bench.demo.text import Text
from bench.demo.train import Run, Settings

# Clocks differ by as much from one minute to the next on a shared machine.
SAME_SPEED = 0.03


@dataclass(frozen=True)
class Report:
    """A finished demo.

    Attributes:
        settings: of the runs.
        text: what was learned from.
        parameters: trainable numbers in the model.
        runs: one per method, in order.
        target: the constant rate's best held-out loss, nats per character.
        measures: one per run, in the same order.
        command: what to type to make this report again.
        seconds: the whole demo's wall clock.
        versions: of what it ran on.
    """

    settings: Settings
    text: Text
    parameters: int
    runs: list[Run]
    target: float
    measures: list[Measures]
    command: str
    seconds: float
    versions: dict[str, str]

    @property
    def rows(self) -> dict[str, Measures]:
        """The measures by the method's name."""
        return {run.method: row for run, row in zip(self.runs, self.measures, strict=True)}


def make_report(
    settings: Settings,
    text: Text,
    parameters: int,
    runs: list[Run],
    command: str,
    seconds: float,
) -> Report:
    """Measure the runs against the constant rate's best held-out loss."""
    constant = next(run for run in runs if run.method == ConstantAdamW.name)
    target = best(constant.held_out)
    return Report(
        settings=settings,
        text=text,
        parameters=parameters,
        runs=runs,
        target=target,
        measures=[measure(run, target) for run in runs],
        command=command,
        seconds=seconds,
        versions=versions(settings.device),
    )


def versions(device: str) -> dict[str, str]:
    """Name what the numbers depend on: the machine and the packages."""
    name = (
        torch.cuda.get_device_name(device)
        if torch.device(device).type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )
    packages = ("adaptiverl", "torch", "numpy", "matplotlib")
    return {
        "device": f"{device} ({name})",
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


HEADINGS = (
    "",
    "final held-out loss",
    "area under the curve / steps",
    "steps to {target}",
    "seconds per step",
)


def headings(report: Report) -> list[str]:
    """Return the table's column headings."""
    return [heading.format(target=loss_text(report.target)) for heading in HEADINGS]


def cells(report: Report) -> list[list[str]]:
    """Return the table's rows as text, one per method."""
    return [
        [
            name,
            loss_text(row.final),
            loss_text(row.area),
            "never" if row.steps_to_target is None else str(row.steps_to_target),
            f"{row.seconds_per_step:.4f}",
        ]
        for name, row in report.rows.items()
    ]


def loss_text(loss: float) -> str:
    """Format a loss; one that is not finite is called what it is."""
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"


def table(report: Report) -> str:
    """Lay the table out for a terminal."""
    rows = [headings(report), *cells(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def summary(report: Report) -> list[str]:
    """Say who was best on what and by how much, how AdaptiveAdamW did, and what its knobs did."""
    rows = report.rows
    verdicts = [
        _rank("Final held-out loss", rows, lambda row: row.final),
        _rank("Area under the curve", rows, lambda row: row.area),
        _first_there(rows, report.target),
        _fastest(rows),
    ]
    return [*verdicts, _balance(rows), *_knobs(report)]


def _rank(what: str, rows: dict[str, Measures], value: Callable[[Measures], float]) -> str:
    order = sorted(rows, key=lambda name: _comparable(value(rows[name])))
    winner, others = order[0], order[1:]
    lowest = value(rows[winner])
    if not math.isfinite(lowest):
        return f"{what}: every method diverged."
    return (
        f"{what}: {winner} is lowest with {lowest:.4f}; "
        + ", ".join(f"{name} {_behind(value(rows[name]), lowest)}" for name in others)
        + "."
    )


def _comparable(number: float | None) -> float:
    """Return a number to sort by: the lower the better, what is not finite or absent last."""
    return number if number is not None and math.isfinite(number) else math.inf


def _behind(number: float, lowest: float) -> str:
    if not math.isfinite(number):
        return "diverged"
    difference = number - lowest
    return "equals it" if round(difference, 4) == 0 else f"is {difference:.4f} above"


def _first_there(rows: dict[str, Measures], target: float) -> str:
    reached = {name: row.steps_to_target for name, row in rows.items()}
    if reached[ConstantAdamW.name] == 0:
        return f"The constant rate never came below its start, {loss_text(target)}."
    there = sorted((s, name) for name, s in reached.items() if s is not None)
    never = [name for name, steps in reached.items() if steps is None]
    parts = [f"{name} after {steps} steps" for steps, name in there]
    parts += [f"{name} never" for name in never]
    return f"The constant rate's best loss, {loss_text(target)}: {', '.join(parts)}."


def _fastest(rows: dict[str, Measures]) -> str:
    order = sorted(rows, key=lambda name: rows[name].seconds_per_step)
    low, high = (rows[name].seconds_per_step for name in (order[0], order[-1]))
    if high <= low * (1 + SAME_SPEED):
        return f"Seconds per step: within {high / low - 1:.1%} of each other."
    slower = ", ".join(
        f"{name} takes {rows[name].seconds_per_step / low - 1:.1%} longer" for name in order[1:]
    )
    return f"Seconds per step: {order[0]} is fastest; {slower}.{_doubt(rows)}"


def _doubt(rows: dict[str, Measures]) -> str:
    """The two AdamW runs do the same work: what they differ by is the machine's, not theirs."""
    twins = [rows[name].seconds_per_step for name in (ConstantAdamW.name, CosineAdamW.name)]
    noise = max(twins) / min(twins) - 1
    if noise <= SAME_SPEED:
        return ""
    return (
        f" The two AdamW runs do the same work, so the {noise:.1%} between them is the machine's "
        "other business: no difference of that size means anything here."
    )


def _balance(rows: dict[str, Measures]) -> str:
    """Count AdaptiveAdamW's wins and losses against each of the others, at the shown precision."""
    ours = rows[Adaptive.name]
    sentences = []
    for name, other in rows.items():
        if name == Adaptive.name:
            continue
        outcome: dict[str, list[str]] = {"ahead": [], "behind": [], "level": []}
        for label, mine, theirs in (
            ("final loss", ours.final, other.final),
            ("area", ours.area, other.area),
            ("steps to the target", ours.steps_to_target, other.steps_to_target),
        ):
            outcome[_compare(mine, theirs)].append(label)
        said = [f"{how} on {', '.join(what)}" for how, what in outcome.items() if what]
        sentences.append(f"against {name} it is {'; '.join(said)}")
    return f"{Adaptive.name}: {'. '.join(_capitalise_rest(sentences))}."


def _capitalise_rest(sentences: list[str]) -> list[str]:
    return [sentences[0], *(s[0].upper() + s[1:] for s in sentences[1:])]


def _compare(mine: float | None, theirs: float | None) -> str:
    a, b = (round(_comparable(number), 4) for number in (mine, theirs))
    if a == b:
        return "level"
    return "ahead" if a < b else "behind"


def _knobs(report: Report) -> list[str]:
    trace = next(run.trace for run in report.runs if run.method == Adaptive.name)
    if not trace["step"]:
        return ["The run was too short for the controller to move a knob."]
    rates, momenta, noises = trace["lr"], trace["momentum"], trace["noise"]
    drawn = sum(noise > 0 for noise in noises)
    return [
        f"Its knobs over {len(rates)} updates: α from {report.settings.lr:.2e} to {rates[-1]:.2e} "
        f"(lowest {min(rates):.2e}, highest {max(rates):.2e}); μ between {min(momenta):.3f} and "
        f"{max(momenta):.3f}, {momenta[-1]:.3f} at the end; σ "
        + (f"above zero in {drawn}, at most {max(noises):.2g}." if drawn else "never left zero.")
    ]


def as_json(report: Report) -> str:
    """Return every number of the report as strict JSON; what is not finite becomes ``null``."""
    text = report.text
    content = {
        "command": report.command,
        "seconds": report.seconds,
        "settings": asdict(report.settings),
        "text": {
            "source": text.source,
            "sha256": text.sha256,
            "train_characters": len(text.train),
            "held_out_characters": len(text.held_out),
            "vocabulary": text.vocabulary,
            "replaced": text.replaced,
        },
        "parameters": report.parameters,
        "versions": report.versions,
        "constant_rate_best": report.target,
        "measures": {name: asdict(row) for name, row in report.rows.items()},
        "runs": [asdict(run) for run in report.runs],
        "printed": {"table": table(report).splitlines(), "summary": summary(report)},
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(report: Report, path: Path) -> None:
    """Write :func:`as_json` to ``path``."""
    path.write_text(as_json(report), encoding="utf-8")
