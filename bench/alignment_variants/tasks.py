"""The tasks: pure functions of a list of parameters, so that many runs can be trained as one.

The seed of a run gives its weights and its batches. Weights are drawn as torch's own layers draw
them: every rate and every variant of a seed starts from the same ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.alignment_variants import data
from bench.alignment_variants.data import CONTEXT, Load
from bench.lr_robustness.tasks.base import shuffled

Role = Literal["development", "looked at", "held out"]
Parameters = list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is learnt, from what, for how long.

    Attributes:
        name: On the command line and in the tables.
        title: For people, with the loss's unit.
        role: ``"development"``: the numbers of the law were chosen on it. ``"looked at"``: nothing
            was chosen for it, but its results were seen meanwhile. ``"held out"``: neither.
        load: Reads its data.
        steps: Optimizer steps of a run.
        batch: Examples per step.
        is_long: Only the variants that matter most are run on it, unless others are asked for.
        missing: Says why it cannot run here; ``None`` where it can.
    """

    name: str
    title: str
    role: Role
    load: Load
    steps: int = 1000
    batch: int = 64
    is_long: bool = False
    missing: Callable[[], str | None] = field(default=lambda: None)

    def batches(self, seed: int) -> Tensor:
        """Which training examples every step sees, int64 (steps, batch)."""
        return shuffled(len(self.load().train[0]), self.steps, self.batch, 1000 + seed)

    @abstractmethod
    def start(self, seed: int) -> Parameters:
        """Draw the parameters, float32."""

    @abstractmethod
    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss over a batch, a scalar."""


def _uniform(generator: Generator, fan_in: int, *shape: int) -> Tensor:
    """U(−1/√fan_in, 1/√fan_in), as torch draws linear and convolutional layers."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) * (1 / math.sqrt(fan_in))


def _linear(generator: Generator, outputs: int, inputs: int) -> Parameters:
    return [
        _uniform(generator, inputs, outputs, inputs),
        _uniform(generator, inputs, outputs),
    ]


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


@dataclass(frozen=True, kw_only=True)
class Perceptron(Task):
    """Linear layers with an activation between them.

    Attributes:
        sizes: Of the layers, the input's first.
        activation: Between layers.
        measure: The loss, of outputs and targets.
    """

    sizes: tuple[int, ...]
    activation: Callable[[Tensor], Tensor] = torch.relu
    measure: Callable[[Tensor, Tensor], Tensor] = _cross_entropy

    def start(self, seed: int) -> Parameters:
        """Weight and bias of each layer."""
        generator = torch.Generator().manual_seed(seed)
        layers = zip(self.sizes, self.sizes[1:], strict=False)
        return [p for inputs, outputs in layers for p in _linear(generator, outputs, inputs)]

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Of x (batch, sizes[0])."""
        last = len(parameters) - 2
        for layer in range(0, last, 2):
            x = self.activation(x @ parameters[layer].T + parameters[layer + 1])
        return self.measure(x @ parameters[last].T + parameters[last + 1], y)


@dataclass(frozen=True, kw_only=True)
class SmallCNN(Task):
    """Two convolutions of 16 and 32 channels, each halved by a maximum, and a linear layer."""

    channels: tuple[int, ...] = (16, 32)

    def start(self, seed: int) -> Parameters:
        """Weight and bias of each layer."""
        generator = torch.Generator().manual_seed(seed)
        parameters = []
        inputs = 1
        for outputs in self.channels:
            parameters += [
                _uniform(generator, 9 * inputs, outputs, inputs, 3, 3),
                _uniform(generator, 9 * inputs, outputs),
            ]
            inputs = outputs
        pixels = (8 // 2 ** len(self.channels)) ** 2
        return parameters + _linear(generator, 10, inputs * pixels)

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Of x (batch, 1, 8, 8)."""
        for layer in range(0, 2 * len(self.channels), 2):
            x = F.conv2d(x, parameters[layer], parameters[layer + 1], padding=1)
            x = F.max_pool2d(F.relu(x), 2)
        return F.cross_entropy(x.flatten(1) @ parameters[-2].T + parameters[-1], y)


