"""``python -m bench.step``: see ``--help`` and bench/README.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.step.machine import is_busy
from bench.step.measure import measure
from bench.step.options import OPTIONS, default_device
from bench.step.table import RESULTS, make_rows, markdown, save


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description="Time one optimizer step, torch's AdamW and AdaptiveAdamW side by side.",
    )
    for name, keywords in OPTIONS.items():
        parser.add_argument(name, **keywords)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--save", action="store_true", help=f"write {RESULTS.name}/step-*.json, .md"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where --save writes")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, and write it if asked to."""
    given = parser().parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device or default_device())
    rows = make_rows(measure(given.parameters, given.rounds, device))
    if is_busy(rows[0]["load"]):
        print(
            f"bench.step: the load average was {rows[0]['load']:.1f} before the first step. "
            "Threads that wait for one that has no core make a step many times slower, whoever's "
            "step it is: measure again on a quiet machine",
            file=sys.stderr,
        )
    text = markdown(rows, shlex.join(["python", "-m", "bench.step", *arguments]))
    print(text)
    if given.save:
        for path in save(rows, text, given.out):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
