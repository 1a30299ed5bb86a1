"""Actors and critics of many runs, stacked: every parameter has the runs as its first dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.rl.environments import Task

WIDTH = 64


class Agents:
    """Two nets of three layers a run, the actor's last layer small, as in CleanRL.

    Args:
        task: Whose observations and actions they are for.
        seeds: One for each run, from which its weights are drawn.

    Attributes:
        actor: Weights (runs, in, out) and biases (runs, 1, out), by turns.
        critic: The same; the last layer has one output.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.actor = _layers([task.inputs, WIDTH, WIDTH, task.actions], 0.01, generators)
        self.critic = _layers([task.inputs, WIDTH, WIDTH, 1], 1.0, generators)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.actor, *self.critic]

    def log_probabilities(self, observations: Tensor) -> Tensor:
        """Of every action: (runs, samples, observed) to (runs, samples, actions)."""
        return forward(self.actor, observations).log_softmax(-1)

    def values(self, observations: Tensor) -> Tensor:
        """(runs, samples, observed) to (runs, samples)."""
        return forward(self.critic, observations)[..., 0]


def forward(layers: Sequence[Tensor], x: Tensor) -> Tensor:
    last = len(layers) - 2
    for i in range(0, len(layers), 2):
        x = torch.baddbmm(layers[i + 1], x, layers[i])
        x = x if i == last else tanh(x)
    return x


class _Tanh(torch.autograd.Function):
    """tanh x = 2·σ(2x) − 1, exact to 1e-7: torch's tanh takes four times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.mul(2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)  # type: ignore[no-any-return]


def tanh(x: Tensor) -> Tensor:
    return _Tanh.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def _layers(
    sizes: Sequence[int], last_gain: float, generators: Sequence[torch.Generator]
) -> list[Tensor]:
    layers = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        gain = last_gain if i == len(sizes) - 2 else math.sqrt(2)
        weights = [
            torch.nn.init.orthogonal_(torch.empty(after, before), gain, generator=generator).T
            for generator in generators
        ]
        layers += [torch.stack(weights).contiguous(), torch.zeros(len(weights), 1, after)]
    return [layer.requires_grad_() for layer in layers]
