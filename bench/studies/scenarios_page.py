"""The page that `make scenarios` writes, made from the numbers; pictures lie beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.speed.tables import table
from bench.studies.scenarios import Outcome
from bench.studies.timescales import Watched, hunts

MEASURED = (
    *("sign changes per 100 updates", "per 100 steps"),
    *("line over chance", "its period, steps", "wander of log α"),
)


def page(outcomes: Sequence[Outcome], rows: Sequence[Watched], settings: str) -> str:
    parts = [
        "# What the knobs do, on real training",
        "",
        "Written by `make scenarios` from what it measured. The specification's §7 predicts how α "
        "(learning rate), μ (momentum) and σ (gradient noise) move in four situations; each is "
        f"staged here with `AdaptiveAdamW` and its default `Control`. {settings}",
        "",
    ]
    for name in dict.fromkeys(outcome.scenario.name for outcome in outcomes):
        parts += _situation([o for o in outcomes if o.scenario.name == name])
    parts += _timescales(rows)
    return "\n".join(parts) + "\n"


def _situation(outcomes: Sequence[Outcome]) -> list[str]:
    scenario = outcomes[0].scenario
    lines = []
    for number, first in enumerate(outcomes[0].findings):
        findings = [outcome.findings[number] for outcome in outcomes]
        cells = [f"{f.before:.3g} → {f.after:.3g}" for f in findings]
        held = sum(f.holds for f in findings)
        verdict = "happens" if held == len(findings) else f"**only in {held} of {len(findings)}**"
        lines.append([first.claim, *cells, verdict if held else "**does not happen**"])
    seeds = [f"seed {outcome.seed}" for outcome in outcomes]
    return [
        f"## {scenario.title}\n",
        f"> {scenario.prediction}\n",
        f"Here {scenario.situation}. {scenario.task.steps:,} steps from α = {scenario.lr:g}. "
        f"{scenario.limit}".rstrip()
        + "\n",
        table(["§7 says", *seeds, "verdict"], lines),
        f"\n![{scenario.title}]({scenario.name}.png)\n",
    ]


def _timescales(rows: Sequence[Watched]) -> list[str]:
    lines = []
    for row in rows:
        line = f"**{row.line:.2f}**" if hunts(row) else f"{row.line:.2f}"
        spread = "at its bound" if math.isnan(row.wander) else f"{row.wander:.2f}"
        cells = [f"{row.changes:.0f}", f"{row.changes_per_step:.1f}", line, f"{row.period:.0f}"]
        lines.append([row.setting, str(row.every), *cells, spread])
    bound = (
        "- At its bound: α spent most of that half at its lower bound. On noisy batches that "
        "no longer improve the law cools α by 0.35·k per update (half of the pushes are down, "
        "and those count twice), so it gets there the sooner, the smaller K is."
    )
    return [
        "## Two time-scales: does α hunt?\n",
        "Over the second half of each run: how often the law's push on log α changes its sign; the "
        "largest line of the push's spectrum over what chance explains (Fisher's test at 0.1 %: a "
        "number above 1 is a cycle) with its period; and how far log α wanders within 500 steps. "
        "Where every batch is the same nothing but the loop between α and the loss can move α.\n",
        table(["task", "K", *MEASURED], lines) + "\n",
        *([bound] if any(math.isnan(row.wander) for row in rows) else []),
        "\n![Hunting over K](timescales.png)\n",
    ]
