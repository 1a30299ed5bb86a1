"""What the study's rows come to, section by section; every number is computed."""

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.figures import (
    COSINE,
    Logs,
    Measure,
    Series,
    Table,
    area,
    difference,
    estimate,
    final,
    ratio,
    tables,
    together,
)
from bench.machine import RESULTS
from bench.methods import ABLATIONS, METHODS
from bench.rl.methods import METHODS as LEARNERS
from bench.run.rows import Row
from bench.studies.diagnostics import Update, by_task, correlations
from bench.studies.plan import ABLATED_FROM, LISTS, is_a
from bench.studies.registration import deviations, registered
from bench.studies.study_page import Section
from bench.studies.verdicts import verdicts
from bench.tables import (
    NOTHING,
    best_start,
    overview_lines,
    provenance,
    rate_text,
    ratio_text,
    task_lines,
    task_title,
    title_of,
    with_error,
    worst_start,
)
from bench.tasks import TASKS
from bench.tasks.characters import Characters
from bench.tasks.lora import FineTuning

OURS = frozenset(method.title for method in METHODS.values() if method.is_ours)

HOW_TO_READ = (
    "- What is chosen is chosen on seeds A, and what is shown is measured on seeds B, which are "
    "others.",
    "- A ratio is a loss over that of the reference, AdamW with a cosine at its best rate, with "
    "the same seed; below 1 is lower than a well-tuned schedule. 1.040(24) has a standard "
    "error of 0.024, over seeds.",
    "- **All starts**: the geometric mean over the starting rates. **Worst** and **best start**: "
    "at the rate that seeds A chose. **Area**: of the held-out curve's height, in the same way.",
    "- **Reached**: the share of the runs whose held-out loss comes down to the target, the "
    "constant rate's final loss at its best; **time**: the median share of the run's steps until "
    "then.",
    "- † marks runs that diverged; they count as untrained. A difference of less than two standard "
    "errors is a tie.",
)


@dataclass(frozen=True)
class Study:
    rows: list[Row]
    traces: list[Update]
    about: str  # the day, the command and how long it took

    @property
    def tables(self) -> list[Table]:
        """Of the methods, without the ablations."""
        return tables([row for row in self.rows if row.method not in ABLATIONS], is_a)

    @property
    def ablated(self) -> list[Table]:
        """Of the ablations and the whole laws, from the ablations' rates."""
        laws = {method.whole for method in ABLATIONS.values()}
        names = {row.task for row in self.rows if row.method in ABLATIONS}
        kept = [
            row
            for row in self.rows
            if row.task in names
            and (row.method in ABLATIONS or row.method in laws | {"cosine"})
            and row.rate in ABLATED_FROM
        ]
        return tables(kept, is_a)


def report(study: Study, pictures: Mapping[str, Path]) -> list[Section]:
    every = study.tables
    return [
        Section("Does it work? The study", _opening(study), level=1),
        Section("What was said before, and what came out", verdicts(every)),
        *_headlines(every, pictures),
        *_by_task(every, pictures),
        *_ablations(study.ablated),
        *_diagnostics(study.traces, pictures),
        *_returns(),
        Section("Deviations from the protocol", deviations(study.rows)),
        Section("How to read it", HOW_TO_READ),
    ]


def _opening(study: Study) -> list[str]:
    return [
        "With AdaptiveRL instead of a usual schedule, does training end lower, or sooner, or with "
        "less tuning? The tasks, methods, seeds, the estimator and what would count as failing "
        f"were written down [before](../bench/studies/protocol.md) ({registered()}).",
        f"{provenance(study.rows)} {study.about}".strip(),
    ]


# The headlines ------------------------------------------------------------------------------------


def _headlines(every: Sequence[Table], pictures: Mapping[str, Path]) -> list[Section]:
    sections = []
    there = {series.method for table in every for series in table.series}
    for names in LISTS.values():
        methods = [name for name in METHODS if name in names and name in there]
        shown = [t for t in every if all(t.line(Series(name)) for name in methods)]
        if shown and len(methods) > 1:
            sections.append(_headline(shown, methods))
    drawn = Section(
        "From any start, the worst and the best",
        picture=pictures.get("overview"),
        caption="Final held-out loss over the best-tuned cosine's, geometric mean over the tasks "
        "of the first table below; bars are standard errors over seeds.",
        ours=OURS,
    )
    return [drawn, *sections]


