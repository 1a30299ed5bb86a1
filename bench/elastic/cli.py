"""The command line of a run that torchrun starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.demo.text import DemoError, load_text
from bench.demo.train import Settings
from bench.elastic.train import Plan, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or go on training; return the exit status: 0, or 2 for bad input."""
    given = _parser().parse_args(arguments)
    if "RANK" not in os.environ:
        print(
            "elastic: start it with torchrun: torchrun --nproc-per-node=2 --max-restarts=3 "
            "-m bench.elastic",
            file=sys.stderr,
        )
        return 2
    settings = Settings(
        lr=1e-3,
        steps=given.steps,
        seed=given.seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
        layers=given.layers,
        heads=4,
        width=given.width,
        context=given.context,
        batch=given.batch,
        eval_every=given.steps,
        eval_batches=1,
    )
    plan = Plan(
        out=Path(given.out),
        every=given.checkpoint_every,
        sharded=given.shard,
        kill_rank=given.kill_rank,
        kill_at=given.kill_at,
    )
    try:
        train(settings, load_text(given.text, settings.context), plan)
    except DemoError as error:
        print(f"elastic: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node=2 --max-restarts=3 -m bench.elastic",
        description="Train the demo's GPT on several ranks with AdaptiveAdamW. A checkpoint every "
        "few steps; started again, the run goes on from the last one.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="runs/elastic", help="folder for checkpoints and the log")
    parser.add_argument("--text", help="a UTF-8 text file (Python's own sources)")
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--kill-rank", type=int, help="this rank kills itself, once")
    parser.add_argument("--kill-at", type=int, default=0, help="before this step")
    for name, value in {
        "steps": 60,
        "checkpoint-every": 10,
        "seed": 0,
        "layers": 4,
        "width": 128,
        "context": 128,
        "batch": 16,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    return parser
