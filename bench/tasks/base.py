"""What a task is: a model, batches and a held-out set, all functions of a seed alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Role = Literal["development", "looked at", "held out"]
"""Of a task for the alignment law: chosen on it, results seen meanwhile, or neither."""


@dataclass(frozen=True)
class Problem:
    objective: nn.Module  # maps a batch to its mean loss, a scalar
    batch: Callable[[int], Batch]  # the tensors of a step, by its number from 0
    held_out: Sequence[Batch] = ()  # batches that are never trained on, the same for every seed

    def loss(self, step: int) -> Tensor:
        loss: Tensor = self.objective(*self.batch(step))
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss over the held-out set, with the model in evaluation mode."""
        self.objective.eval()
        losses = [self.objective(*batch) for batch in self.held_out]
        self.objective.train()
        return float(torch.stack(losses).double().mean())


class Objective(nn.Module):
    def __init__(self, model: nn.Module, measure: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.measure = model, measure

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.measure(self.model(inputs), targets)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is learnt, from what, for how long. The fields in its ``repr`` are its definition."""

    uses: ClassVar[tuple[ModuleType, ...]] = ()  # modules beside its own that its numbers depend on

    name: str  # on the command line and in the rows
    title: str = field(default="", repr=False)  # for people, with the loss's unit
    seconds: float = field(default=1.0, repr=False)  # what a run takes on one core, roughly
    role: Role | None = field(default=None, repr=False)
    steps: int  # optimizer steps of a run, T
    batch: int  # examples per step
    device: str = "cpu"  # a torch device type; "cuda" tasks are left out where there is none

    def missing(self) -> str | None:
        """Why this task cannot run here, with what would help; ``None`` where it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "it needs a CUDA device and torch sees none"
        return None

    def data_version(self) -> str:
        """What tells two versions of its data apart; empty where there is only one."""
        return ""

    def prepare(self) -> None:  # noqa: B027 (most have nothing to make)
        """Make what all runs begin from, if it is missing; `start` would, in each process."""

    @abstractmethod
    def start(self, seed: int) -> Problem:
        """Make the model and the batches of a seed; also seeds torch, for dropout."""


def shuffled(count: int, steps: int, batch: int, seed: int) -> Tensor:
    """The examples of every step, int64 (steps, batch): epochs of ``count``, each in a new order.

    A batch may lie across the end of an epoch, so that all have the same size.
    """
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch // count)
    orders = [torch.randperm(count, generator=generator) for _ in range(epochs)]
    return torch.cat(orders)[: steps * batch].view(steps, batch)
