"""Records the loss of a plain torch.optim.AdamW run, for `python -m adaptiverl replay` to read.

Run it as ``python -m bench.record_curve [FILE]``: one to two minutes on two CPU cores. A small GPT
learns the sources of Python's standard library at one constant rate; nothing of adaptiverl takes
part. The file, by default ``bench/results/recorded_loss.csv``, has a row per step: the step, the
loss of that step's batch in nats per character, and the learning rate.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.demo.text import load_text
from bench.demo.train import Batches, Settings, build_model, draw_starts

FILE = Path(__file__).parent / "results" / "recorded_loss.csv"
SETTINGS = Settings(
    lr=1e-3,
    steps=2000,
    seed=0,
    device="cpu",
    layers=2,
    heads=4,
    width=96,
    context=64,
    batch=16,
    eval_every=2000,
    eval_batches=1,
)


def record(settings: Settings) -> list[float]:
    """Train, and return the loss of every step in nats per character."""
    text = load_text(None, settings.context)
    model = build_model(text, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    batches = Batches(text.train, draw_starts(len(text.train), settings), settings)
    losses = []
    for step in tqdm(range(settings.steps), unit="step", mininterval=5):
        loss = model(*batches[step])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def write(losses: Sequence[float], lr: float, path: Path) -> None:
    """Write one row per step: step, loss, learning_rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("step", "loss", "learning_rate"))
        writer.writerows((step, f"{loss:.6g}", lr) for step, loss in enumerate(losses, 1))


def main(arguments: Sequence[str]) -> None:
    """Record the curve into the file that the arguments name."""
    write(record(SETTINGS), SETTINGS.lr, Path(arguments[0]) if arguments else FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
