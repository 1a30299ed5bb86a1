"""``python -m bench.scenarios``: §7 on real training: what the knobs do, and whether they hunt."""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import adaptiverl
from bench.pictures.knobs import draw, draw_timescales
from bench.speed.tables import table
from bench.studies.scenarios import LIMITS, SCENARIOS, Outcome, run
from bench.studies.timescales import CADENCES, SETTINGS, Watched, hunts, watch

OUT = Path("runs/scenarios")
SEEDS = (0, 1, 2)


def main(arguments: Sequence[str]) -> int:
    """Run everything; the exit status is 1 if a prediction of §7 failed with some seed."""
    given = _parser().parse_args(arguments)
    # The models are small: a second thread would only make others wait.
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for scenario in (*SCENARIOS, *LIMITS):
        for seed in SEEDS:
            outcomes.append(run(scenario, seed))
            print(_line(outcomes[-1]), flush=True)
        draw(outcomes[-len(SEEDS)], given.out / f"{scenario.name}.png")
    pairs = [(setting, every) for setting in SETTINGS for every in CADENCES]
    rows = [watch(*pair) for pair in tqdm(pairs, "two time-scales", mininterval=5)]
    draw_timescales(rows, given.out / "timescales.png")
    settings = (
        f"Pictures show seed {SEEDS[0]}. adaptiverl {adaptiverl.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}, CPU."
    )
    report = given.out / "README.md"
    report.write_text(page(outcomes, rows, settings), encoding="utf-8")
    print(f"pictures and the page: {report}")
    expected = [outcome for outcome in outcomes if not outcome.scenario.limit]
    return int(any(not finding.holds for o in expected for finding in o.findings))


def _line(outcome: Outcome) -> str:
    failed = [finding.claim for finding in outcome.findings if not finding.holds]
    verdict = "does not happen: " + "; ".join(failed) if failed else "as §7 predicts"
    kind = " (a known limit)" if outcome.scenario.limit else ""
    return f"{outcome.scenario.name}, seed {outcome.seed}{kind}: {verdict}"


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
        lines.append([row.setting, str(row.every), line, f"{row.period:.0f}"])
    return [
        "## Two time-scales: does α hunt?\n",
        "Over the second half of each run: the largest line in the spectrum of the law's push on "
        "log α, over what chance explains (Fisher's test at 0.1 %: above 1 it is a cycle), and its "
        "period. Where every batch is the same only the loop between α and the loss moves α.\n",
        table(["task", "K", "line over chance", "period, steps"], lines),
        "\n![Hunting over K](timescales.png)\n",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scenarios",
        description="Stages §7's situations on real training; minutes on one core.",
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to write to ({OUT})")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
