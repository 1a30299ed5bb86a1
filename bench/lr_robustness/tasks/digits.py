"""scikit-learn's 1,797 handwritten digits: classified, with wrong labels too, or compressed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lr_robustness.tasks.base import Batch, Problem, Task, shuffled, split

HELD_OUT = 360


@dataclass(frozen=True, kw_only=True)
class DigitsMLP(Task):
    """A perceptron 64-64-10.

    Attributes:
        wrong: Share of the training labels that are replaced by a class drawn at random, anew in
            every batch: no model can learn them by heart. Held-out labels stay right.
    """

    wrong: float = 0.0

    def start(self, seed: int) -> Problem:
        """Draw the weights, the order of the images and the wrong labels."""
        (images, labels), held_out = _digits()
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        order = shuffled(len(images), self.steps, self.batch, seed)
        targets = mislabelled(labels[order], self.wrong, seed)
        return Problem(
            model,
            lambda step: (images[order[step]], targets[step]),
            lambda x, y: F.cross_entropy(model(x), y),
            [held_out],
        )


@dataclass(frozen=True, kw_only=True)
class DigitsCNN(Task):
    """Two convolutions of 8 and 16 channels, each halved by a maximum, and a linear layer."""

    def start(self, seed: int) -> Problem:
        """Draw the weights and the order of the images."""
        (images, labels), held_out = _digits()
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
        order = shuffled(len(images), self.steps, self.batch, seed)
        return Problem(
            model,
            lambda step: (images[order[step]], labels[order[step]]),
            lambda x, y: F.cross_entropy(model(x), y),
            [held_out],
        )


@dataclass(frozen=True, kw_only=True)
class DigitsAutoencoder(Task):
    """A perceptron 64-32-8-32-64 that gives its input back; the eight in the middle are linear."""

    def start(self, seed: int) -> Problem:
        """Draw the weights and the order of the images."""
        (images, _), (held_out, _) = _digits()
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)),
            *(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)),
        )
        order = shuffled(len(images), self.steps, self.batch, seed)

        def batch(step: int) -> Batch:
            x = images[order[step]]
            return x, x

        return Problem(model, batch, lambda x, y: F.mse_loss(model(x), y), [(held_out, held_out)])


def mislabelled(labels: Tensor, share: float, seed: int) -> Tensor:
    """The labels with a share of them replaced by classes 0 to 9 drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(10, labels.shape, generator=generator)
    is_wrong = torch.rand(labels.shape, generator=generator) < share
    return torch.where(is_wrong, other, labels)


@cache
def _digits() -> tuple[Batch, Batch]:
    """Training and held-out images, float32 (n, 64) of mean 0 and variance 1, and int64 labels."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)
    train, held_out = split(len(images), HELD_OUT)
    images = (images - images[train].mean()) / images[train].std()
    return (images[train], labels[train]), (images[held_out], labels[held_out])
