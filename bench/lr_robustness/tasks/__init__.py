"""The tasks: real data that is on the machine already, in the order in which they are reported."""

from __future__ import annotations

from bench.lr_robustness.tasks.base import Problem, Task
from bench.lr_robustness.tasks.characters import Characters
from bench.lr_robustness.tasks.digits import DigitsAutoencoder, DigitsCNN, DigitsMLP
from bench.lr_robustness.tasks.fashion import FashionCNN
from bench.lr_robustness.tasks.regression import Sines
from bench.lr_robustness.tasks.tabular import Logistic

__all__ = ["QUICK", "TASKS", "Problem", "Task"]

_TASKS: tuple[Task, ...] = (
    Characters(
        name="gpt-31k",
        title="character GPT, 31k parameters, on Python's sources (nats per character)",
        seconds=4.0,
        steps=1000,
        batch=16,
        layers=2,
        heads=4,
        width=32,
        context=32,
    ),
    Characters(
        name="gpt-0.2m",
        title="character GPT, 0.2M parameters, on Python's sources (nats per character)",
        seconds=26.0,
        steps=1000,
        batch=16,
        layers=4,
        heads=4,
        width=64,
        context=64,
    ),
    Characters(
        name="gpt-10m",
        title="character GPT, 10M parameters, on Python's sources (nats per character)",
        seconds=20.0,
        steps=1000,
        batch=32,
        device="cuda",
        layers=6,
        heads=6,
        width=384,
        context=256,
    ),
    # GPT-2-small's depth and number of parameters. Characters need no 38 million of them in the
    # embedding, so they are in the width.
    Characters(
        name="gpt-124m",
        title="character GPT, 124M parameters, on Python's sources (nats per character)",
        seconds=60.0,
        steps=1000,
        batch=16,
        device="cuda",
        layers=12,
        heads=29,
        width=928,
        context=256,
    ),
    DigitsMLP(
        name="digits-mlp",
        title="perceptron on digits (cross-entropy, nats)",
        seconds=0.5,
        steps=1000,
        batch=32,
    ),
    DigitsMLP(
        name="digits-noise",
        title="perceptron on digits, 10 % of the labels wrong (cross-entropy, nats)",
        seconds=0.5,
        steps=1000,
        batch=32,
        wrong=0.1,
    ),
    DigitsCNN(
        name="digits-cnn",
        title="small CNN on digits (cross-entropy, nats)",
        seconds=1.5,
        steps=1000,
        batch=32,
    ),
    FashionCNN(
        name="fashion-cnn",
        title="small CNN on Fashion-MNIST (cross-entropy, nats)",
        seconds=4.0,
        steps=1000,
        batch=32,
    ),
    DigitsAutoencoder(
        name="autoencoder",
        title="autoencoder on digits (mean squared error, variances)",
        seconds=0.7,
        steps=1000,
        batch=32,
    ),
    Logistic(
        name="logistic",
        title="logistic regression on breast_cancer (cross-entropy, nats)",
        seconds=0.3,
        steps=1000,
        batch=32,
    ),
    Sines(
        name="sines",
        title="regression of sin(12x) + ½ sin(31x + 1), noise 0.2 (mean squared error)",
        seconds=0.6,
        steps=1500,
        batch=64,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

QUICK = ("gpt-31k", "digits-mlp", "autoencoder")
"""A language model, a classifier and a regression: minutes on two cores."""
