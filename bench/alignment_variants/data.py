"""The data of the tasks, all of it on the machine already; no seed changes what is held out."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.lr_robustness.tasks.base import split
from bench.lr_robustness.tasks.fashion import FILES, FOLDER, read_idx

CONTEXT = 32
"""Characters per window."""
MODULES = 60
"""Of the standard library, the first by name: some 2 MB."""
HELD_OUT_WINDOWS = 256
HELD_OUT_PICTURES = 1000
"""Of Fashion-MNIST's 10,000, the first."""


class Data(NamedTuple):
    """Inputs and targets, in pairs of tensors whose first dimension is the examples."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


Load = Callable[[], Data]


def _divided(x: Tensor, y: Tensor, held_out: int) -> Data:
    train, rest = split(len(x), held_out)
    return Data((x[train], y[train]), (x[rest], y[rest]))


@cache
def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits: float32 (n, 64) in [0, 1], and int64 labels."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, classes = load_digits(return_X_y=True)
    return _divided(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes), 400)


@cache
def mislabelled_digits() -> Data:
    """A tenth of the training labels drawn at random, once and for all: they can be learnt."""
    (images, labels), held_out = digits()
    generator = torch.Generator().manual_seed(9)
    wrong = torch.rand(len(labels), generator=generator) < 0.1
    noisy = labels.clone()
    noisy[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=generator)
    return Data((images, noisy), held_out)


@cache
def digit_pictures() -> Data:
    """The digits as float32 (n, 1, 8, 8)."""
    (images, labels), (rest, rest_labels) = digits()
    return Data((images.view(-1, 1, 8, 8), labels), (rest.view(-1, 1, 8, 8), rest_labels))


@cache
def digits_to_themselves() -> Data:
    """The digits as their own targets."""
    (images, _), (rest, _) = digits()
    return Data((images, images), (rest, rest))


@cache
def signed_digits_to_themselves() -> Data:
    """The same from −1 to 1, for tanh."""
    (images, _), (rest, _) = digits()
    return Data((images * 2 - 1, images * 2 - 1), (rest * 2 - 1, rest * 2 - 1))


@cache
def tumours() -> Data:
    """breast_cancer: float32 (n, 30), standardised over all rows, and float32 labels 0 and 1."""
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    return _divided(x, torch.tensor(classes, dtype=torch.float32), 150)


@cache
def sines() -> Data:
    """sin(12x) + ½ sin(31x + 1) on [−1, 1], noise 0.2; held out is the curve without noise."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2048, 1, generator=generator) * 2 - 1
    y = _curve(x) + 0.2 * torch.randn(2048, 1, generator=generator)
    grid = torch.linspace(-1, 1, 512)[:, None]
    return Data((x, y), (grid, _curve(grid)))


def _curve(x: Tensor) -> Tensor:
    return torch.sin(12 * x) + 0.5 * torch.sin(31 * x + 1)


@cache
def friedman() -> Data:
    """Friedman's first function: five of ten numbers matter; targets (n, 1) of variance 1."""
    from sklearn.datasets import make_friedman1

    features, targets = make_friedman1(2500, noise=1.0, random_state=0)
    y = torch.tensor(targets, dtype=torch.float32)[:, None]
    return _divided(torch.tensor(features, dtype=torch.float32), (y - y.mean()) / y.std(), 500)


@cache
def moons() -> Data:
    """Two half moons in the plane, noise 0.25; int64 labels."""
    from sklearn.datasets import make_moons

    points, sides = make_moons(3000, noise=0.25, random_state=0)
    return _divided(torch.tensor(points, dtype=torch.float32), torch.tensor(sides), 1000)


class Text(NamedTuple):
    """Windows of text, int64 (n, CONTEXT) each, and how many different characters there are."""

    data: Data
    characters: int


@cache
def sources() -> Text:
    """The standard library's first modules by name, in windows; targets are one character on."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:MODULES]
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    raw = torch.tensor(list(text.encode("ascii", "ignore")))
    vocabulary, ids = torch.unique(raw, return_inverse=True)
    whole = (len(ids) - 1) // CONTEXT * CONTEXT
    x, y = ids[:whole].view(-1, CONTEXT), ids[1 : whole + 1].view(-1, CONTEXT)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    train, rest = order[HELD_OUT_WINDOWS:], order[:HELD_OUT_WINDOWS]
    return Text(Data((x[train], y[train]), (x[rest], y[rest])), len(vocabulary))


def characters() -> Data:
    """The windows of `sources`."""
    return sources().data


@cache
def fashion() -> Data:
    """Fashion-MNIST: float32 (n, 784) of mean 0 and variance 1, and int64 labels."""
    images, labels, test_images, test_labels = map(read_idx, _fashion_files())
    return Data(
        (_standardised(images), labels.long()),
        (
            _standardised(test_images[:HELD_OUT_PICTURES]),
            test_labels[:HELD_OUT_PICTURES].long(),
        ),
    )


def _standardised(images: Tensor) -> Tensor:
    return (images.flatten(1).float() / 255 - 0.286) / 0.353


def _fashion_files() -> list[Path]:
    return [FOLDER / f"{name}-ubyte.gz" for name in FILES]


def fashion_missing() -> str | None:
    """Why `fashion` cannot be read here and what would help; ``None`` where it can."""
    absent = [file for file in _fashion_files() if not file.is_file()]
    if not absent:
        return None
    return (
        f"{absent[0]} does not exist; install Debian's dataset-fashion-mnist (nothing is "
        "downloaded here)"
    )
