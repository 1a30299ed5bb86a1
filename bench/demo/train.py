"""The training loop: one method, on batches that depend on the seed and nothing else."""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.demo import ranks
from bench.demo.methods import Method, Trace
from bench.demo.model import GPT, GPTConfig
from bench.demo.text import Text


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on besides the text and the method.

    Attributes:
        lr: starting learning rate of every method.
        steps: optimizer steps per method.
        seed: of the initial weights, the order of the data and the gradient noise.
        device: a torch device's name.
        layers: blocks of the GPT.
        heads: attention heads per block.
        width: the GPT's residual stream.
        context: characters per sequence.
        batch: sequences per step.
        eval_every: steps between two looks at the held-out text.
        eval_batches: batches in the fixed held-out set.
    """

    lr: float
    steps: int
    seed: int
    device: str
    layers: int
    heads: int
    width: int
    context: int
    batch: int
    eval_every: int
    eval_batches: int


@dataclass
class Run:
    """What one method did.

    Attributes:
        method: its name.
        eval_steps: steps after which the held-out loss was taken, 0 first.
        held_out: held-out loss at each, nats per character.
        train_loss: the loss of every step's batch, nats per character.
        step_seconds: mean seconds per step in each stretch between two evaluations.
        trace: the knobs over the steps.
        batches: SHA-256 of where in the text the batches that were used began, in order.
    """

    method: str
    eval_steps: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    trace: Trace = field(default_factory=dict)
    batches: str = ""

    @property
    def seconds_per_step(self) -> float:
        """Median over the stretches: the first one's warm-up and a busy moment do not count."""
        return statistics.median(self.step_seconds)


def build_model(text: Text, settings: Settings) -> GPT:
    """Build the GPT with the seed's initial weights, made on the CPU so that devices agree."""
    torch.manual_seed(settings.seed)
    config = GPTConfig(
        vocabulary=len(text.vocabulary),
        context=settings.context,
        layers=settings.layers,
        heads=settings.heads,
        width=settings.width,
    )
    return GPT(config).to(settings.device)


def draw_starts(length: int, settings: Settings) -> Tensor:
    """Draw where each sequence begins: int64 (steps, batch), a function of the seed alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randint(
        length - settings.context, (settings.steps, settings.batch), generator=generator
    )


def train(method: Method, text: Text, settings: Settings) -> Run:
    """Train a fresh model with one method.

    Args:
        method: how to train; it is started here.
        text: the characters.
        settings: sizes, seed and budget, the same for every method.

    Returns:
        The record of the run. A loss that is not finite is recorded and training goes on:
        every method has the same budget.
    """
    run = Run(method.name)
    model = build_model(text, settings)
    method.start(model.parameters(), settings.steps, settings.seed)
    wrapped = ranks.wrap(model)
    starts = ranks.share(draw_starts(len(text.train), settings))
    batches = Batches(text.train, starts, settings)
    held_out = Batches(text.held_out, _even_starts(len(text.held_out), settings), settings)
    run.eval_steps.append(0)
    run.held_out.append(evaluate(model, held_out))
    done = 0
    with progress_bar(method.name, settings.steps) as bar:
        while done < settings.steps:
            until = min(done + settings.eval_every, settings.steps)
            losses, seconds = _stretch(wrapped, method, batches, range(done, until), bar)
            run.train_loss += losses
            run.step_seconds.append(seconds / (until - done))
            done = until
            run.eval_steps.append(done)
            run.held_out.append(evaluate(model, held_out))
            # Shown by the next update, so that a log gets a line only every so often.
            bar.set_postfix_str(describe(losses[-1], method.knobs()), refresh=False)
    run.trace = method.trace()
    run.batches = batches.fingerprint()
    return run


class Batches:
    """Windows of a text, by number; remembers which it gave out.

    Args:
        characters: int64 (n,), the text.
        starts: int64 (count, batch), where each window begins.
        settings: for the context and the device.
    """

    def __init__(self, characters: Tensor, starts: Tensor, settings: Settings) -> None:
        self.characters = characters.to(settings.device)
        self.starts = starts
        # One copy for the whole run: a copy per step would make the host wait for the device.
        self.device_starts = starts.to(settings.device)
        self.window = torch.arange(settings.context + 1, device=settings.device)
        self.used = hashlib.sha256()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, int64 (batch, context) each, one character apart."""
        self.used.update(self.starts[number].numpy().tobytes())
        windows = self.characters[self.device_starts[number, :, None] + self.window]
        return windows[:, :-1], windows[:, 1:]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the windows given out so far, in order."""
        return self.used.hexdigest()


@torch.no_grad()
def evaluate(model: GPT, batches: Batches) -> float:
    """Return the mean loss over all batches, in nats per character."""
    losses = [model(*batches[number]) for number in range(len(batches))]
    return float(torch.stack(losses).double().mean())


def describe(loss: float, knobs: dict[str, float]) -> str:
    """Format the bar's right-hand side."""
    return (
        f"loss {loss:.3f}  α {knobs['lr']:.2e}  μ {knobs['momentum']:.3f}  σ {knobs['noise']:.2g}"
    )


def progress_bar(name: str, steps: int) -> tqdm:
    """Make a bar on standard error, seldom redrawn where that is a file and not a terminal."""
    return tqdm(
        total=steps,
        desc=f"{name:<22}",
        unit="step",
        disable=ranks.rank() != 0,
        mininterval=0.1 if sys.stderr.isatty() else 15.0,
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}",
    )


def _stretch(
    model: nn.Module, method: Method, batches: Batches, steps: range, bar: tqdm
) -> tuple[list[float], float]:
    """Take the steps; return their losses and the seconds that all of them took."""
    losses: list[Tensor] = []
    _synchronize(model)
    begin = time.perf_counter()
    for step in steps:
        loss = model(*batches[step])
        loss.backward()
        method.step(loss)
        losses.append(loss.detach())
        bar.update()
    _synchronize(model)
    seconds = time.perf_counter() - begin
    return ranks.mean(torch.stack(losses)).tolist(), seconds


def _synchronize(model: nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def _even_starts(length: int, settings: Settings) -> Tensor:
    """Spread the held-out windows evenly over their stretch, the same for every seed."""
    count = settings.eval_batches * settings.batch
    last = length - settings.context - 1
    starts = torch.linspace(0, last, count, dtype=torch.float64).long()
    return starts.view(settings.eval_batches, settings.batch)
