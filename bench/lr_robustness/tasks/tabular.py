"""scikit-learn's breast_cancer: 569 biopsies, 30 measurements each, benign or malignant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from bench.lr_robustness.tasks.base import Batch, Problem, Task, shuffled, split

HELD_OUT = 114


@dataclass(frozen=True, kw_only=True)
class Logistic(Task):
    """Logistic regression on the standardised measurements: convex, one layer."""

    def start(self, seed: int) -> Problem:
        """Draw the weights and the order of the examples."""
        (inputs, labels), held_out = _biopsies()
        torch.manual_seed(seed)
        model = nn.Linear(30, 1)
        order = shuffled(len(inputs), self.steps, self.batch, seed)
        return Problem(
            model,
            lambda step: (inputs[order[step]], labels[order[step]]),
            lambda x, y: F.binary_cross_entropy_with_logits(model(x), y),
            [held_out],
        )


@cache
def _biopsies() -> tuple[Batch, Batch]:
    """Training and held-out measurements, float32 (n, 30), and labels, float32 (n, 1)."""
    from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped]

    table, classes = load_breast_cancer(return_X_y=True)
    inputs = torch.tensor(table, dtype=torch.float64)
    labels = torch.tensor(classes, dtype=torch.float32).unsqueeze(1)
    train, held_out = split(len(inputs), HELD_OUT)
    inputs = ((inputs - inputs[train].mean(0)) / inputs[train].std(0)).float()
    return (inputs[train], labels[train]), (inputs[held_out], labels[held_out])
