"""Fashion-MNIST from Debian's package: 70,000 grey pictures of clothes in ten classes."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.lr_robustness.tasks.base import Problem, Task, shuffled

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
HELD_OUT = 4000
"""Of the 10,000 test pictures, the first: enough to tell methods apart, and twice as fast."""


@dataclass(frozen=True, kw_only=True)
class FashionCNN(Task):
    """Two convolutions of 8 and 16 channels, dropout and a linear layer.

    Attributes:
        dropout: Share of the last layer's inputs that a training step leaves out.
    """

    dropout: float = 0.25

    def missing(self) -> str | None:
        """Name the package where its files are not all there."""
        absent = [file for file in map(_path, FILES) if not file.is_file()]
        if absent:
            return (
                f"{absent[0]} does not exist; install Debian's dataset-fashion-mnist "
                "(nothing is downloaded here)"
            )
        return super().missing()

    def start(self, seed: int) -> Problem:
        """Draw the weights and the order of the pictures, and seed the dropout."""
        images, labels, test_images, test_labels = _fashion()
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(784, 10)),
        )
        order = shuffled(len(images), self.steps, self.batch, seed)
        return Problem(
            model,
            lambda step: (images[order[step]], labels[order[step]]),
            lambda x, y: F.cross_entropy(model(x / 255), y),
            list(
                zip(
                    test_images[:HELD_OUT].split(500),
                    test_labels[:HELD_OUT].split(500),
                    strict=True,
                )
            ),
        )


def _path(name: str) -> Path:
    return FOLDER / f"{name}-ubyte.gz"


@cache
def _fashion() -> tuple[Tensor, ...]:
    """Training and test pictures, uint8 (n, 1, 28, 28), and their int64 labels, in this order."""
    images, labels, test_images, test_labels = (read_idx(_path(name)) for name in FILES)
    return images.unsqueeze(1), labels.long(), test_images.unsqueeze(1), test_labels.long()


def read_idx(path: Path) -> Tensor:
    """An idx file: two zeros, the type (8: bytes), the number of dimensions, each as an int32."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes: it begins with {raw[:4]!r}")
    header = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:header], dtype=">i4").tolist()
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
