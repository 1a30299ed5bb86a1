"""Each arm alone, and the bandit over them (method.md#bandit): ``python -m bench.studies.bandit``.

By paired seeds: the same start and batches for all. The seeds are none that anything was chosen by.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from adaptiverl import Control, plots
from bench.studies.paired import cell, train
from bench.tasks import TASKS

USUAL = ("digits-mlp", "autoencoder")
RATES = (1e-4, 1e-3, 1e-2)
FIRST_SEED = 500
WINDOW = 20
STILL = replace(Control.frozen(), mode="replace", noise_bounds=Control().noise_bounds)
BOLD = Control(every=5, gain_lr_reward=0.2, gain_lr_loss=0.2, lr_change=(0.7, 1.5))
WAYS: dict[str, Control] = {
    "the loss law": Control(),
    "smooth": Control.production(),
    "still": STILL,
    "bold": BOLD,
    "bandit over loss law, smooth, still": Control.bandit(window=WINDOW),
    "bandit over loss law, bold, still": Control.bandit([Control(), BOLD, STILL], window=WINDOW),
}
"""What is compared, the first with all others"""
DRAWN = "bandit over loss law, bold, still"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(USUAL), choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--picture", type=Path, help="draw the knobs of the first bandit's run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.picture is not None:
        task = TASKS[given.tasks[0]]
        _, trace = train(task, WAYS[DRAWN], RATES[0], FIRST_SEED)
        plots.knobs(trace, given.picture, title=f"{task.title}: {DRAWN}, from {RATES[0]:g}")
    for name in given.tasks:
        print(f"\n{TASKS[name].title}, {given.seeds} seeds\n")
        print("| | " + " | ".join(f"from {rate:g}" for rate in RATES) + " |")
        print("| --- |" + " ---: |" * len(RATES), flush=True)
        first: dict[float, list[float]] = {}
        for way, control in WAYS.items():
            cells = []
            for rate in RATES:
                seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
                losses = [train(TASKS[name], control, rate, seed)[0] for seed in seeds]
                cells.append(cell(losses, first.setdefault(rate, losses)))
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
