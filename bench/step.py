"""``python -m bench.step``: see ``--help`` and bench/README.md."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.speed.against import check_built, there
from bench.speed.measure import Here, Side, measure
from bench.speed.names import FUSED, IN_A_STEP, ON_SMALL_NETS, SEARCHES, is_ours
from bench.speed.shapes import SHAPES, SMALL_NETS, Workload
from bench.speed.tables import Row, joined, save, slug, step_table, with_ratios

LARGE = 10**7  # numbers from which a step takes long enough to be timed a few times only


def add_options(add: Callable[..., Any]) -> None:
    """What ``pytest bench/speed`` takes as well, for argparse's or pytest's parser."""
    add(
        "--parameters",
        type=lambda text: [*SMALL_NETS] if text == "small-nets" else text.split(","),
        default=["gpt2-small"],
        help=f"whose shapes, with commas between: {', '.join(SHAPES)}; or 'small-nets', the last "
        "three ('gpt2-small')",
    )
    add("--rounds", type=int, help="steps measured of each (15 of a large model, 501 of a small)")
    add("--in-a-row", type=int, default=1, help="steps of a contender in each round (1)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="default: cuda where there is one, else cpu")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.step",
        description="Time one optimizer step, torch's AdamW and AdaptiveAdamW side by side.",
    )
    add = parser.add_argument
    add_options(add)
    add("--searches", action="store_true", help="the steps of the searches for a rate, and after")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add("--against", type=Path, metavar="CHECKOUT", help="time its built package as well")
    add("--save", action="store_true", help="write step-*.json and .md")
    add("--out", type=Path, default=machine.RESULTS, help="where --save writes")
    return parser


def either_order(
    workload: Workload,
    names: Sequence[str],
    against: Path,
    device: torch.device,
    in_a_row: int,
    rounds: int,
) -> list[Row]:
    """This package and a checkout's, each started first once: that alone can make a tenth."""
    theirs = [name for name in names if is_ours(name) or name == FUSED]

    def sides() -> tuple[AbstractContextManager[Side], AbstractContextManager[Side]]:
        here = there(None, workload, names, device, in_a_row)
        return here, there(against, workload, theirs, device, in_a_row)

    here, other = sides()
    with here as ours, other as its:
        first = measure(workload, [ours, its], rounds)
    here, other = sides()
    with other as its, here as ours:
        return joined(first, measure(workload, [ours, its], rounds))


def run(
    shapes: Sequence[str],
    rounds: int | None,
    device: torch.device,
    in_a_row: int = 1,
    against: Path | None = None,
    searches: bool = False,
) -> list[Row]:
    if in_a_row < 1:
        raise ValueError(f"--in-a-row must be 1 or more, got {in_a_row}")
    if against is not None:
        check_built(against.resolve())
    rows: list[Row] = []
    about = machine.provenance(device) | {"load": machine.load()}
    for workload in [Workload(name) for name in shapes]:
        usual_names: Sequence[str] = ON_SMALL_NETS if workload.shapes in SMALL_NETS else IN_A_STEP
        names = SEARCHES if searches else usual_names
        usual = 15 if workload.elements > LARGE else 501
        count = usual if rounds is None else rounds
        if against is None:
            measured = measure(workload, [Here(workload, names, device, in_a_row).side()], count)
        else:
            measured = either_order(workload, names, against.resolve(), device, in_a_row, count)
        rows += [row | about for row in measured]
    return with_ratios(rows)


def markdown(rows: Sequence[Row], command: str) -> str:
    parts = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        chosen = [row for row in rows if row["workload"] == workload]
        elements, tensors, rounds = (chosen[0][key] for key in ("elements", "tensors", "rounds"))
        about = f"{elements:,} float32 parameters in {tensors} tensors, {rounds} rounds."
        parts += [step_table(chosen), about]
    first = rows[0]
    parts.append(
        f"{first['device']}, CPU threads: {first['threads']}, load average {first['load']:.1f} "
        f"before; torch {first['torch']}, Python {first['python']}, adaptiverl "
        f"{first['adaptiverl']} at {first['commit']}, {first['date']}. `{command}`"
    )
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    try:
        asked = given.rounds, device, given.in_a_row, given.against, given.searches
        rows = run(given.parameters, *asked)
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
