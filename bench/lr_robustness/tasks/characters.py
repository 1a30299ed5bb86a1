"""The demo's GPT on Python's own sources, from thirty thousand to 124 million parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bench.demo import model as demo_model
from bench.demo import text as demo_text
from bench.demo.model import GPT, GPTConfig
from bench.demo.text import Text, load_text
from bench.lr_robustness.tasks.base import Batch, Problem, Task


@dataclass(frozen=True, kw_only=True)
class Characters(Task):
    """Predict the next character.

    Attributes:
        layers: Blocks of the GPT.
        heads: Attention heads per block.
        width: Of the residual stream.
        context: Characters per window.
        held_out_batches: Of ``batch`` windows each, spread evenly over the held-out text.
    """

    uses = (demo_model, demo_text)

    layers: int
    heads: int
    width: int
    context: int
    held_out_batches: int = 16

    def data_version(self) -> str:
        """The text's SHA-256: another Python has other sources."""
        return _text(self.context).sha256

    def start(self, seed: int) -> Problem:
        """Draw the weights and where each window begins."""
        text = _text(self.context)
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(seed)
        # Made on the CPU, so that every device starts from the same weights.
        model = GPT(
            GPTConfig(len(text.vocabulary), self.context, self.layers, self.heads, self.width)
        ).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        last = len(text.train) - self.context
        starts = torch.randint(last, (self.steps, self.batch), generator=generator)
        train, starts = text.train.to(self.device), starts.to(self.device)
        window = torch.arange(self.context + 1, device=self.device)
        return Problem(
            model,
            lambda step: _pair(train[starts[step, :, None] + window]),
            model,
            [_pair(windows) for windows in self._held_out(text)],
        )

    def _held_out(self, text: Text) -> list[Tensor]:
        """Windows, int64 (batch, context + 1) each."""
        count = self.held_out_batches * self.batch
        last = len(text.held_out) - self.context - 1
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        windows = text.held_out[starts[:, None] + torch.arange(self.context + 1)]
        return list(windows.to(self.device).split(self.batch))


def _pair(windows: Tensor) -> Batch:
    """Inputs and targets, int64 (batch, context) each, one character apart."""
    return windows[:, :-1], windows[:, 1:]


@cache
def _text(context: int) -> Text:
    return load_text(None, context)