@dataclass(frozen=True, kw_only=True)
class CharacterGPT(Task):
    """A pre-norm transformer whose embedding is its output as well."""

    width: int = 32
    layers: int = 2
    heads: int = 2

    def start(self, seed: int) -> Parameters:
        """GPT-2's way: normal of 0.02, what adds to the stream divided by √(2·layers)."""
        generator = torch.Generator().manual_seed(seed)
        d = self.width

        def normal(*shape: int, share: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator) * (0.02 * share)

        share = 1 / math.sqrt(2 * self.layers)
        parameters = [normal(data.sources().characters, d), normal(CONTEXT, d)]
        for _ in range(self.layers):
            parameters += [torch.ones(d), torch.zeros(d)]
            parameters += [normal(3 * d, d), normal(d, d, share=share)]
            parameters += [torch.ones(d), torch.zeros(d)]
            parameters += [normal(4 * d, d), torch.zeros(4 * d)]
            parameters += [normal(d, 4 * d, share=share), torch.zeros(d)]
        return [*parameters, torch.ones(d), torch.zeros(d)]

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Of x (batch, CONTEXT), int64."""
        embedding, positions, *rest = parameters
        stream = embedding[x] + positions
        for block in range(0, 10 * self.layers, 10):
            stream = self._block(stream, rest[block : block + 10])
        scale, shift = rest[-2:]
        stream = F.layer_norm(stream, (self.width,), scale, shift)
        return F.cross_entropy((stream @ embedding.T).flatten(0, 1), y.flatten())

    def _block(self, stream: Tensor, parameters: Parameters) -> Tensor:
        """Attention and a perceptron, each added to the stream (batch, time, width)."""
        scale, shift, qkv, out, scale_2, shift_2, up, up_bias, down, down_bias = parameters
        batch, time, d = stream.shape
        per_head = d // self.heads
        normed = F.layer_norm(stream, (d,), scale, shift)
        q, k, v = (normed @ qkv.T).view(batch, time, 3, self.heads, per_head).permute(2, 0, 3, 1, 4)
        future = torch.full((time, time), -1e9).triu(1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(per_head) + future).softmax(-1)
        stream = stream + (weights @ v).transpose(1, 2).reshape(batch, time, d) @ out.T
        normed = F.layer_norm(stream, (d,), scale_2, shift_2)
        return stream + F.gelu(normed @ up.T + up_bias) @ down.T + down_bias


@dataclass(frozen=True, kw_only=True)
class CharacterGRU(Task):
    """One gated recurrent layer over the first characters of a window."""

    width: int = 32
    time: int = 16

    def start(self, seed: int) -> Parameters:
        """Embedding, the three gates' weights from below and from before, and the output."""
        generator = torch.Generator().manual_seed(seed)
        d, vocabulary = self.width, data.sources().characters
        return [
            torch.randn(vocabulary, d, generator=generator),
            _uniform(generator, d, 3 * d, d),
            _uniform(generator, d, 3 * d, d),
            torch.zeros(3 * d),
            _uniform(generator, d, vocabulary, d),
            torch.zeros(vocabulary),
        ]

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Of x (batch, CONTEXT), int64."""
        embedding, below, before, bias, out, out_bias = parameters
        inputs = embedding[x] @ below.T + bias
        state = torch.zeros(len(x), self.width)
        states = []
        for moment in range(self.time):
            reset_in, update_in, new_in = inputs[:, moment].chunk(3, -1)
            reset_at, update_at, new_at = (state @ before.T).chunk(3, -1)
            reset, update = torch.sigmoid(reset_in + reset_at), torch.sigmoid(update_in + update_at)
            new = torch.tanh(new_in + reset * new_at)
            state = (1 - update) * new + update * state
            states.append(state)
        outputs = torch.stack(states, 1) @ out.T + out_bias
        return F.cross_entropy(outputs.flatten(0, 1), y[:, : self.time].flatten())


_TASKS: tuple[Task, ...] = (
    Perceptron(
        name="digits",
        title="perceptron 64-64-10 on digits (cross-entropy, nats)",
        role="development",
        load=data.digits,
        sizes=(64, 64, 10),
    ),
    Perceptron(
        name="auto",
        title="autoencoder 64-128-16-128-64 on digits (mean squared error)",
        role="development",
        load=data.digits_to_themselves,
        sizes=(64, 128, 16, 128, 64),
        measure=_squared_error,
    ),
    Perceptron(
        name="sin",
        title="regression of sin(12x) + ½ sin(31x + 1), tanh, 1-64-64-1 (mean squared error)",
        role="development",
        load=data.sines,
        steps=2000,
        sizes=(1, 64, 64, 1),
        activation=torch.tanh,
        measure=_squared_error,
    ),
    Perceptron(
        name="logreg",
        title="logistic regression on breast_cancer (cross-entropy, nats)",
        role="development",
        load=data.tumours,
        batch=32,
        sizes=(30, 1),
        measure=_binary_cross_entropy,
    ),
    Perceptron(
        name="digits-noise",
        title="the perceptron on digits, a tenth of the training labels wrong (nats)",
        role="development",
        load=data.mislabelled_digits,
        sizes=(64, 64, 10),
    ),
    SmallCNN(
        name="digits-cnn",
        title="small CNN on digits (cross-entropy, nats)",
        role="development",
        load=data.digit_pictures,
        steps=600,
        batch=32,
    ),
    CharacterGPT(
        name="gpt",
        title="character GPT, 29k parameters, on Python's sources (nats per character)",
        role="development",
        load=data.characters,
        batch=16,
        is_long=True,
    ),
    Perceptron(
        name="friedman",
        title="perceptron 10-64-64-1 on Friedman's function (mean squared error, variances)",
        role="looked at",
        load=data.friedman,
        batch=16,
        sizes=(10, 64, 64, 1),
        measure=_squared_error,
    ),
    Perceptron(
        name="moons",
        title="perceptron 2-32-32-2, tanh, on two moons (cross-entropy, nats)",
        role="looked at",
        load=data.moons,
        steps=800,
        batch=32,
        sizes=(2, 32, 32, 2),
        activation=torch.tanh,
    ),
    CharacterGRU(
        name="gru",
        title="GRU, 12k parameters, on Python's sources (nats per character)",
        role="looked at",
        load=data.characters,
        steps=800,
        batch=16,
        is_long=True,
    ),
    Perceptron(
        name="fashion-mlp",
        title="perceptron 784-32-10 on Fashion-MNIST (cross-entropy, nats)",
        role="held out",
        load=data.fashion,
        steps=800,
        batch=32,
        sizes=(784, 32, 10),
        missing=data.fashion_missing,
    ),
    Perceptron(
        name="sin256",
        title="sin with batches of 256 (mean squared error)",
        role="held out",
        load=data.sines,
        steps=2000,
        batch=256,
        is_long=True,
        sizes=(1, 64, 64, 1),
        activation=torch.tanh,
        measure=_squared_error,
    ),
    Perceptron(
        name="auto-tanh",
        title="autoencoder 64-64-8-64-64, tanh, on digits (mean squared error)",
        role="held out",
        load=data.signed_digits_to_themselves,
        batch=32,
        sizes=(64, 64, 8, 64, 64),
        activation=torch.tanh,
        measure=_squared_error,
    ),
    Perceptron(
        name="digits16",
        title="perceptron 64-128-128-10 on digits, batches of 16 (nats)",
        role="held out",
        load=data.digits,
        batch=16,
        is_long=True,
        sizes=(64, 128, 128, 10),
    ),
    Perceptron(
        name="digits-deep",
        title="perceptron of seven layers on digits (nats)",
        role="held out",
        load=data.digits,
        is_long=True,
        sizes=(64, *[64] * 6, 10),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

QUICK = "digits"
"""A minute on one core, all variants."""
