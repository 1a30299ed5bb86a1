"""Records the loss of a plain torch.optim.AdamW run, for `python -m adaptiverl replay` to read.

``python -m bench.record_curve [FILE]``: one to two minutes on two CPU cores; nothing of adaptiverl
takes part. Losses are nats per character; the file is bench/results/recorded_loss.csv.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bench.methods.base import AdamW
from bench.run.cells import Cell, losses_of, train
from bench.tasks.characters import Characters

FILE = Path(__file__).parent / "results" / "recorded_loss.csv"
TASK = Characters(name="record", steps=2000, batch=16, layers=2, heads=4, width=96, context=64)
PLAIN = AdamW(name="adamw", warm_up=0.0, fused=None)
LR = 1e-3


def record(task: Characters) -> list[float]:
    problem = task.start(0)
    stepper = Cell(task, PLAIN, LR, 0).stepper(problem.objective.parameters())
    return losses_of(train(problem, stepper, tqdm(range(task.steps), unit="step", mininterval=5)))


def write(losses: Sequence[float], lr: float, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("step", "loss", "learning_rate"))
        writer.writerows((step, f"{loss:.6g}", lr) for step, loss in enumerate(losses, 1))


def main(arguments: Sequence[str]) -> None:
    write(record(TASK), LR, Path(arguments[0]) if arguments else FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
