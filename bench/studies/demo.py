"""The demo: one small GPT on real text, three optimizers, one picture. ``python -m bench.demo``."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.methods import METHODS, Method, Stepper
from bench.pictures.demo import draw
from bench.requests import Parser, RequestError, number, whole
from bench.run import ranks
from bench.run.cells import Cell, losses_of, train
from bench.studies import demo_report
from bench.studies.demo_report import ADAPTIVE, CONSTANT, COSINE, Report, Run, Settings, Trace
from bench.tasks.characters import Characters

SIZES = {
    "cpu": {"layers": 4, "heads": 4, "width": 128, "context": 128, "batch": 16, "steps": 600},
    "cuda": {"layers": 6, "heads": 6, "width": 384, "context": 256, "batch": 32, "steps": 1000},
}
COUNT = whole(1, 10**5)
# Beyond these every float32 model stands still or overflows at once, and says nothing.
RATE = number(1e-12, 100.0)
BETAS = (0.9, 0.99)
THREE: tuple[Method, ...] = (
    replace(METHODS["constant"], title=CONSTANT, betas=BETAS, warm_up=0.0),
    replace(METHODS["cosine"], title=COSINE, betas=BETAS, warm_up=0.1),
    replace(METHODS["loss"], title=ADAPTIVE, betas=BETAS, meets=True),  # type: ignore[call-arg]
)


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked: the text's path is None for Python's own sources."""

    settings: Settings
    text: str | None
    out: Path

    @property
    def task(self) -> Characters:
        own = asdict(self.settings)
        for name in ("lr", "seed", "eval_every"):
            del own[name]
        looks = own.pop("eval_batches")
        return Characters(name="demo", held_out_batches=looks, path=self.text, **own)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Request:
    given = vars(_parser(environment).parse_args(arguments))
    device = given["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch sees no CUDA device; leave the argument out")
    sizes = {name: value for name, value in SIZES[device].items() if given[name] is None}
    values = {**given, **sizes, "device": device}
    if values["width"] % values["heads"]:
        raise RequestError(
            f"--width must be a multiple of --heads, got {values['width']} and {values['heads']}"
        )
    settings = Settings(**{field.name: values[field.name] for field in fields(Settings)})
    return Request(settings, given["text"], given["out"])


def _parser(environment: Mapping[str, str]) -> Parser:
    parser = Parser(
        prog="python -m bench.demo",
        description="Train a small GPT on real text with AdamW at a constant rate, AdamW with "
        "warm-up and cosine, and AdaptiveAdamW; compare them.",
        allow_abbrev=False,
    )

    def add(name: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        default = environment.get(name.upper()) or default
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)

    add("lr", RATE, 1e-3, "starting learning rate of all three (or LR=; 1e-3)")
    add("text", str, None, "a UTF-8 text file (or TEXT=; Python's own sources)")
    add("steps", whole(2, 10**7), None, "steps of each method (or STEPS=; 600, on CUDA 1000)")
    add("seed", whole(0, 2**32 - 1), 0, "weights, order of the data, noise (or SEED=; 0)")
    out = Path("runs/demo")
    parser.add_argument("--out", type=Path, default=out, help=f"folder to write to ({out})")
    parser.add_argument("--device", choices=("auto", *SIZES), default="auto")
    parser.add_argument("--eval-every", type=COUNT, default=20, help="steps (20)")
    parser.add_argument("--eval-batches", type=COUNT, default=16, help="held out (16)")
    for name in ("layers", "heads", "width", "context", "batch"):
        parser.add_argument(f"--{name}", type=COUNT, help="size; the default depends on the device")
    return parser


def command(request: Request) -> str:
    """A command that makes the same report, every setting spelled out."""
    words = [*ranks.launcher(), "-m", "bench.demo"]
    for name, value in asdict(request.settings).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if request.text is not None:
        words += ["--text", request.text]
    return shlex.join([*words, "--out", str(request.out)])


def run(request: Request) -> None:
    begin = time.monotonic()
    settings, task = request.settings, request.task
    if settings.batch % ranks.size():
        raise RequestError(
            f"--batch must be a multiple of the {ranks.size()} ranks, got {settings.batch}"
        )
    task.text()
    if reason := _unwritable(request.out):
        raise RequestError(f"cannot write to --out {request.out}: {reason}")
    parameters = sum(p.numel() for p in task.start(0).objective.parameters())
    if ranks.rank() == 0:
        print(_introduction(task, settings, parameters), flush=True)
    runs = [follow(method, task, settings) for method in THREE]
    if ranks.rank() == 0:
        seconds = time.monotonic() - begin
        text = task.text().described()
        _publish(Report(settings, text, parameters, runs, command(request), seconds), request.out)


