"""The demo: one small GPT on real text, four ways, one picture. ``python -m bench.demo``."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from adaptiverl import AdaptiveAdamW
from bench.methods import METHODS, Method, Stepper
from bench.methods.base import Parameters
from bench.methods.ours import Adaptive, Steered, find_lr
from bench.pictures.demo import draw
from bench.requests import Parser, RequestError, number, whole
from bench.run import ranks
from bench.run.cells import Cell, losses_of, train
from bench.studies import demo_report
from bench.studies.demo_report import (
    CONSTANT,
    COSINE,
    FIND_LR,
    LOSS_LAW,
    Report,
    Request,
    Run,
    Trace,
)
from bench.tasks.characters import Characters
from bench.tasks.text import Text

SIZES = {
    "cpu": {"layers": 4, "heads": 4, "width": 128, "context": 128, "batch": 16, "steps": 600},
    "cuda": {"layers": 6, "heads": 6, "width": 384, "context": 256, "batch": 32, "steps": 1000},
}
COUNT = whole(1, 10**5)
# Beyond these every float32 model stands still or overflows at once, and says nothing.
RATE = number(1e-12, 100.0)
BETAS = (0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class GivenNoRate(Adaptive):
    """It finds its own rate, whatever the others start from."""

    def start(self, parameters: Parameters, rate: float, horizon: int, seed: int) -> Steered:
        return Steered(
            AdaptiveAdamW(
                parameters,
                lr=None,
                control=self.control(horizon),
                seed=seed,
                process_group=None if self.meets else False,
                **self.shared(),
            )
        )


FOUR: tuple[Method, ...] = (
    replace(METHODS["constant"], title=CONSTANT, betas=BETAS, warm_up=0.0),
    replace(METHODS["cosine"], title=COSINE, betas=BETAS, warm_up=0.1),
    GivenNoRate(name="find_lr", title=FIND_LR, control=find_lr, betas=BETAS, meets=True),
    replace(METHODS["loss"], title=LOSS_LAW, betas=BETAS, meets=True),  # type: ignore[call-arg]
)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Request:
    given = vars(_parser(environment).parse_args(arguments))
    device = given["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch sees no CUDA device; leave the argument out")
    sizes: Any = {name: given[name] or value for name, value in SIZES[device].items()}
    if sizes["width"] % sizes["heads"]:
        raise RequestError(
            f"--width must be a multiple of --heads, got {sizes['width']} and {sizes['heads']}"
        )
    looks = given["eval_batches"]
    task = Characters(
        name="demo", device=device, held_out_batches=looks, path=given["text"], **sizes
    )
    return Request(task, given["lr"], given["seed"], given["eval_every"], given["out"])


def _parser(environment: Mapping[str, str]) -> Parser:
    parser = Parser(
        prog="python -m bench.demo",
        description="Train a small GPT on real text with AdamW at a constant rate, AdamW with "
        "warm-up and cosine, AdaptiveAdamW that finds its rate and is given none, and "
        "AdaptiveAdamW steered by the loss; compare them.",
        allow_abbrev=False,
    )

    def add(name: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        default = environment.get(name.upper()) or default
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)

    add("lr", RATE, 1e-3, "starting learning rate; find_lr is given none (or LR=; 1e-3)")
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


def run(request: Request) -> None:
    begin, task = time.monotonic(), request.task
    if task.batch % ranks.size():
        raise RequestError(
            f"--batch must be a multiple of the {ranks.size()} ranks, got {task.batch}"
        )
    text = task.text()
    try:
        # Found out now and not after minutes of training.
        request.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=request.out).close()
    except OSError as error:
        raise RequestError(f"cannot write to --out {request.out}: {error.strerror}") from None
    parameters = sum(p.numel() for p in task.start(0).objective.parameters())
    is_first = ranks.rank() == 0
    if is_first:
        print(_introduction(text, request, parameters), flush=True)
    runs = [follow(method, request) for method in FOUR]
    if is_first:
        seconds = time.monotonic() - begin
        _publish(Report(request, text.described(), parameters, runs, seconds))


def follow(method: Method, request: Request) -> Run:
    """Train a fresh model with one method, and look at the held-out text now and then.

    A loss that is not finite is recorded and training goes on: every method has the same budget.
    """
    task, every = request.task, request.eval_every
    alone = task.start(request.seed)
    stepper = Cell(task, method, request.lr, request.seed).stepper(alone.objective.parameters())
    problem = ranks.shared(alone)
    record = Run(method.title, [0], [alone.held_out_loss()])
    with _bar(method.title, task.steps) as bar:
        for done in range(0, task.steps, every):
            until = min(done + every, task.steps)
            begin = _clock(task)
            losses = train(problem, stepper, range(done, until))
            record.step_seconds.append((_clock(task) - begin) / (until - done))
            record.train_loss += losses_of(ranks.mean(losses))
            record.eval_steps.append(until)
            record.held_out.append(alone.held_out_loss())
            shown = f"loss {record.train_loss[-1]:.3f}  α {_rate(stepper, method):.2e}"
            bar.set_postfix_str(shown, refresh=False)
            bar.update(until - done)
    record.trace = _trace(stepper, method, task.steps)
    return record


def _rate(stepper: Stepper, method: Method) -> float:
    """The rate of the last step. Our α lives on the device; a group keeps what it was given."""
    groups = stepper.optimizer.param_groups
    return float(stepper.optimizer.knobs()["lr"] if method.is_ours else groups[0]["lr"])


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


def _clock(task: Characters) -> float:
    if task.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _bar(name: str, steps: int) -> tqdm:
    """A bar on standard error, seldom redrawn where that is a file and not a terminal."""
    return tqdm(
        total=steps,
        desc=f"{name:<{max(len(method.title) for method in FOUR)}}",
        unit="step",
        disable=ranks.rank() != 0,
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}",
    )


def _introduction(text: Text, request: Request, parameters: int) -> str:
    replaced = f", {text.replaced:,} rare ones replaced" if text.replaced else ""
    return (
        f"Text: {text.source}; {len(text.train):,} characters to train on, "
        f"{len(text.held_out):,} held out; {len(text.vocabulary)} different ones{replaced}.\n"
        f"Model: a GPT of {parameters:,} parameters on {request.task.device}, "
        f"{ranks.size()} rank(s); {request.task.steps} steps four times, starting rate "
        f"{request.lr:g} (find_lr is given none), seed {request.seed}."
    )


def _publish(report: Report) -> None:
    picture, numbers = (report.request.out / name for name in ("demo.png", "demo.json"))
    draw(report, picture)
    numbers.write_text(demo_report.as_json(report), encoding="utf-8")
    print(f"\n{demo_report.table(report)}\n\n{report.seconds:.0f} s in all.", end=" ")
    print(f"Look at {picture}; every number is in {numbers}.")


def main(arguments: Sequence[str]) -> int:
    try:
        request = parse(arguments, os.environ)
        with ranks.joined(request.task.device):
            run(request)
        return 0
    except RequestError as error:
        problem, status = f"demo: {error}", 2
    except KeyboardInterrupt:
        problem, status = "\ndemo: interrupted; nothing was written", 130
    print(problem, file=sys.stderr)
    return status