def _headline(every: Sequence[Table], methods: Sequence[str]) -> Section:
    lines = []
    for name in methods:
        series = Series(name)
        figures: list[Callable[[Table, Series], Logs | None]]
        figures = [Table.over_all_starts, worst_start, best_start, areas, areas_from_best]
        ratios = [ratio_text(together([figure(t, series) for t in every])) for figure in figures]
        counts = [table.diverged(series) for table in every]
        diverged = f"{sum(c for c, _ in counts)} of {sum(of for _, of in counts)}"
        lines.append([title_of(series), *ratios, *_times(every, series), diverged])
    names = ", ".join(table.task for table in every)
    headings = ["method", "all starts", "worst start", "best start"]
    headings += ["area, all starts", "area, best start", "reached", "time", "diverged"]
    return Section(
        f"{len(methods)} methods over {_counted(len(every), 'task')}",
        [f"Geometric means over {names}."],
        headings,
        lines,
        level=3,
        ours=OURS,
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def areas(table: Table, series: Series) -> Logs | None:
    return table.over_all_starts(series, area) if _has_curves(table) else None


def areas_from_best(table: Table, series: Series) -> Logs | None:
    return table.from_start(series, min, area) if _has_curves(table) else None


def _has_curves(table: Table) -> bool:
    return all(row.curve for cell in table.cells.values() for row in cell.runs.values())


def _times(every: Sequence[Table], series: Series) -> list[str]:
    """The share of runs that reach their task's target, and the median time until then."""
    times = []
    for table in every:
        found = table.times(series) if _has_curves(table) else None
        if found is None:
            return [NOTHING, NOTHING]
        times += found
    if not times:
        return [NOTHING, NOTHING]
    reached = sum(map(math.isfinite, times)) / len(times)
    median = statistics.median(times)
    return [f"{100 * reached:.0f} %", f"{median:.2f}" if math.isfinite(median) else "never"]


# Task by task -------------------------------------------------------------------------------------


def _by_task(every: Sequence[Table], pictures: Mapping[str, Path]) -> list[Section]:
    rates = Section(
        "Final loss against the starting rate",
        picture=pictures.get("rates"),
        caption="A flat line does not care where it starts. Means over seeds B.",
    )
    curves = Section(
        "Held-out loss while training",
        picture=pictures.get("curves"),
        caption="Each method from its best start, chosen on seeds A. The median over seeds B, and "
        "a band from the lowest to the highest.",
    )
    everywhere = [
        Section(f"{name}, task by task", (), *overview_lines(every, figure), ours=OURS)
        for name, figure in (("All starts", Table.over_all_starts), ("Worst start", worst_start))
    ]
    return [rates, curves, *everywhere, *map(_task, every)]


def _task(table: Table) -> Section:
    headings, lines = task_lines(table)
    *front, diverged = headings
    more = ["area, all starts", "reached", "time"]
    is_language = isinstance(TASKS.get(table.task), (Characters, FineTuning))
    if is_language:
        more.append("perplexity, best start")
    full = []
    for line, series in zip(lines, table.series, strict=True):
        added = [ratio_text(ratio(areas(table, series))), *_times([table], series)]
        if is_language:
            added.append(_perplexity(table, series))
        full.append([*line[:-1], *added, line[-1]])
    headings = [*front, *more, diverged]
    return Section(task_title(table), _reference(table), headings, full, level=3, ours=OURS)


def _reference(table: Table) -> list[str]:
    """It may be at a rate that nobody else starts from, and so in no column."""
    rates = [rate for fold in table.folds if (rate := table.reference_rate(fold)) is not None]
    if not rates:
        return []
    cell = table.cells[Series(COSINE), rates[0]]
    if not cell.runs:
        return []
    ended = with_error(cell.mean(), 4)
    return [f"The reference, the cosine from {rate_text(rates[0])}, ends at {ended}."]


def _perplexity(table: Table, series: Series) -> str:
    """Per character, from the best start."""
    runs = table.runs_from(series, min)
    return with_error(estimate(math.exp(final(row)) for row in runs), 3) if runs else NOTHING


# Ablations ----------------------------------------------------------------------------------------


def _ablations(every: Sequence[Table]) -> list[Section]:
    """Each part of a law: the loss without it over the loss with it."""
    if not every:
        return []
    lines = []
    for name, method in ABLATIONS.items():
        logs = [_over(table, Series(name), Series(method.whole), final) for table in every]
        cells = [ratio_text(ratio(one)) for one in logs]
        area_of = [_over(table, Series(name), Series(method.whole), area) for table in every]
        counts = [table.diverged(Series(name)) for table in every]
        diverged = f"{sum(c for c, _ in counts)} of {sum(of for _, of in counts)}"
        row = [method.title, *cells, ratio_text(together(logs)), ratio_text(together(area_of))]
        lines.append([*row, diverged])
    headings = ["law: without a part", *(table.task for table in every), "together", "area"]
    text = (
        "A law without one of its parts over the whole law, seed by seed, over the starts 1e-4, "
        "1e-3 and 1e-2. Above 1: the part lowers the loss; below 1: it would end lower without it.",
    )
    return [Section("Ablations: what each part is worth", text, [*headings, "diverged"], lines)]


def _over(table: Table, one: Series, other: Series, measure: Measure) -> Logs | None:
    logs = [table.over_all_starts(series, measure) for series in (one, other)]
    return difference(*logs)


# Diagnostics --------------------------------------------------------------------------------------


def _diagnostics(traces: Sequence[Update], pictures: Mapping[str, Path]) -> list[Section]:
    if not traces:
        return []
    lines = []
    for task, updates in by_task(traces).items():
        found = correlations(updates)
        signs = [f"{value:+.2f}" if math.isfinite(value) else NOTHING for value in found[:3]]
        lines.append([task, *signs, str(found.updates)])
    text = (
        "The loss law from 1e-3, first seed B. §8 says that the first two are positive: the law "
        "makes them so, unless a bound or a cap binds. The third is what it does not make: whether "
        "an improvement follows when α has risen.",
    )
    headings = ["task", "Δr, Δ log α", "max(Δ̃ℓ, 0), −Δ log α", "Δ log α, the next Δr", "updates"]
    return [
        Section("Diagnostics: do the knobs answer the sensors?", text, headings, lines),
        Section(
            "α, μ and σ with the loss",
            picture=pictures.get("knobs"),
            level=3,
            caption="One run each.",
        ),
        Section("The scatters of §8", picture=pictures.get("scatters"), level=3),
    ]


# Reinforcement learning ---------------------------------------------------------------------------


RETURN = ("task", "steps", "method", "rate")
"""What rows of a mean return have in common"""


def _returns(folder: Path = RESULTS) -> list[Section]:
    """The newest file of `bench.rl`'s rows: a final return each, higher being better.

    What was chosen by is in files of other names, ``rl-development-…``.
    """
    files = sorted(folder.glob("rl-[0-9]*.csv"))
    if not files:
        return []
    with files[-1].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {*RETURN, "seed", "final"} <= rows[0].keys():
        return []
    lines = []
    for key in dict.fromkeys(tuple(row[name] for name in RETURN) for row in rows):
        finals = [float(r["final"]) for r in rows if tuple(r[name] for name in RETURN) == key]
        mean, several = statistics.fmean(finals), len(finals) > 1
        error = statistics.stdev(finals) / math.sqrt(len(finals)) if several else math.nan
        task, steps, method, rate = key
        title = LEARNERS[method].title if method in LEARNERS else method
        figures = [f"{mean:.1f}", f"{error:.1f}", f"{min(finals):.1f}", str(len(finals))]
        lines.append([task, f"{int(steps):,}", title, rate, *figures])
    headings = ["task", "steps", "method", "rate", "return", "standard error", "lowest", "seeds"]
    text = (f"PPO; higher is better. Rows: `bench/results/{files[-1].name}`.",)
    return [Section("Reinforcement learning", text, headings, lines)]
