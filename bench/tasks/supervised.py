"""Inputs and targets: one kind of task, and the networks that learn them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tasks import data
from bench.tasks.base import Batch, Objective, Problem, Task, shuffled
from bench.tasks.data import Data

Activation = Callable[[], nn.Module]


def nothing_absent() -> None:
    """Of data that comes with a package."""


@dataclass(frozen=True, kw_only=True)
class Supervised(Task):
    """Epochs over a training set, each in a new order."""

    uses = (data,)

    data: Callable[[], Data]  # reads it
    net: Callable[[], nn.Module]  # makes the model; its weights are drawn by torch's own generator
    measure: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy  # the mean loss
    wrong: float = 0.0  # share of training labels replaced at random, anew in every batch
    chunk: int = 1024  # examples per held-out batch
    order: int = 0  # added to the run's seed to draw the order of the examples
    absent: Callable[[], str | None] = nothing_absent  # says why the data cannot be read here

    def missing(self) -> str | None:
        return self.absent() or super().missing()

    def start(self, seed: int) -> Problem:
        (inputs, labels), held_out = self.data()
        torch.manual_seed(seed)
        objective = Objective(self.net(), self.measure)
        order = shuffled(len(inputs), self.steps, self.batch, self.order + seed)
        targets = mislabelled(labels[order], self.wrong, seed) if self.wrong else None

        def batch(step: int) -> Batch:
            index = order[step]
            return inputs[index], labels[index] if targets is None else targets[step]

        chunks = zip(*(part.split(self.chunk) for part in held_out), strict=True)
        return Problem(objective, batch, list(chunks))


@dataclass(frozen=True, kw_only=True)
class Redrawn(Supervised):
    """Weights from a generator of their own, as the alignment law's tasks have always had them."""

    def start(self, seed: int) -> Problem:
        problem = super().start(seed)
        generator = torch.Generator().manual_seed(seed)
        for module in problem.objective.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                bound = 1 / math.sqrt(module.weight[0].numel())
                for parameter in (module.weight, module.bias):
                    if parameter is not None:
                        drawn = torch.rand(parameter.shape, generator=generator)
                        parameter.data = (drawn * 2 - 1) * bound
            elif isinstance(module, nn.Embedding):
                module.weight.data = torch.randn(module.weight.shape, generator=generator)
        return problem


@dataclass(frozen=True, kw_only=True)
class Sines(Task):
    """`data.sines` on [-1, 1] by a tanh network 1-64-64-1, at new points in every step."""

    uses = (data,)

    noise: float = 0.2  # standard deviation of what is added to the training targets

    def start(self, seed: int) -> Problem:
        torch.manual_seed(seed)
        model = perceptron(1, 64, 64, 1, activation=nn.Tanh)
        generator = torch.Generator().manual_seed(seed)
        shape = (self.steps, self.batch, 1)
        x = 2 * torch.rand(shape, generator=generator) - 1
        y = data.sines(x) + self.noise * torch.randn(shape, generator=generator)
        objective = Objective(model, F.mse_loss)
        return Problem(objective, lambda step: (x[step], y[step]), [data.sines_held_out()])


def mislabelled(labels: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(10, labels.shape, generator=generator)
    is_wrong = torch.rand(labels.shape, generator=generator) < share
    return torch.where(is_wrong, other, labels)


# The networks


def perceptron(*sizes: int, activation: Activation = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def autoencoder() -> nn.Sequential:
    return nn.Sequential(perceptron(64, 32, 8), perceptron(8, 32, 64))


def convolutions(first: int, second: int, normalized: bool = False) -> list[nn.Module]:
    """Two convolutions of 3 by 3, each halved by a maximum, then flat; with BatchNorm or not."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, first), (first, second)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
        layers += [nn.BatchNorm2d(outputs)] if normalized else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return [*layers, nn.Flatten()]


def small_cnn(first: int = 8, second: int = 16, normalized: bool = False) -> nn.Sequential:
    """Of pictures of 8 by 8, float32 (batch, 64)."""
    layers = convolutions(first, second, normalized)
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers, nn.Linear(4 * second, 10))


class Scaled(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels / 255


def fashion_cnn(dropout: float = 0.25) -> nn.Sequential:
    """Of pictures of 28 by 28, uint8 (batch, 1, 28, 28)."""
    last = (nn.Dropout(dropout), nn.Linear(784, 10))
    return nn.Sequential(Scaled(), *convolutions(8, 16), *last)


class CharacterGRU(nn.Module):
    """One gated recurrent layer over the first characters of a window."""

    def __init__(self, width: int = 32, time: int = 16) -> None:
        super().__init__()
        vocabulary = 1 + int(data.sources().train[0].max())
        self.time = time
        self.embedding = nn.Embedding(vocabulary, width)
        self.below = nn.Linear(width, 3 * width, bias=False)
        self.before = nn.Linear(width, 3 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out_bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, characters: Tensor) -> Tensor:
        inputs = self.below(self.embedding(characters[:, : self.time])) + self.bias
        state = torch.zeros_like(inputs[:, 0, : self.before.in_features])
        states = []
        for moment in range(self.time):
            reset_in, update_in, new_in = inputs[:, moment].chunk(3, -1)
            reset_at, update_at, new_at = self.before(state).chunk(3, -1)
            reset, update = torch.sigmoid(reset_in + reset_at), torch.sigmoid(update_in + update_at)
            state = (1 - update) * torch.tanh(new_in + reset * new_at) + update * state
            states.append(state)
        return self.out(torch.stack(states, 1)) + self.out_bias


def per_character(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets[:, : logits.shape[1]].flatten())


perceptron_of = partial(partial, perceptron)  # ``perceptron_of(64, 10)()`` makes the network
