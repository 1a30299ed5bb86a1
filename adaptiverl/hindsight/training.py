"""What is trained in hindsight: a loss, where it starts, its batches, and what judges the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from adaptiverl.arguments import whole_number

Params = dict[str, Tensor]
Batch = tuple[Tensor, ...]


class Run(NamedTuple):
    """One seed of a training."""

    start: Params
    """The parameters before the first step, by name; float32 or float64"""
    batch: Callable[[int], Batch]
    """The tensors of a step, by its number from 0; the same each time it is asked"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A function that trains, as a schedule is optimised on it.

    All runs are trained side by side (`torch.func.vmap`), so their tensors have the same shapes.

    Attributes:
        loss: The mean loss of a batch, ``loss(params, *batch)``; a scalar that autograd can follow
            twice.
        judge: What the schedule is chosen by, ``judge(params)``; a scalar, a held-out loss say.
        runs: The seeds. A schedule that is made on several serves others better.
        steps: T, optimizer steps of a run.
        beta2: AdamW's β₂; μ is its β₁.
        eps: AdamW's.
        weight_decay: AdamW's, decoupled.
        seed: Of the gradient noise, 0 to 2^32 − 1.

    Raises:
        ValueError: No runs, runs of other shapes, a number out of its range.
        TypeError: A number of steps, or a seed, that is no whole number.
    """

    loss: Callable[..., Tensor]
    judge: Callable[[Params], Tensor]
    runs: Sequence[Run]
    steps: int
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        steps = whole_number(self.steps, "Training.steps", "a whole number of optimizer steps")
        _check("steps", steps, 2 <= steps <= 2**31, "from 2 to 2**31")
        seed = whole_number(self.seed, "Training.seed", "a whole number from 0 to 2**32 - 1")
        _check("seed", seed, 0 <= seed < 2**32, "from 0 to 2**32 - 1")
        _check("beta2", self.beta2, 0 <= self.beta2 < 1, "in [0, 1)")
        _check("eps", self.eps, 0 < self.eps < math.inf, "finite and > 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, ">= 0")
        _check("runs", list(self.runs), bool(self.runs), "one Run at least")
        first = _shapes(self.runs[0])
        dtypes = {tensor.dtype for tensor in self.runs[0].start.values()}
        if not dtypes:
            raise ValueError("Training.runs[0] must have a parameter to be trained, got none")
        if len(dtypes) != 1:
            raise ValueError(
                "Training.runs[0] must have parameters of one dtype, got "
                f"{sorted(map(str, dtypes))}"
            )
        for place, run in enumerate(self.runs[1:], 1):
            if _shapes(run) != first:
                raise ValueError(
                    f"Training.runs[{place}] has parameters {_shapes(run)}, and runs[0] {first}: "
                    "runs are seeds of one model, trained side by side"
                )

    def start(self) -> Tensor:
        """All parameters of all runs, (runs, parameters)."""
        rows = [torch.cat([p.detach().flatten() for p in run.start.values()]) for run in self.runs]
        return torch.stack(rows)

    def tensors(self, flat: Tensor) -> Params:
        """Views of such a tensor by their names, each (runs, …)."""
        first = self.runs[0].start
        parts = flat.split([p.numel() for p in first.values()], dim=1)
        views = zip(first.items(), parts, strict=True)
        return {
            name: part.unflatten(1, p.shape) if p.dim() else part[:, 0] for (name, p), part in views
        }

    def stacked_batch(self, step: int, copies: int = 1) -> Batch:
        """The tensors of a step of all runs, each (copies·runs, …)."""
        batches = [run.batch(step) for run in self.runs] * copies
        for batch in batches:
            if not isinstance(batch, (tuple, list)):
                raise TypeError(
                    f"Run.batch({step}) must return a tuple of tensors, got "
                    f"{type(batch).__name__}: return (x, y), or (x,) where there is one"
                )
        return tuple(torch.stack(tensors) for tensors in zip(*batches, strict=True))


def training_of(
    make: Callable[[int], tuple[nn.Module, Callable[[int], Batch]]],
    loss: Callable[..., Tensor],
    judged_on: Iterable[Batch],
    steps: int,
    seeds: Iterable[int] = (0, 1, 2, 3),
    **options: Any,
) -> Training:
    """A `Training` of a module.

    Args:
        make: Makes the model of a seed, and the function that gives the batch of a step.
        loss: ``loss(model, *batch)``, the mean loss of a batch.
        judged_on: Batches, held out from training; what counts is their mean loss at the end, the
            model in evaluation mode.
        steps: T, optimizer steps of a run.
        seeds: Which.
        **options: Others of `Training`.

    Returns:
        The training. Buffers, and parameters that ask for no gradient, stay as they are at the
        start; a module that writes to a buffer, as batch normalisation does, is refused by
        torch.func.

    Raises:
        ValueError: No batch to judge on; something that is not trained differs between seeds; as
            `Training`.
        TypeError: ``make`` gives something else.
    """
    made = [_made(make, seed) for seed in seeds]
    held_out = list(judged_on)
    _check("judged_on", held_out, bool(held_out), "one batch at least")
    if not made:
        raise ValueError("training_of() needs one seed at least, got none")
    _check_frozen([model for model, _ in made])
    runs = [Run(_trained(model), batch) for model, batch in made]
    objective = _Objective(made[0][0], loss)
    named = {f"model.{name}": name for name in runs[0].start}

    def of_batch(params: Params, *batch: Tensor) -> Tensor:
        found: Tensor = functional_call(objective, {n: params[p] for n, p in named.items()}, batch)
        return found

    def judge(params: Params) -> Tensor:
        objective.eval()
        try:
            return torch.stack([of_batch(params, *batch) for batch in held_out]).mean()
        finally:
            objective.train()

    return Training(loss=of_batch, judge=judge, runs=runs, steps=steps, **options)


class _Objective(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


def _made(make: Callable[[int], Any], seed: int) -> tuple[nn.Module, Callable[[int], Batch]]:
    made = make(seed)
    if (
        isinstance(made, (tuple, list))
        and len(made) == 2
        and isinstance(made[0], nn.Module)
        and callable(made[1])
    ):
        return made[0], made[1]
    raise TypeError(
        f"make({seed}) must return a module and the function that gives the batch of a step, got "
        f"{type(made).__name__}: return model, batch"
    )


def _trained(model: nn.Module) -> Params:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _check_frozen(models: Sequence[nn.Module]) -> None:
    """What is not trained has no run of its own: all seeds have the first one's."""
    first, *others = [
        {
            **{n: p for n, p in model.named_parameters() if not p.requires_grad},
            **dict(model.named_buffers()),
        }
        for model in models
    ]
    for place, other in enumerate(others, 1):
        for name in first.keys() | other.keys():
            if name not in first or name not in other or not torch.equal(first[name], other[name]):
                raise ValueError(
                    f"{name}, which is not trained, differs between seeds 0 and {place} of those "
                    "given: runs are trained side by side with one of it. Make it the same for "
                    "every seed, or give one seed"
                )


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in run.start.items()}


def _check(name: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"Training.{name} must be {expected}, got {value!r}")