def follow(method: Method, task: Characters, settings: Settings) -> Run:
    """Train a fresh model with one method, and look at the held-out text now and then.

    A loss that is not finite is recorded and training goes on: every method has the same budget.
    """
    alone = task.start(settings.seed)
    stepper = Cell(task, method, settings.lr, settings.seed).stepper(alone.objective.parameters())
    problem = ranks.shared(alone)
    record = Run(method.title, [0], [alone.held_out_loss()])
    with _bar(method.title, settings.steps) as bar:
        for done in range(0, settings.steps, settings.eval_every):
            until = min(done + settings.eval_every, settings.steps)
            begin = _clock(settings)
            losses = train(problem, stepper, _counted(range(done, until), bar))
            record.step_seconds.append((_clock(settings) - begin) / (until - done))
            record.train_loss += losses_of(ranks.mean(losses))
            record.eval_steps.append(until)
            record.held_out.append(alone.held_out_loss())
            # Shown by the next update, so that a log gets a line only every so often.
            bar.set_postfix_str(_now(stepper, method, record.train_loss[-1]), refresh=False)
    record.trace = _trace(stepper, method, settings.steps)
    return record


def _trace(stepper: Stepper, method: Method, steps: int) -> Trace:
    if method.is_ours:
        return {column: values.tolist() for column, values in stepper.optimizer.trace().items()}
    assert stepper.schedule is not None
    return {
        "step": [float(step) for step in range(1, steps + 1)],
        "lr": [stepper.schedule(taken) for taken in range(steps)],
        "momentum": [method.betas[0]] * steps,
        "noise": [0.0] * steps,
    }


def _now(stepper: Stepper, method: Method, loss: float) -> str:
    rate = stepper.optimizer.param_groups[0]["lr"]
    knobs = {"lr": rate, "momentum": method.betas[0], "noise": 0.0}
    if method.is_ours:
        knobs = stepper.optimizer.knobs()
    return (
        f"loss {loss:.3f}  α {knobs['lr']:.2e}  μ {knobs['momentum']:.3f}  σ {knobs['noise']:.2g}"
    )


def _clock(settings: Settings) -> float:
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _counted(steps: range, bar: tqdm) -> Iterator[int]:
    for step in steps:
        yield step
        bar.update()


def _bar(name: str, steps: int) -> tqdm:
    """A bar on standard error, seldom redrawn where that is a file and not a terminal."""
    return tqdm(
        total=steps,
        desc=f"{name:<22}",
        unit="step",
        disable=ranks.rank() != 0,
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}",
    )


def _unwritable(folder: Path) -> str | None:
    """Why results cannot be written, found out now and not after minutes of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return None
    except OSError as error:
        return error.strerror or str(error)


def _introduction(task: Characters, settings: Settings, parameters: int) -> str:
    text, count = task.text(), ranks.size()
    replaced = f", {text.replaced:,} rare ones replaced" if text.replaced else ""
    place = settings.device if count == 1 else f"{count} ranks, {settings.device}"
    return (
        f"Text: {text.source}; {len(text.train):,} characters to train on, "
        f"{len(text.held_out):,} held out; {len(text.vocabulary)} different ones{replaced}.\n"
        f"Model: a GPT of {parameters:,} parameters on {place}; "
        f"{settings.steps} steps three times, starting rate {settings.lr:g}, seed {settings.seed}."
    )


def _publish(report: Report, out: Path) -> None:
    picture, numbers = out / "demo.png", out / "demo.json"
    draw(report, picture)
    numbers.write_text(demo_report.as_json(report), encoding="utf-8")
    print(f"\n{demo_report.table(report)}\n\n{report.seconds:.0f} s in all.", end=" ")
    print(f"Look at {picture}; every number is in {numbers}.")


def main(arguments: Sequence[str]) -> int:
    """Run the demo; return the exit status: 0, 2 for bad input, 130 when interrupted."""
    try:
        request = parse(arguments, os.environ)
        with ranks.joined(request.settings.device):
            run(request)
        return 0
    except RequestError as error:
        problem, status = f"demo: {error}", 2
    except KeyboardInterrupt:
        problem, status = "\ndemo: interrupted; nothing was written", 130
    print(problem, file=sys.stderr)
    return status
