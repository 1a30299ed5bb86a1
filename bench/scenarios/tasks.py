"""Real training in miniature, and what can go wrong with it: two tasks, each with a disturbance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.demo.model import GPT, GPTConfig
from bench.demo.text import load_text


class Task(Protocol):
    """A model and an endless supply of batches, both functions of a seed alone."""

    @property
    def model(self) -> nn.Module:
        """What the optimizer's parameters are those of."""

    def loss(self, disturbed: bool = False) -> Tensor:
        """Return the mean cross-entropy of the next batch, a scalar with a graph, in nats."""


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8 by 8 pixels, and a perceptron 64-64-10.

    Args:
        seed: Of the weights, the batches and the wrong labels.
        batch: Images per step.
        wrong: Share of labels replaced by a class drawn at random, anew for every batch. No model
            can learn them, so the loss stops at a floor well above zero: a true plateau.
        disturbed: That share while the task is disturbed.
    """

    def __init__(
        self, seed: int, batch: int = 32, wrong: float = 0.0, disturbed: float = 1.0
    ) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.images, self.labels = _digits()
        self.batch, self.shares = batch, (wrong, disturbed)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(self, disturbed: bool = False) -> Tensor:
        """Return the next batch's loss."""
        draw = torch.randint(len(self.images), (self.batch,), generator=self.generator)
        other = torch.randint(10, (self.batch,), generator=self.generator)
        is_wrong = torch.rand(self.batch, generator=self.generator) < self.shares[disturbed]
        labels = torch.where(is_wrong, other, self.labels[draw])
        return F.cross_entropy(self.model(self.images[draw]), labels)


class Characters:
    """A GPT of one block that predicts the next character.

    Three texts, of characters that the first one has: ``"code"``, Python's standard library;
    ``"prose"``, the English of Python's reference; ``"cipher"``, that prose with every character
    replaced by another, which is as foreign as a text can be that is no harder to learn.

    Args:
        seed: Of the weights and the batches.
        text: What is learnt.
        disturbed: What the text changes to while the task is disturbed.
        batch: Windows per step.
        context: Characters per window.
        width: Of the residual stream.
    """

    def __init__(
        self,
        seed: int,
        text: str = "code",
        disturbed: str = "cipher",
        *,
        batch: int = 16,
        context: int = 32,
        width: int = 32,
    ) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        vocabulary, texts = _texts()
        self.texts = texts[text], texts[disturbed]
        self.batch, self.window = batch, torch.arange(context + 1)
        self.model = GPT(
            GPTConfig(vocabulary=vocabulary, context=context, layers=1, heads=4, width=width)
        )

    def loss(self, disturbed: bool = False) -> Tensor:
        """Return the next batch's loss."""
        text = self.texts[disturbed]
        last = len(text) - len(self.window)
        starts = torch.randint(last, (self.batch, 1), generator=self.generator)
        windows = text[starts + self.window]
        return self.model(windows[:, :-1], windows[:, 1:])


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images float32 (1797, 64) in [0, 1] and labels int64 (1797,)."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


@cache
def _texts() -> tuple[int, dict[str, Tensor]]:
    """The vocabulary's size, and each text as int64 character indices."""
    from pydoc_data.topics import topics

    code = load_text(None, context=32)
    index = {character: i for i, character in enumerate(code.vocabulary)}
    english = "\n\n".join(topics[name] for name in sorted(topics))
    known = np.array([index[character] for character in english if character in index])
    prose = torch.from_numpy(known.astype(np.int64))
    key = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    return len(index), {"code": code.train, "prose": prose, "cipher": key[prose]}


def losses_of(
    task: Task,
    optimizer: torch.optim.Optimizer,
    steps: int,
    disturbed: Callable[[int], bool] = lambda step: False,
) -> list[float]:
    """Train; where the optimizer can observe, it is shown every loss.

    Args:
        task: What to train.
        optimizer: Of the task's parameters.
        steps: How many.
        disturbed: Whether the task is disturbed in step t = 1, 2, ….

    Returns:
        The loss of every step, in nats.
    """
    observe = getattr(optimizer, "observe", None)
    losses = []
    for step in range(1, steps + 1):
        loss = task.loss(disturbed(step))
        loss.backward()
        if observe is not None:
            observe(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
