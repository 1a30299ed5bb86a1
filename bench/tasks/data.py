"""The data, all of it on the machine already; no seed changes what is held out."""

import gzip
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
CONTEXT = 32  # characters per window of `sources`


class Data(NamedTuple):
    """Inputs and targets, in pairs of tensors whose first dimension is the examples."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


def divided(x: Tensor, y: Tensor, held_out: int, seed: int = 0) -> Data:
    """Hold out as many examples, drawn by a seed that is no run's."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, rest = order[held_out:], order[:held_out]
    return Data((x[train], y[train]), (x[rest], y[rest]))


@cache
def digits_in_unit() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits: float32 (n, 64) in [0, 1], and int64 labels."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, classes = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)


@cache
def standard_digits() -> Data:
    """The digits with mean 0 and variance 1; 360 held out."""
    images, labels = digits_in_unit()
    train, held_out = divided(images * 16, labels, 360)
    mean, deviation = train[0].mean(), train[0].std()
    return Data(*(((x - mean) / deviation, y) for x, y in (train, held_out)))


@cache
def digits() -> Data:
    """The digits in [0, 1]; 400 held out."""
    return divided(*digits_in_unit(), 400)


@cache
def mislabelled_digits() -> Data:
    """A tenth of the training labels drawn at random, once and for all: they can be learnt."""
    (images, labels), held_out = digits()
    generator = torch.Generator().manual_seed(9)
    wrong = torch.rand(len(labels), generator=generator) < 0.1
    noisy = labels.clone()
    noisy[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=generator)
    return Data((images, noisy), held_out)


def signed_digits() -> Data:
    """The same from -1 to 1, for tanh."""
    return Data(*((2 * x - 1, y) for x, y in digits()))


def to_themselves(read: Callable[[], Data]) -> Data:
    """The inputs as their own targets, to be compressed."""
    return Data(*((x, x) for x, _ in read()))


@cache
def biopsies() -> Data:
    """breast_cancer: 569 of 30 measurements, float32 (n, 30); labels float32 (n, 1).

    Standardised by the training examples; 114 held out.
    """
    x, y = _tumours()
    train, held_out = divided(x.double(), y, 114)
    mean, deviation = train[0].mean(0), train[0].std(0)
    return Data(*((((x - mean) / deviation).float(), y) for x, y in (train, held_out)))


@cache
def tumours() -> Data:
    """The same standardised by all examples; 150 held out."""
    x, y = _tumours()
    x = x.float()
    return divided((x - x.mean(0)) / x.std(0), y, 150)


def _tumours() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_breast_cancer

    features, classes = load_breast_cancer(return_X_y=True)
    return torch.tensor(features), torch.tensor(classes, dtype=torch.float32).unsqueeze(1)


@cache
def noisy_sines() -> Data:
    """`sines` at 2,048 points in [-1, 1], noise 0.2; held out is the curve without noise."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2048, 1, generator=generator) * 2 - 1
    y = sines(x) + 0.2 * torch.randn(2048, 1, generator=generator)
    return Data((x, y), sines_held_out())


def sines(x: Tensor) -> Tensor:
    """sin(12x) + ½ sin(31x + 1): training begins on a plateau."""
    return torch.sin(12 * x) + 0.5 * torch.sin(31 * x + 1)


def sines_held_out() -> tuple[Tensor, Tensor]:
    """The curve on a grid of 512 points."""
    grid = torch.linspace(-1, 1, 512)[:, None]
    return grid, sines(grid)


@cache
def friedman() -> Data:
    """Friedman's first function: five of ten numbers matter; targets (n, 1) of variance 1."""
    from sklearn.datasets import make_friedman1

    features, targets = make_friedman1(2500, noise=1.0, random_state=0)
    y = torch.tensor(targets, dtype=torch.float32)[:, None]
    return divided(torch.tensor(features, dtype=torch.float32), (y - y.mean()) / y.std(), 500)


@cache
def moons() -> Data:
    """Two half moons in the plane, noise 0.25; int64 labels."""
    from sklearn.datasets import make_moons

    points, sides = make_moons(3000, noise=0.25, random_state=0)
    return divided(torch.tensor(points, dtype=torch.float32), torch.tensor(sides), 1000)


@cache
def diabetes() -> Data:
    """scikit-learn's diabetes: 442 patients of ten measurements; targets (n, 1); 110 held out.

    Standardised by the training examples.
    """
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
    train, held_out = divided(x, y[:, None], 110)
    (x_mean, x_deviation), (y_mean, y_deviation) = ((part.mean(0), part.std(0)) for part in train)
    return Data(
        *(
            (((x - x_mean) / x_deviation).float(), ((y - y_mean) / y_deviation).float())
            for x, y in (train, held_out)
        )
    )


@cache
def sources() -> Data:
    """The standard library's first 60 modules by name, in windows; targets one character on."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60]
    text = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    ids = torch.unique(torch.tensor(list(text.encode("ascii", "ignore"))), return_inverse=True)[1]
    whole = (len(ids) - 1) // CONTEXT * CONTEXT
    return divided(ids[:whole].view(-1, CONTEXT), ids[1 : whole + 1].view(-1, CONTEXT), 256, seed=5)


@cache
def fashion() -> Data:
    """Fashion-MNIST from Debian's package: uint8 (n, 1, 28, 28), int64 labels; 4,000 held out.

    Of the 10,000 test pictures, the first: enough to tell methods apart, and twice as fast.
    """
    images, labels, test_images, test_labels = map(read_idx, _fashion_files())
    return Data(
        (images.unsqueeze(1), labels.long()),
        (test_images[:4000].unsqueeze(1), test_labels[:4000].long()),
    )


def little_held_out(read: Callable[[], Data], count: int) -> Data:
    """Only the first so many held-out examples, where they are looked at often."""
    train, (x, y) = read()
    return Data(train, (x[:count], y[:count]))


@cache
def flat_fashion() -> Data:
    """The same as float32 (n, 784) of mean 0 and variance 1; the first 1,000 held out."""
    train, held_out = (((x.flatten(1).float() / 255 - 0.286) / 0.353, y) for x, y in fashion())
    return Data(train, (held_out[0][:1000], held_out[1][:1000]))


def fashion_missing() -> str | None:
    """Why Fashion-MNIST cannot be read here and what would help; ``None`` where it can."""
    absent = [file for file in _fashion_files() if not file.is_file()]
    if not absent:
        return None
    return (
        f"{absent[0]} does not exist; install Debian's dataset-fashion-mnist "
        "(nothing is downloaded here)"
    )


def _fashion_files() -> list[Path]:
    return [FASHION / f"{name}-ubyte.gz" for name in FASHION_FILES]


def read_idx(path: Path) -> Tensor:
    """An idx file: two zeros, the type (8: bytes), the number of dimensions, each as an int32."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of bytes: it begins with {raw[:4]!r}")
    header = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:header], dtype=">i4").tolist()
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
