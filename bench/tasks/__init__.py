"""Every task, by name, in the order in which tables show them; real data, none downloaded."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional as F

from bench.tasks import data
from bench.tasks.base import Batch, Problem, Task
from bench.tasks.characters import Characters, Passages
from bench.tasks.disturbed import Quadratic, WrongLabels
from bench.tasks.supervised import (
    CharacterGRU,
    Redrawn,
    Sines,
    Supervised,
    autoencoder,
    fashion_cnn,
    per_character,
    perceptron_of,
    small_cnn,
)

__all__ = ["LAW_TASKS", "QUICK", "ROBUSTNESS", "TASKS", "Batch", "Problem", "Task"]

GPT = partial(Characters, steps=1000, batch=16)
"""Characters need no large embedding: what GPT-2 has there, the larger ones have in the width."""
SMALL = partial(Supervised, steps=1000, batch=32)
DIGITS = partial(SMALL, data=data.standard_digits, seconds=0.5, net=perceptron_of(64, 64, 10))
LAW = partial(Redrawn, steps=1000, batch=64, order=1000, measure=F.cross_entropy)
CHOSEN, SEEN, UNSEEN = (partial(LAW, role=r) for r in ("development", "looked at", "held out"))
TANH = partial(perceptron_of, activation=nn.Tanh)
ON_SOURCES = "on Python's sources (nats per character)"

_ROBUSTNESS: tuple[Task, ...] = (
    GPT(
        name="gpt-31k",
        title=f"character GPT, 31k parameters, {ON_SOURCES}",
        seconds=4.0,
        layers=2,
        heads=4,
        width=32,
        context=32,
    ),
    GPT(
        name="gpt-0.2m",
        title=f"character GPT, 0.2M parameters, {ON_SOURCES}",
        seconds=26.0,
        layers=4,
        heads=4,
        width=64,
        context=64,
    ),
    GPT(
        name="gpt-10m",
        title=f"character GPT, 10M parameters, {ON_SOURCES}",
        seconds=20.0,
        batch=32,
        device="cuda",
        layers=6,
        heads=6,
        width=384,
        context=256,
    ),
    GPT(
        name="gpt-124m",
        title=f"character GPT, 124M parameters, {ON_SOURCES}",
        seconds=60.0,
        device="cuda",
        layers=12,
        heads=29,
        width=928,
        context=256,
    ),
    DIGITS(name="digits-mlp", title="perceptron on digits (cross-entropy, nats)"),
    DIGITS(
        name="digits-noise",
        title="perceptron on digits, 10 % of the labels wrong (cross-entropy, nats)",
        wrong=0.1,
    ),
    DIGITS(
        name="digits-cnn",
        title="small CNN on digits (cross-entropy, nats)",
        seconds=1.5,
        net=small_cnn,
    ),
    SMALL(
        name="fashion-cnn",
        title="small CNN on Fashion-MNIST (cross-entropy, nats)",
        seconds=4.0,
        data=data.fashion,
        net=fashion_cnn,
        chunk=500,
        absent=data.fashion_missing,
    ),
    SMALL(
        name="autoencoder",
        title="autoencoder on digits (mean squared error, variances)",
        seconds=0.7,
        data=data.standard_digits_to_themselves,
        net=autoencoder,
        measure=F.mse_loss,
    ),
    SMALL(
        name="logistic",
        title="logistic regression on breast_cancer (cross-entropy, nats)",
        seconds=0.3,
        data=data.biopsies,
        net=perceptron_of(30, 1),
        measure=F.binary_cross_entropy_with_logits,
    ),
    Sines(
        name="sines",
        title="regression of sin(12x) + ½ sin(31x + 1), noise 0.2 (mean squared error)",
        seconds=0.6,
        steps=1500,
        batch=64,
    ),
)
ROBUSTNESS = {task.name: task for task in _ROBUSTNESS}
"""What methods are compared on (`bench.lr_robustness`)."""

QUICK = ("gpt-31k", "digits-mlp", "autoencoder")
"""A language model, a classifier and a regression: minutes on two cores."""

# What find_lr's law was made with: the development tasks, and those that were held out from it.
_LAW: tuple[Task, ...] = (
    CHOSEN(
        name="digits",
        title="perceptron 64-64-10 on digits (nats)",
        data=data.digits,
        net=perceptron_of(64, 64, 10),
    ),
    CHOSEN(
        name="auto",
        title="autoencoder 64-128-16-128-64 on digits (mean squared error)",
        data=data.digits_to_themselves,
        net=perceptron_of(64, 128, 16, 128, 64),
        measure=F.mse_loss,
    ),
    CHOSEN(
        name="sin",
        title="regression of two sines, tanh, 1-64-64-1 (mean squared error)",
        data=data.noisy_sines,
        steps=2000,
        net=TANH(1, 64, 64, 1),
        measure=F.mse_loss,
    ),
    CHOSEN(
        name="logreg",
        title="logistic regression on breast_cancer (nats)",
        data=data.tumours,
        batch=32,
        net=perceptron_of(30, 1),
        measure=F.binary_cross_entropy_with_logits,
    ),
    CHOSEN(
        name="digits-mislabelled",
        title="perceptron on digits, a tenth of the training labels wrong for good (nats)",
        data=data.mislabelled_digits,
        net=perceptron_of(64, 64, 10),
    ),
    CHOSEN(
        name="digits-cnn-32",
        title="CNN of 16 and 32 channels on digits (nats)",
        data=data.digits,
        steps=600,
        batch=32,
        net=partial(small_cnn, 16, 32),
    ),
    SEEN(
        name="friedman",
        title="perceptron 10-64-64-1 on Friedman's function (mean squared error, variances)",
        data=data.friedman,
        batch=16,
        net=perceptron_of(10, 64, 64, 1),
        measure=F.mse_loss,
    ),
    SEEN(
        name="moons",
        title="perceptron 2-32-32-2, tanh, on two moons (nats)",
        data=data.moons,
        steps=800,
        batch=32,
        net=TANH(2, 32, 32, 2),
    ),
    SEEN(
        name="gru",
        title=f"GRU, 12k parameters, {ON_SOURCES}",
        data=data.sources,
        steps=800,
        batch=16,
        net=CharacterGRU,
        measure=per_character,
    ),
    UNSEEN(
        name="fashion-mlp",
        title="perceptron 784-32-10 on Fashion-MNIST (nats)",
        data=data.flat_fashion,
        steps=800,
        batch=32,
        net=perceptron_of(784, 32, 10),
        absent=data.fashion_missing,
    ),
    UNSEEN(
        name="sin256",
        title="two sines with batches of 256 (mean squared error)",
        data=data.noisy_sines,
        steps=2000,
        batch=256,
        net=TANH(1, 64, 64, 1),
        measure=F.mse_loss,
    ),
    UNSEEN(
        name="auto-tanh",
        title="autoencoder 64-64-8-64-64, tanh, on digits (mean squared error)",
        data=data.signed_digits_to_themselves,
        batch=32,
        net=TANH(64, 64, 8, 64, 64),
        measure=F.mse_loss,
    ),
    UNSEEN(
        name="digits16",
        title="perceptron 64-128-128-10 on digits, batches of 16 (nats)",
        data=data.digits,
        batch=16,
        net=perceptron_of(64, 128, 128, 10),
    ),
    UNSEEN(
        name="digits-deep",
        title="perceptron of seven layers on digits (nats)",
        data=data.digits,
        net=perceptron_of(*[64] * 7, 10),
    ),
)
LAW_TASKS = {task.name: task for task in _LAW}
"""What is trained side by side (`bench.alignment_variants`)."""

_DISTURBED: tuple[Task, ...] = (
    Passages(name="code", steps=500),
    Passages(name="code-long", steps=2000),
    Passages(name="prose-to-cipher", steps=1200, learnt="prose", between=(601, 1200)),
    Passages(
        name="prose-to-code", steps=1200, learnt="prose", disturbed="code", between=(601, 1200)
    ),
    WrongLabels(name="labels", steps=4000),
    WrongLabels(name="labels-wrong-30", steps=12_000, wrong=0.3),
    WrongLabels(name="labels-wrong-10", steps=8000, wrong=0.1),
    WrongLabels(name="labels-break", steps=1200, between=(501, 700)),
    WrongLabels(name="labels-break-late", steps=5000, wrong=0.2, between=(4001, 4200)),
    Quadratic(name="quadratic", steps=8000),
    Quadratic(name="quadratic-noisy", steps=8000, noise=0.3),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_ROBUSTNESS, *_LAW, *_DISTURBED)}
