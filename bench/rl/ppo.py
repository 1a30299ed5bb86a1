"""Proximal policy optimization (Schulman et al. 2017), the same step for many runs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.rl.agents import Agents
from bench.rl.environments import Task
from bench.rl.learners import Learner, Length, Method
from bench.rl.rollout import COPIES, LENGTH, Samples, Worlds

MINIBATCHES = 4
PER_ROLLOUT = COPIES * LENGTH  # environment steps of a run
CLIP = 0.2
ENTROPY = 0.01
VALUE = 0.5
LARGEST_NORM = 0.5  # of a run's gradient


class Run(NamedTuple):
    """One agent's training."""

    method: Method  # how its parameters are moved
    rate: float  # the starting learning rate
    seed: int


class Training:
    """Runs of one task, side by side.

    Args:
        task: What is learnt.
        runs: Those that have a method and a rate in common are best given one after the other.
        steps: Environment steps of each run, rounded down to whole rollouts.
    """

    def __init__(self, task: Task, runs: Sequence[Run], steps: int) -> None:
        self.task = task
        seeds = [run.seed for run in runs]
        self.agents = Agents(task, seeds)
        self.worlds = Worlds(task, self.agents, seeds)
        self.rollouts = steps // PER_ROLLOUT
        for parameter in self.agents.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.learners: list[tuple[slice, Learner]] = []
        for mine, method, rate in alike(runs):
            parameters = [part(parameter, mine) for parameter in self.agents.parameters]
            length = Length(self.rollouts, MINIBATCHES, task.epochs)
            self.learners.append((mine, method.start(parameters, rate, length)))
        self.ended: list[list[int]] = []
        """How many episodes of each run had ended after each rollout"""
        self.highest_rates = [0.0] * len(runs)
        """Of those in effect after a rollout"""

    def run(self) -> None:
        for _ in range(self.rollouts):
            self.rollout()
            now = [rate for _, learner in self.learners for rate in learner.rates()]
            self.highest_rates = [*map(max, self.highest_rates, now)]

    def rollout(self) -> None:
        """Live through one, and learn from it."""
        samples = self.worlds.roll_out()
        returns = self.new_returns()
        for mine, learner in self.learners:
            learner.roll(returns[mine])
        for _ in range(self.task.epochs):
            order = self.worlds.drawn(PER_ROLLOUT).argsort(1)
            for numbers in order.chunk(MINIBATCHES, 1):
                self.update(samples.taken(numbers))

    def new_returns(self) -> list[list[float]]:
        """Of every run, those of the episodes that have ended since the last rollout."""
        before = self.ended[-1] if self.ended else [0] * len(self.worlds.finished)
        self.ended.append([len(done) for done in self.worlds.finished])
        return [done[n:] for done, n in zip(self.worlds.finished, before, strict=True)]

    def update(self, batch: Samples) -> None:
        """Every run's parameters take a step."""
        parameters = self.agents.parameters
        losses, divergences = loss(self.agents, batch, self.task.value_clip)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        squares = sum(g.square().flatten(1).sum(1) for g in gradients)
        shrunk = (LARGEST_NORM / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None
            torch.mul(gradient, shrunk[:, None, None], out=parameter.grad)
        for mine, learner in self.learners:
            learner.step(losses.detach()[mine], divergences[mine])


def alike(runs: Sequence[Run]) -> Iterator[tuple[slice, Method, float]]:
    """Stretches of one method and rate."""
    begin = 0
    for (method, rate), group in groupby(runs, lambda run: (run.method, run.rate)):
        end = begin + len(list(group))
        yield slice(begin, end), method, rate
        begin = end


def part(stack: Tensor, mine: slice) -> nn.Parameter:
    """Of these runs, in the stack's own memory, gradients too."""
    parameter = nn.Parameter(stack.detach()[mine])
    assert stack.grad is not None
    parameter.grad = stack.grad[mine]
    return parameter


def loss(agents: Agents, batch: Samples, value_clip: float) -> tuple[Tensor, Tensor]:
    """Of every run, each (runs,): its loss, and how far its policy is from the one that acted.

    The latter is an estimate of the Kullback–Leibler divergence, in nats, without a graph.
    """
    weights = batch.weights / batch.weights.sum(1, keepdim=True)

    def mean(x: Tensor) -> Tensor:
        return (weights * x).sum(1)

    log_probabilities = agents.log_probabilities(batch.observations)
    now = log_probabilities.gather(2, batch.actions[..., None])[..., 0]
    ratio = (now - batch.log_probabilities).exp()
    divergences = mean(ratio - 1 - (now - batch.log_probabilities)).detach()
    centred = batch.advantages - mean(batch.advantages)[:, None]
    advantages = centred / (mean(centred.square()).sqrt()[:, None] + 1e-8)
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    policy = mean(torch.maximum(-advantages * ratio, -advantages * clipped))
    entropy = mean(-(log_probabilities.exp() * log_probabilities).sum(2))
    values = agents.values(batch.observations)
    near = batch.values + (values - batch.values).clamp(-value_clip, value_clip)
    far = torch.maximum((values - batch.returns).square(), (near - batch.returns).square())
    return policy - ENTROPY * entropy + VALUE * mean(far) / 2, divergences
