"""The command line: arguments and environment, every check before anything is trained."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.demo import ranks
from bench.demo.methods import methods
from bench.demo.page import write_page
from bench.demo.picture import draw
from bench.demo.report import Report, make_report, summary, table, write_json
from bench.demo.text import DemoError, Text, load_text
from bench.demo.train import Settings, build_model, train

OUT = "runs/demo"
# Beyond these every float32 model stands still or overflows at once, and says nothing.
LR_RANGE = (1e-12, 100.0)
SIZES = {
    "cpu": {"layers": 4, "heads": 4, "width": 128, "context": 128, "batch": 16, "steps": 600},
    "cuda": {"layers": 6, "heads": 6, "width": 384, "context": 256, "batch": 32, "steps": 1000},
}
SHARED = {"lr": 1e-3, "seed": 0, "eval_every": 20, "eval_batches": 16}


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked.

    Attributes:
        settings: of the runs.
        text: path of the user's text; ``None`` for Python's standard library.
        out: folder to write to.
    """

    settings: Settings
    text: str | None
    out: Path


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Request:
    """Read the arguments; what they leave open comes from LR, TEXT, STEPS and SEED, then defaults.

    Args:
        arguments: the command line without the program's name.
        environment: usually ``os.environ``; an empty value counts as unset.

    Raises:
        DemoError: a value is out of its range or not a number.
    """
    given = vars(_parser().parse_args(arguments))
    for name in ("lr", "text", "steps", "seed"):
        if given[name] is None:
            given[name] = environment.get(name.upper()) or None
    device = _device(given["device"])
    values: dict[str, Any] = {**SHARED, **SIZES[torch.device(device).type], "device": device}
    if given["lr"] is not None:
        values["lr"] = _rate(given["lr"])
    for name, low, high in (
        ("steps", 2, 10**7),
        ("seed", 0, 2**32 - 1),
        ("layers", 1, 1000),
        ("heads", 1, 1000),
        ("width", 1, 10**5),
        ("context", 2, 10**5),
        ("batch", 1, 10**5),
        ("eval_every", 1, 10**7),
        ("eval_batches", 1, 10**5),
    ):
        if given[name] is not None:
            values[name] = _integer(name, given[name], low, high)
    if values["width"] % values["heads"]:
        raise DemoError(
            f"--width must be a multiple of --heads, got {values['width']} and {values['heads']}"
        )
    return Request(Settings(**values), given["text"], Path(given["out"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.demo",
        description="Train a small GPT on real text with AdamW at a constant rate, AdamW with "
        "warm-up and cosine, and AdaptiveAdamW; compare them.",
        allow_abbrev=False,
    )
    parser.add_argument("--lr", help="starting learning rate of all three (or LR=; 1e-3)")
    parser.add_argument("--text", help="a UTF-8 text file (or TEXT=; Python's own sources)")
    parser.add_argument("--steps", help="steps of each method (or STEPS=; 600, on CUDA 1000)")
    parser.add_argument("--seed", help="weights, order of the data, noise (or SEED=; 0)")
    parser.add_argument("--out", default=OUT, help=f"folder to write to ({OUT})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    for name in ("layers", "heads", "width", "context", "batch", "eval-every", "eval-batches"):
        parser.add_argument(f"--{name}", help="size; the default depends on the device")
    return parser


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in SIZES:
        raise DemoError(f"--device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DemoError("--device cuda: torch sees no CUDA device; leave the argument out")
    return name


def _rate(text: str) -> float:
    low, high = LR_RANGE
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not low <= rate <= high:
        raise DemoError(
            f"LR must be a number from {low:g} to {high:g}, got {text!r}; try LR={SHARED['lr']:g}"
        )
    return rate


def _integer(name: str, text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise DemoError(
            f"{name.upper().replace('_', '-')} must be a whole number from {low} to {high}, "
            f"got {text!r}"
        )
    return value


def command(request: Request) -> str:
    """Return a command that makes the same report, every setting spelled out."""
    words = [*ranks.launcher(), "-m", "bench.demo"]
    for name, value in asdict(request.settings).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if request.text is not None:
        words += ["--text", request.text]
    return shlex.join([*words, "--out", str(request.out)])


def run(request: Request) -> Report:
    """Train three times, print the table, write the files.

    Raises:
        DemoError: the text cannot be used, or the folder cannot be written.
    """
    with ranks.joined(request.settings.device):
        return _run(request)


def _run(request: Request) -> Report:
    begin = time.monotonic()
    settings = request.settings
    if settings.batch % ranks.size():
        raise DemoError(
            f"--batch must be a multiple of the {ranks.size()} ranks, got {settings.batch}"
        )
    text = load_text(request.text, settings.context)
    _make_folder(request.out)
    if settings.device == "cuda":
        torch.set_float32_matmul_precision("high")
    parameters = sum(p.numel() for p in build_model(text, settings).parameters())
    if ranks.rank() == 0:
        print(_introduction(text, settings, parameters), flush=True)
    runs = [train(method, text, settings) for method in methods(settings.lr)]
    seconds = time.monotonic() - begin
    report = make_report(settings, text, parameters, runs, command(request), seconds)
    if ranks.rank() == 0:
        _publish(report, request.out)
    return report


def _make_folder(folder: Path) -> None:
    """Find out now, not after minutes of training, whether the results can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DemoError(f"cannot write to --out {folder}: {error.strerror}") from None


def _introduction(text: Text, settings: Settings, parameters: int) -> str:
    replaced = f", {text.replaced:,} rare ones replaced" if text.replaced else ""
    return (
        f"Text: {text.source}; {len(text.train):,} characters to train on, "
        f"{len(text.held_out):,} held out; {len(text.vocabulary)} different ones{replaced}.\n"
        f"Model: a GPT of {parameters:,} parameters on {_place(settings)}; "
        f"{settings.steps} steps three times, starting rate {settings.lr:g}, seed {settings.seed}."
    )


def _place(settings: Settings) -> str:
    return settings.device if ranks.size() == 1 else f"{ranks.size()} ranks, {settings.device}"


def _publish(report: Report, out: Path) -> None:
    print(f"\n{table(report)}\n")
    for line in summary(report):
        print(textwrap.fill(line, 96, initial_indent="- ", subsequent_indent="  "))
    draw(report, out / "demo.png")
    write_page(report, out / "demo.png", out / "report.html")
    write_json(report, out / "demo.json")
    print(
        f"\n{report.seconds:.0f} s in all. Look at {out / 'demo.png'} or {out / 'report.html'}; "
        f"every number is in {out / 'demo.json'}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        run(parse(sys.argv[1:] if arguments is None else arguments, os.environ))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0
