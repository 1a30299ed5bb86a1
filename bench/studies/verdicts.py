"""The protocol's sentences on what counts as better and as failing, each with its answer."""

import math
from collections.abc import Callable, Sequence

from bench.figures import Estimate, Logs, Series, Table, area, difference, together
from bench.methods import METHODS
from bench.studies.plan import NEW
from bench.tables import title_of, with_error

FINDERS = ("range-test", "alignment")
WORST = 1.2
DIVERGED = 1 / 50

Figure = Callable[[Table, Series], Logs | None]


def verdicts(every: Sequence[Table]) -> list[str]:
    there = {series.method for table in every for series in table.series}
    ours = [n for n, method in METHODS.items() if method.is_ours and n in there]
    others = [n for n, method in METHODS.items() if not method.is_ours and n in there]
    finders = [name for name in FINDERS if name in there]
    if not ours or "cosine" not in others:
        return ["- No answer: these rows lack the cosine or every method of ours."]
    return [
        f"- **Less tuning** (over all starts, a search beats every method that is not ours): "
        f"{_beats(every, finders, others, all_starts)}",
        f"- **Lower** (from its best start, below the best-tuned cosine): "
        f"{_below(every, ours, best)}",
        f"- **Sooner** (over all starts, a smaller area than every method that is not ours): "
        f"{_beats(every, ours, others, all_areas)}",
        f"- **Sooner** (from its best start, a smaller area than the reference's): "
        f"{_below(every, ours, best_areas)}",
        f"- **It failed if** none of ours is better than the cosine from the same starts: "
        f"{_failed(not _winners(every, ours, ['cosine'], all_starts))}",
        f"- **It failed if** Prodigy with a cosine is better than both searches: "
        f"{_failed(_prodigy_wins(every, finders))}",
        f"- **It failed if** a search's worst start over the new tasks is above {WORST}: "
        f"{_worst(every, finders)}",
        f"- **It failed if** more than one in fifty of our runs diverges: {_diverged(every, ours)}",
    ]


def all_starts(table: Table, series: Series) -> Logs | None:
    return table.over_all_starts(series)


def all_areas(table: Table, series: Series) -> Logs | None:
    return table.over_all_starts(series, area)


def best(table: Table, series: Series) -> Logs | None:
    return table.from_start(series, min)


def best_areas(table: Table, series: Series) -> Logs | None:
    return table.from_start(series, min, area)


def against(every: Sequence[Table], one: str, other: str, figure: Figure) -> Estimate | None:
    """The geometric mean of one method over another, on the tasks that both have."""
    logs = [difference(figure(t, Series(one)), figure(t, Series(other))) for t in every]
    return together([log for log in logs if log is not None])


def is_below_one(estimate: Estimate | None) -> bool:
    """By more than two standard errors; not where the error is unknown."""
    return estimate is not None and estimate.value + 2 * estimate.error < 1


def _winners(
    every: Sequence[Table], ours: Sequence[str], others: Sequence[str], figure: Figure
) -> list[str]:
    """Those of ours that are better than each of the others."""
    return [
        one
        for one in ours
        if all(is_below_one(against(every, one, other, figure)) for other in others)
    ]


def _beats(
    every: Sequence[Table], ours: Sequence[str], others: Sequence[str], figure: Figure
) -> str:
    winners = _winners(every, ours, others, figure)
    if winners:
        return f"**holds** for {_names(winners)}."
    closest = []
    for one in ours:
        unbeaten = [o for o in others if not is_below_one(against(every, one, o, figure))]
        closest.append((len(unbeaten), one, unbeaten))
    if not closest:
        return "no answer."
    _, one, unbeaten = min(closest)
    ratios = [f"{title_of(Series(o))}: {_said(against(every, one, o, figure))}" for o in unbeaten]
    return f"**does not hold**. {title_of(Series(one))} does not beat {'; '.join(ratios)}."


def _below(every: Sequence[Table], ours: Sequence[str], figure: Figure) -> str:
    ratios = {
        one: together([log for t in every if (log := figure(t, Series(one))) is not None])
        for one in ours
    }
    winners = [one for one, estimate in ratios.items() if is_below_one(estimate)]
    if winners:
        return f"**holds** for {', '.join(f'{_names([w])} ({_said(ratios[w])})' for w in winners)}."
    known = {one: estimate for one, estimate in ratios.items() if estimate is not None}
    if not known:
        return "no answer."
    lowest = min(known, key=lambda one: known[one].value)
    return f"**does not hold**. The lowest is {_names([lowest])}, {_said(known[lowest])}."


def _prodigy_wins(every: Sequence[Table], finders: Sequence[str]) -> bool:
    return bool(finders) and all(
        is_below_one(against(every, "prodigy", one, all_starts)) for one in finders
    )


def _worst(every: Sequence[Table], finders: Sequence[str]) -> str:
    new = [table for table in every if table.task in NEW]
    found = {
        one: together([log for t in new if (log := t.from_start(Series(one), max)) is not None])
        for one in finders
    }
    known = {one: estimate for one, estimate in found.items() if estimate is not None}
    if not known:
        return "no answer."
    said = "; ".join(f"{_names([one])}: {_said(estimate)}" for one, estimate in known.items())
    return f"{_failed(any(e.value > WORST for e in known.values()))} {said}."


def _diverged(every: Sequence[Table], ours: Sequence[str]) -> str:
    counts = [table.diverged(Series(one)) for table in every for one in ours]
    diverged, of = (sum(part) for part in zip(*counts, strict=True))
    return f"{_failed(diverged > DIVERGED * of)} {diverged} of {of}."


def _failed(yes: bool) -> str:
    return "**it did fail**." if yes else "it did not."


def _names(names: Sequence[str]) -> str:
    return ", ".join(title_of(Series(name)) for name in names)


def _said(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "no ratio"
    return with_error(estimate, 3)
