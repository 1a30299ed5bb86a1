"""``python -m bench.step``: see ``--help`` and bench/README.md."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import machine
from bench.speed.against import There
from bench.speed.measure import Here, Side, measure
from bench.speed.names import FUSED, IN_A_STEP, ON_SMALL_NETS, is_ours
from bench.speed.options import add_options
from bench.speed.shapes import SMALL_NETS, Workload
from bench.speed.tables import Row, save, slug, step_table, with_ratios

LARGE = 10**7
"""Numbers from which a step takes long enough to be timed a few times only"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description="Time one optimizer step, torch's AdamW and AdaptiveAdamW side by side.",
    )
    add_options(parser.add_argument)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT",
        help="time another checkout's built package in the same rounds",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="write results/step-*.json, .md")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="where --save writes")
    return parser


def contenders_of(shapes: str) -> tuple[str, ...]:
    """Who steps a set of parameters, the names as in `names`."""
    return ON_SMALL_NETS if shapes in SMALL_NETS else IN_A_STEP


def run(
    shapes: Sequence[str],
    rounds: int | None,
    device: torch.device,
    in_a_row: int = 1,
    against: Path | None = None,
) -> list[Row]:
    """The rows of one set of parameters after the other, with what they depend on.

    Args:
        shapes: Keys of `SHAPES`.
        rounds: Of each; None for 15 of a large one and 501 of a small one.
        device: CPU or CUDA.
        in_a_row: Steps of a contender in each round.
        against: Another checkout, whose optimizers take part.
    """
    rows: list[Row] = []
    about = machine.provenance(device) | {"load": machine.load()}
    for name in shapes:
        workload, names = Workload(name), contenders_of(name)
        sides: list[Side] = [Here(workload, names, device, in_a_row)]
        with contextlib.ExitStack() as stack:
            if against is not None:
                theirs = [n for n in names if is_ours(n) or n == FUSED]
                other = There(against.resolve(), workload, theirs, device, in_a_row)
                sides.append(stack.enter_context(contextlib.closing(other)))
            steps = rounds or (15 if workload.elements > LARGE else 501)
            rows += [row | about for row in measure(sides, steps)]
    return with_ratios(rows)


def markdown(rows: Sequence[Row], command: str) -> str:
    """A table for each set of parameters, and what they were measured on."""
    parts = []
    for name in dict.fromkeys(row["workload"] for row in rows):
        chosen = [row for row in rows if row["workload"] == name]
        first = chosen[0]
        parts += [
            step_table(chosen),
            f"{first['elements']:,} float32 parameters in {first['tensors']} tensors, "
            f"{first['rounds']} rounds.",
        ]
    parts.append(
        f"{first['device']}, CPU threads: {first['threads']}, load average {first['load']:.1f} "
        f"before; torch {first['torch']}, Python {first['python']}, adaptiverl "
        f"{first['adaptiverl']} at {first['commit']}, {first['date']}. `{command}`"
    )
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and write them if asked to."""
    given = parser().parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    try:
        rows = run(given.parameters, given.rounds, device, given.in_a_row, given.against)
    except ValueError as error:
        print(f"bench.step: {error}", file=sys.stderr)
        return 2
    first = rows[0]
    if machine.is_busy(first["load"]):
        print(
            f"bench.step: the load average was {first['load']:.1f} before the first step. "
            "Threads that wait for one that has no core make a step many times slower, whoever's "
            "step it is: measure again on a quiet machine",
            file=sys.stderr,
        )
    text = markdown(rows, shlex.join(["python", "-m", "bench.step", *arguments]))
    print(text)
    if given.save:
        sets = "" if given.parameters == ["gpt2-small"] else "-".join([*given.parameters, ""])
        where = slug(f"{first['device']} {first['threads']} threads")
        for path in save(given.out, f"step-{sets}{where}-{first['date']}", rows, text):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
