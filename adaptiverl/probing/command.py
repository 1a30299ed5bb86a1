"""``python -m adaptiverl probe``: run a script until its rate is found; print it, and draw it."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from adaptiverl import plots
from adaptiverl.commands import Parser
from adaptiverl.probing.search import Probe, ProbeError, probe

OUT, PICTURE, WIDTH = "runs/probe", "probe.png", 96


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status: 0, 1 where no rate was found, 2 for bad input."""
    given = _parser().parse_args(arguments)
    try:
        found = probe(_runnable(given.run, given.arguments), given.steps)
    except ProbeError as error:  # the script's own errors keep their traceback
        print(f"probe: {error}", file=sys.stderr)
        return 2
    for line in report(found, given.steps):
        print(textwrap.fill(line, WIDTH, break_on_hyphens=False, break_long_words=False))
    print(_draw(found, Path(given.out), given.run))
    return 0 if found.found is not None and found.sure else 1


def report(found: Probe, steps: int) -> list[str]:
    """What was found, in sentences."""
    took = f"{len(found.rates)} steps, from a rate of {found.rates[0]:.1e}"
    if found.found is None:
        return [
            f"No rate: the run ended after {took}, before its updates were sure to overshoot. Let "
            "it train for 150 steps at least."
        ]
    if not found.marked:
        return [
            f"No rate in {took}: the loss rose long before updates overshot, or they never did, so "
            "that nothing is marked. Larger batches have less noise; in the run itself "
            "Control.find_lr goes on all the same."
        ]
    lines = [f"Found in {took}; the weights are where they were."]
    if not found.sure:
        lines = [
            f"No sure rate in {took}: nothing confirmed where updates overshot. Training may begin "
            "on a plateau, where a range test is blind; in the run itself Control.find_lr climbs "
            "on. What was marked:"
        ]
    for name, rates in zip(found.names, found.found, strict=True):
        listed = ", ".join(f"{rate:.2e}" for rate in dict.fromkeys(rates))
        lines.append(
            f"{name}: lr = {listed}, as the peak of a schedule that falls to 0 over {steps:,} "
            "steps; half of it at a constant rate."
        )
    return lines


def _draw(found: Probe, folder: Path, title: str) -> str:
    columns = {"lr": found.rates, "loss": found.losses, "alignment": found.cosines}
    rate = found.found[0][0] if found.found is not None and found.sure else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots.range_test(columns, folder / PICTURE, found=rate, title=f"Range test of {title}")
    except (ImportError, OSError) as error:
        return f"No picture: {error}"
    return f"Picture: {folder / PICTURE}"


def _runnable(name: str, arguments: Sequence[str]) -> Callable[[], object]:
    """A script as ``python SCRIPT`` would run it, or a function of a module.

    Raises:
        ProbeError: There is none.
    """
    path = Path(name)
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise ProbeError(f"there is no script {name}")

        def script() -> object:
            sys.argv = [name, *arguments]
            sys.path.insert(0, str(path.resolve().parent))
            try:
                return runpy.run_path(name, run_name="__main__")
            except SystemExit as end:  # of a run that is shorter than the search
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                return None

        return script
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ProbeError(
            f"expected a script, train.py, or a function, package.module:function, got {name!r}"
        )
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ProbeError(f"cannot find {name}: {error}") from error
    if not callable(function):
        raise ProbeError(f"{name} is no function, got {type(function).__name__}")
    return lambda: function(*arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m adaptiverl probe",
        allow_abbrev=False,
        description="Run a training script, its optimizer's rate ramped up from step to step, "
        "until its updates are sure to overshoot, mostly less than a hundred steps; then stop it, "
        "print the rate to give to that optimizer, and draw the ramp. Nothing of the script is "
        "changed.",
    )
    parser.add_argument(
        "--steps",
        type=_steps,
        default=1000,
        metavar="T",
        help="optimizer steps that the real run takes: a longer one gets a lower rate (1000)",
    )
    parser.add_argument("--out", default=OUT, metavar="DIR", help=f"for the picture ({OUT})")
    parser.add_argument(
        "run", metavar="SCRIPT", help="train.py, or package.module:function, which trains"
    )
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments"
    )
    return parser


def _steps(text: str) -> int:
    if not text.replace("_", "").isdecimal() or not 160 <= int(text) <= 2**53:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 160, of which a search takes 40, to 2**53, got {text!r}"
        )
    return int(text)
