"""A GPT that predicts the next character: the demo's task, and from 30 thousand parameters up."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.tasks import gpt, text
from bench.tasks.base import Batch, Problem, Task
from bench.tasks.gpt import GPT, GPTConfig
from bench.tasks.text import Text, load_text


@dataclass(frozen=True, kw_only=True)
class Characters(Task):
    """Windows of a text; each step's begin where the seed says."""

    uses = (gpt, text)

    layers: int  # blocks of the GPT
    heads: int  # attention heads per block
    width: int  # of the residual stream
    context: int  # characters per window
    held_out_batches: int = 16  # of batch windows each, spread evenly over the held-out text
    path: str | None = field(default=None, repr=False)  # A text file; None for Python's own sources

    def text(self) -> Text:
        return _text(self.path, self.context)

    def data_version(self) -> str:
        return self.text().sha256

    def start(self, seed: int) -> Problem:
        text = self.text()
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(seed)
        sizes = (self.context, self.layers, self.heads, self.width)
        # Made on the CPU, so that every device starts from the same weights.
        model = GPT(GPTConfig(len(text.vocabulary), *sizes)).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        last = len(text.train) - self.context
        starts = torch.randint(last, (self.steps, self.batch), generator=generator)
        # One copy for the whole run: a copy per step would make the host wait for the device.
        train, starts = text.train.to(self.device), starts.to(self.device)
        window = torch.arange(self.context + 1, device=self.device)
        return Problem(
            model,
            lambda step: pair(train[starts[step, :, None] + window]),
            [pair(windows) for windows in self._held_out(text)],
        )

    def _held_out(self, text: Text) -> list[Tensor]:
        """Windows, int64 (batch, context + 1) each; the same for every seed."""
        count = self.held_out_batches * self.batch
        last = len(text.held_out) - self.context - 1
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        windows = text.held_out[starts[:, None] + torch.arange(self.context + 1)]
        return list(windows.to(self.device).split(self.batch))


@dataclass(frozen=True, kw_only=True)
class Disturbed(Task):
    """A task whose batches are of another kind between two steps."""

    between: tuple[int, int] = (0, -1)  # first and last disturbed step, counted from 1

    def is_disturbed(self, step: int) -> bool:
        return self.between[0] <= step + 1 <= self.between[1]


@dataclass(frozen=True, kw_only=True)
class Passages(Disturbed):
    """A GPT of one block on one of three texts, of characters that the first one has.

    ``"code"``: Python's standard library; ``"prose"``: the English of its reference; ``"cipher"``:
    that prose with every character replaced by another: foreign, and no harder to learn.
    """

    uses = (gpt, text)

    batch: int = 16
    learnt: str = "code"  # which
    disturbed: str = "cipher"  # what it changes to while the task is disturbed
    context: int = 32
    width: int = 32

    def start(self, seed: int) -> Problem:
        torch.manual_seed(seed)
        vocabulary, kinds_of_text = texts()
        model = GPT(GPTConfig(vocabulary, self.context, layers=1, heads=4, width=self.width))
        generator, window = torch.Generator().manual_seed(seed), torch.arange(self.context + 1)
        kinds = [
            kinds_of_text[(self.learnt, self.disturbed)[self.is_disturbed(s)]]
            for s in range(self.steps)
        ]
        starts = [
            torch.randint(len(kind) - len(window), (self.batch, 1), generator=generator)
            for kind in kinds
        ]
        return Problem(model, lambda step: pair(kinds[step][starts[step] + window]))


def pair(windows: Tensor) -> Batch:
    """Inputs and targets, int64 (batch, context) each, one character apart."""
    return windows[:, :-1], windows[:, 1:]


@cache
def _text(path: str | None, context: int) -> Text:
    return load_text(path, context)


@cache
def texts() -> tuple[int, dict[str, Tensor]]:
    """The vocabulary's size, and each text as int64 character indices."""
    from pydoc_data.topics import topics

    code = load_text(None, context=32)
    index: dict[str, Any] = {character: i for i, character in enumerate(code.vocabulary)}
    english = "\n\n".join(topics[name] for name in sorted(topics))
    known = np.array([index[character] for character in english if character in index])
    prose = torch.from_numpy(known.astype(np.int64))
    key = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    return len(index), {"code": code.train, "prose": prose, "cipher": key[prose]}
