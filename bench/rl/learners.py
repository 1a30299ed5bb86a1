"""How the parameters of many runs are moved: torch's Adam, and AdaptiveAdamW under a `Control`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from adaptiverl import AdaptiveAdamW, Control

EPSILON = 1e-5  # Adam's, as in CleanRL

Told = Literal["nothing", "loss", "return"]


class Learner(ABC):
    """A method at work on all runs. The parameters' gradients are there when it steps."""

    def roll(self, returns: Sequence[Sequence[float]]) -> None:  # noqa: B027 (most do nothing)
        """A rollout has been made; each run's returns of the episodes that ended in it."""

    @abstractmethod
    def step(self, losses: Tensor, divergences: Tensor) -> None:
        """One update.

        Args:
            losses: Each run's of this minibatch.
            divergences: How far its policy is from the one that made the rollout.
        """

    @abstractmethod
    def rates(self) -> list[float]:
        """What each run's next update would use."""


class Length(NamedTuple):
    """Of a run."""

    rollouts: int
    minibatches: int  # that a rollout is cut into
    epochs: int  # times that it is gone through

    @property
    def updates(self) -> int:
        """Of the parameters, in the whole run."""
        return self.rollouts * self.minibatches * self.epochs


@dataclass(frozen=True)
class Method(ABC):
    name: str  # in the rows
    title: str  # for people

    @abstractmethod
    def start(self, parameters: Sequence[Tensor], rate: float, length: Length) -> Learner:
        """The learner for stacked parameters (runs, …), all runs alike."""


def annealed(rate: float, rollout: int, rollouts: int) -> float:
    """CleanRL's schedule: linear, to 0 after the last rollout."""
    return rate * (1 - rollout / rollouts)


class AdamLearner(Learner):
    """One torch.optim.Adam for all: what it does is elementwise."""

    def __init__(
        self, parameters: Sequence[Tensor], rate: float, rollouts: int, anneals: bool
    ) -> None:
        self.optimizer = torch.optim.Adam(parameters, lr=rate, eps=EPSILON, fused=True)
        self.runs = parameters[0].shape[0]
        self.rate, self.rollouts, self.anneals = rate, rollouts, anneals
        self.rolled = 0

    def roll(self, returns: Sequence[Sequence[float]]) -> None:
        if self.anneals:
            rate = annealed(self.rate, self.rolled, self.rollouts)
            self.optimizer.param_groups[0]["lr"] = rate
        self.rolled += 1

    def step(self, losses: Tensor, divergences: Tensor) -> None:
        self.optimizer.step()

    def rates(self) -> list[float]:
        return [float(self.optimizer.param_groups[0]["lr"])] * self.runs


@dataclass(frozen=True)
class Adam(Method):
    anneals: bool = True

    def start(self, parameters: Sequence[Tensor], rate: float, length: Length) -> Learner:
        return AdamLearner(parameters, rate, length.rollouts, self.anneals)


class KlLearner(Learner):
    """Every run's own Adam, whose rate keeps the policy's divergence near a target.

    The rule of RSL-RL and others: after each minibatch, a rate 1.5 times lower where the divergence
    is above twice the target, 1.5 times higher where it is below half of it.
    """

    TARGET, FACTOR = 0.01, 1.5
    LOWEST, HIGHEST = 1e-5, 1e-2

    def __init__(self, parameters: Sequence[Tensor], rate: float) -> None:
        self.optimizers = [
            torch.optim.Adam(mine, lr=rate, eps=EPSILON, fused=True) for mine in each(parameters)
        ]

    def step(self, losses: Tensor, divergences: Tensor) -> None:
        for optimizer, divergence in zip(self.optimizers, divergences.tolist(), strict=True):
            group = optimizer.param_groups[0]
            if divergence > 2 * self.TARGET:
                group["lr"] = max(group["lr"] / self.FACTOR, self.LOWEST)
            elif divergence < self.TARGET / 2:
                group["lr"] = min(group["lr"] * self.FACTOR, self.HIGHEST)
            optimizer.step()

    def rates(self) -> list[float]:
        return [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]


@dataclass(frozen=True)
class KlAdaptive(Method):
    def start(self, parameters: Sequence[Tensor], rate: float, length: Length) -> Learner:
        return KlLearner(parameters, rate)


def groups_of(mine: list[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    """The actor's and the critic's, which come one after the other and have as many parameters."""
    half = len(mine) // 2
    return [{"params": mine[:half]}, {"params": mine[half:]}]


def each(parameters: Sequence[Tensor]) -> Iterator[list[nn.Parameter]]:
    """Every run's own parameters, in the stacks' memory, gradients too."""
    for run in range(parameters[0].shape[0]):
        mine = [nn.Parameter(stack.detach()[run]) for stack in parameters]
        for parameter, stack in zip(mine, parameters, strict=True):
            assert stack.grad is not None
            parameter.grad = stack.grad[run]
        yield mine


class Steered(Learner):
    """Every run's own AdaptiveAdamW, on its slices of the stacked parameters."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rate: float,
        rollouts: int,
        control: Control,
        told: Told,
        anneals: bool,
    ) -> None:
        self.rate, self.rollouts, self.told, self.anneals = rate, rollouts, told, anneals
        self.rolled = 0
        self.optimizers = [
            AdaptiveAdamW(
                *(groups_of(mine), rate),
                eps=EPSILON,
                weight_decay=0.0,
                control=control,
                seed=run,
                process_group=False,
            )
            for run, mine in enumerate(each(parameters))
        ]

    def roll(self, returns: Sequence[Sequence[float]]) -> None:
        for optimizer, mine in zip(self.optimizers, returns, strict=True):
            if self.anneals:
                rate = annealed(self.rate, self.rolled, self.rollouts)
                for group in optimizer.param_groups:
                    group["lr"] = rate
            if self.told == "return" and mine:
                mean = sum(mine) / len(mine)
                given = optimizer.control.reward == "given"
                optimizer.update(-mean, mean if given else None)
        self.rolled += 1

    def step(self, losses: Tensor, divergences: Tensor) -> None:
        told = losses.tolist() if self.told == "loss" else [None] * len(self.optimizers)
        for optimizer, loss in zip(self.optimizers, told, strict=True):
            optimizer.step(loss=loss)

    def rates(self) -> list[float]:
        return [optimizer.knobs()["lr"] for optimizer in self.optimizers]


@dataclass(frozen=True)
class Adaptive(Method):
    control: Callable[[Length], Control]  # what steers
    told: Told = "nothing"
    anneals: bool = False  # CleanRL's schedule goes on, and the control multiplies it

    def start(self, parameters: Sequence[Tensor], rate: float, length: Length) -> Learner:
        control = self.control(length)
        if self.anneals:
            control = replace(control, mode="modulate")
        return Steered(parameters, rate, length.rollouts, control, self.told, self.anneals)
