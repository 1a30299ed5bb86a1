"""Many runs of one task as one: every tensor has a first dimension of cells (a rate and a seed).

The models are so small that a step's time is the overhead of its operations. Side by side, twelve
runs take about as long as one. The arithmetic is AdamW's on one flat float32 (cells, parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from bench.alignment_variants.laws.base import Law, Setting
from bench.alignment_variants.sensor import Floats, Reading, Sensor, Sums
from bench.alignment_variants.tasks import Task

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.01
EPS = 1e-8
TRAIN_EXAMPLES = 1000
"""Of the training set, the first: what the loss on the training data is measured on."""


class Cells:
    """The runs of one task from every rate with every seed, in the order of their product.

    Args:
        task: What they learn.
        rates: Starting rates.
        seeds: Of weights and batches; each rate has the same ones.
    """

    def __init__(self, task: Task, rates: Sequence[float], seeds: Sequence[int]) -> None:
        self.task = task
        self.names = list(product(rates, seeds))
        self.setting = Setting(np.array([rate for rate, _ in self.names]), task.steps, BETAS[0])
        starts = {seed: task.start(seed) for seed in seeds}
        batches = {seed: task.batches(seed) for seed in seeds}
        stacked = [
            torch.stack(tensors)
            for tensors in zip(*(starts[seed] for _, seed in self.names), strict=True)
        ]
        self._shapes = [tensor.shape for tensor in stacked]
        self._sizes = [tensor[0].numel() for tensor in stacked]
        self._batches = torch.stack([batches[seed] for _, seed in self.names], 1)
        self._gradient_of = vmap(grad(task.loss))
        self._loss_of = vmap(task.loss, in_dims=(0, None, None))
        self.flat = torch.cat([tensor.flatten(1) for tensor in stacked], 1)
        self._m, self._v = torch.zeros_like(self.flat), torch.zeros_like(self.flat)

    def train(self, law: Law) -> list[Reading]:
        """Take every step of the task at the rates that the law sets.

        Returns:
            What the sensor read before each step, whether the law cared or not.
        """
        law.begin(self.setting)
        nothing = np.zeros(len(self.names))
        sensor, sums = Sensor(len(self.names)), Sums(nothing, nothing, nothing)
        readings = []
        for step in range(1, self.task.steps + 1):
            readings.append(sensor.read(sums))
            rates = law.next_rates(step, readings[-1])
            gradient = self._gradient(step)
            sums = self._sums(gradient)
            self._update(step, gradient, rates)
        return readings

    def _parameters(self) -> list[Tensor]:
        """The flat tensor's parts as the task's parameters, (cells, …) each."""
        parts = self.flat.split(self._sizes, 1)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _gradient(self, step: int) -> Tensor:
        x, y = self.task.load().train
        index = self._batches[step - 1]
        parts = self._gradient_of(self._parameters(), x[index], y[index])
        return torch.cat([part.flatten(1) for part in parts], 1)

    def _sums(self, gradient: Tensor) -> Sums:
        """As the optimizer's sweep makes them: with the moments from before the update."""
        u = self._m / (self._v.sqrt() + EPS)
        parts = (gradient * u, gradient * gradient, u * u)
        return Sums(*(part.sum(1).double().numpy() for part in parts))

    def _update(self, step: int, gradient: Tensor, rates: Floats) -> None:
        beta1, beta2 = BETAS
        rate = torch.from_numpy(rates).float()[:, None]
        self._m.lerp_(gradient, 1 - beta1)
        self._v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (self._v / (1 - beta2**step)).sqrt_().add_(EPS)
        self.flat.mul_(1 - rate * WEIGHT_DECAY)
        self.flat.sub_(rate * (self._m / (1 - beta1**step)) / denominator)

    def held_out_losses(self) -> Floats:
        """Of every cell as it is now, over the whole held-out set."""
        return self._losses(self.task.load().held_out)

    def train_losses(self) -> Floats:
        """Of every cell as it is now, over the first `TRAIN_EXAMPLES` training examples."""
        x, y = self.task.load().train
        return self._losses((x[:TRAIN_EXAMPLES], y[:TRAIN_EXAMPLES]))

    @torch.no_grad()
    def _losses(self, examples: tuple[Tensor, Tensor]) -> Floats:
        losses: Floats = self._loss_of(self._parameters(), *examples).double().numpy()
        return losses
