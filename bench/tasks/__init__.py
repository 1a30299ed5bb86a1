"""Every task, by name, in the order in which tables show them; real data, none downloaded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional as F

from bench.tasks import data
from bench.tasks.base import Batch, Problem, Role, Task
from bench.tasks.characters import Characters, Passages
from bench.tasks.disturbed import Quadratic, WrongLabels
from bench.tasks.lora import FineTuning
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

__all__ = [
    "GPTS",
    "LAW_TASKS",
    "QUICK",
    "ROBUSTNESS",
    "STUDY_TASKS",
    "TASKS",
    "Batch",
    "Problem",
    "Task",
]

NATS = "(cross-entropy, nats)"
ON_SOURCES = "on Python's sources (nats per character)"
LOGISTIC: dict[str, Any] = {
    "net": perceptron_of(30, 1),
    "measure": F.binary_cross_entropy_with_logits,
}
ON_FASHION: dict[str, Any] = {"absent": data.fashion_missing, "batch": 32}


CLOTHES_CNN: dict[str, Any] = {"data": data.fashion, "net": fashion_cnn, "chunk": 500, **ON_FASHION}
COMPRESS: dict[str, Any] = {
    "data": partial(data.to_themselves, data.standard_digits),
    "net": autoencoder,
    "measure": F.mse_loss,
}
BIOPSIES: dict[str, Any] = {"data": data.biopsies, **LOGISTIC}


def _gpt(name: str, size: str, seconds: float, sizes: tuple[int, ...], **more: Any) -> Characters:
    named: Any = dict(zip(("layers", "heads", "width", "context"), sizes, strict=True))
    title = f"character GPT, {size} parameters, {ON_SOURCES}"
    settings: Any = {"steps": 1000, "batch": 16, **named, **more}
    return Characters(name=name, title=title, seconds=seconds, **settings)


def _small(name: str, title: str, seconds: float = 0.5, **more: Any) -> Supervised:
    usual: Any = {"data": data.standard_digits, "net": perceptron_of(64, 64, 10), "batch": 32}
    return Supervised(name=name, title=title, seconds=seconds, **{"steps": 1000} | usual | more)


_ROBUSTNESS: tuple[Task, ...] = (
    _gpt("gpt-31k", "31k", 4.0, (2, 4, 32, 32)),
    _gpt("gpt-0.2m", "0.2M", 26.0, (4, 4, 64, 64)),
    _gpt("gpt-10m", "10M", 20.0, (6, 6, 384, 256), batch=32, device="cuda"),
    # GPT-2-small's depth and size; characters need no large embedding, so it is in the width.
    _gpt("gpt-124m", "124M", 60.0, (12, 29, 928, 256), device="cuda"),
    _small("digits-mlp", f"perceptron on digits {NATS}"),
    _small("digits-noise", f"perceptron on digits, 10 % of the labels wrong {NATS}", wrong=0.1),
    _small("digits-cnn", f"small CNN on digits {NATS}", 1.5, net=small_cnn),
    _small("fashion-cnn", f"small CNN on Fashion-MNIST {NATS}", 4.0, **CLOTHES_CNN),
    _small("autoencoder", "autoencoder on digits (mean squared error, variances)", 0.7, **COMPRESS),
    _small("logistic", f"logistic regression on breast_cancer {NATS}", 0.3, **BIOPSIES),
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


def _law(
    role: Role, name: str, title: str, read: Callable[[], data.Data], *learner: Any, **more: Any
) -> Redrawn:
    learnt: Any = dict(zip(("net", "measure"), learner, strict=False))
    settings: Any = {"steps": 1000, "batch": 64, "order": 1000, **learnt, **more}
    return Redrawn(name=name, title=title, role=role, data=read, **settings)


# What the alignment law was made with: the development tasks, and those that were held out from it.
_chosen, _seen, _unseen = (partial(_law, r) for r in ("development", "looked at", "held out"))
_mlp, _tanh = perceptron_of, partial(perceptron_of, activation=nn.Tanh)
SQUARED: dict[str, Any] = {"measure": F.mse_loss}
AE = partial(data.to_themselves, data.digits), _mlp(64, 128, 16, 128, 64)
SIGNED_AE = partial(data.to_themselves, data.signed_digits), _tanh(64, 64, 8, 64, 64)
SINES = data.noisy_sines, _tanh(1, 64, 64, 1)
WRONG = data.mislabelled_digits, _mlp(64, 64, 10)
FRIEDMAN = data.friedman, _mlp(10, 64, 64, 1)
MOONS = data.moons, _tanh(2, 32, 32, 2)
CNN = data.digits, partial(small_cnn, 16, 32)
NORMALIZED_CNN = data.digits, partial(small_cnn, 16, 32, normalized=True)
GRU = data.sources, CharacterGRU, per_character
CLOTHES = data.flat_fashion, _mlp(784, 32, 10)

_LAW: tuple[Task, ...] = (
    _chosen("digits", "perceptron on digits (nats)", data.digits, _mlp(64, 64, 10)),
    _chosen("auto", "autoencoder on digits (squared error)", *AE, **SQUARED),
    _chosen("sin", "regression of two sines (squared error)", *SINES, steps=2000, **SQUARED),
    _chosen("logreg", "logistic regression (nats)", data.tumours, batch=32, **LOGISTIC),
    _chosen("digits-mislabelled", "digits, 10 % of the labels wrong for good (nats)", *WRONG),
    _chosen("digits-cnn-32", "larger CNN on digits (nats)", *CNN, steps=600, batch=32),
    _seen("friedman", "Friedman's function (squared error)", *FRIEDMAN, batch=16, **SQUARED),
    _seen("moons", "perceptron on two moons (nats)", *MOONS, steps=800, batch=32),
    _seen("gru", f"GRU, 12k parameters, {ON_SOURCES}", *GRU, steps=800, batch=16),
    _unseen("fashion-mlp", "Fashion-MNIST (nats)", *CLOTHES, steps=800, **ON_FASHION),
    _unseen("sin256", "sin, 256 a step (squared error)", *SINES, steps=2000, batch=256, **SQUARED),
    _unseen("auto-tanh", "auto with tanh (squared error)", *SIGNED_AE, batch=32, **SQUARED),
    _unseen("digits16", "digits, 16 a step (nats)", data.digits, _mlp(64, 128, 128, 10), batch=16),
    _unseen(
        "digits-cnn-bn",
        "digits-cnn-32 with BatchNorm (nats); not side by side: --engine processes",
        *NORMALIZED_CNN,
        steps=600,
        batch=32,
    ),
    _unseen("digits-deep", "seven layers on digits (nats)", data.digits, _mlp(*[64] * 7, 10)),
)
LAW_TASKS = {task.name: task for task in _LAW}
"""What is trained side by side (`bench.alignment_variants`)."""

LITTLE_FASHION = partial(data.little_held_out, data.fashion, 1000)
REGRESSION: dict[str, Any] = {
    "data": data.diabetes,
    "net": perceptron_of(10, 64, 64, 1),
    "measure": F.mse_loss,
}


def _study_gpt(name: str, size: str, seconds: float, width: int, steps: int) -> Characters:
    return _gpt(name, size, seconds, (4, 4, width, 32), steps=steps, batch=8)


_STUDY: tuple[Task, ...] = (
    _small(
        "diabetes",
        "perceptron on diabetes, tabular (squared error, variances)",
        0.2,
        steps=400,
        **REGRESSION,
    ),
    _small(
        "fashion-500",
        f"small CNN on Fashion-MNIST {NATS}",
        4.0,
        steps=500,
        **CLOTHES_CNN | {"data": LITTLE_FASHION},
    ),
    _study_gpt("chars-0.2m", "0.2M", 6.0, 64, 500),
    _study_gpt("chars-0.2m-4x", "0.2M", 20.0, 64, 2000),
    _study_gpt("chars-0.8m", "0.8M", 7.0, 128, 250),
    _study_gpt("chars-0.8m-4x", "0.8M", 25.0, 128, 1000),
    FineTuning(
        name="lora",
        title="LoRA, character GPT of 0.2M parameters, Python's sources to prose (nats)",
        seconds=4.0,
        steps=300,
        batch=8,
    ),
)
STUDY_TASKS = {name: ROBUSTNESS[name] for name in ("digits-mlp", "digits-cnn", "autoencoder")} | {
    task.name: task for task in _STUDY
}
"""What the study is about (`bench.study`)."""
GPTS = {name: task for name, task in STUDY_TASKS.items() if isinstance(task, Characters)} | {
    "gpt-31k": ROBUSTNESS["gpt-31k"]
}
"""Language models that a CPU trains in half a minute."""

_DISTURBED: tuple[Task, ...] = (
    Passages(name="code", steps=500),
    Passages(name="code-long", steps=2000),
    Passages(name="prose-to-cipher", steps=1200, learnt="prose", between=(601, 1200)),
    Passages(
        name="prose-to-code", steps=1200, learnt="prose", disturbed="code", between=(601, 1200)
    ),
    WrongLabels(name="labels-wrong-30", steps=12_000, wrong=0.3),
    WrongLabels(name="labels-wrong-10", steps=8000, wrong=0.1),
    WrongLabels(name="labels-break", steps=1200, between=(501, 700)),
    WrongLabels(name="labels-break-late", steps=5000, wrong=0.2, between=(4001, 4200)),
    Quadratic(name="quadratic", steps=8000),
    Quadratic(name="quadratic-noisy", steps=8000, noise=0.3),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_ROBUSTNESS, *_LAW, *_STUDY, *_DISTURBED)}
