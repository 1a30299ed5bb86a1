"""``python -m bench.scenarios``: §7 on real training: what the knobs do, and whether they hunt.

Stages the situations, writes pictures and a page, and says what did not happen.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import adaptiverl
from bench.pictures.knobs import draw, draw_timescales
from bench.studies.scenarios import LIMITS, SCENARIOS, Outcome, run
from bench.studies.scenarios_page import page
from bench.studies.timescales import CADENCES, SETTINGS, watch

OUT = Path("runs/scenarios")
KEPT = Path(__file__).parents[1] / "docs/scenarios"
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
    if given.keep:
        KEPT.mkdir(parents=True, exist_ok=True)
        for file in (report, *given.out.glob("*.png")):
            shutil.copy(file, KEPT)
    print(f"pictures and the page: {report}")
    expected = [outcome for outcome in outcomes if not outcome.scenario.limit]
    return int(any(not finding.holds for o in expected for finding in o.findings))


def _line(outcome: Outcome) -> str:
    failed = [finding.claim for finding in outcome.findings if not finding.holds]
    verdict = "does not happen: " + "; ".join(failed) if failed else "as §7 predicts"
    kind = " (a known limit)" if outcome.scenario.limit else ""
    return f"{outcome.scenario.name}, seed {outcome.seed}{kind}: {verdict}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scenarios",
        description="Stages §7's situations on real training; minutes on one core.",
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to write to ({OUT})")
    parser.add_argument("--keep", action="store_true", help="also copy into docs/scenarios")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
