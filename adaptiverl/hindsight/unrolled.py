"""Runs of AdamW as one differentiable function of their knobs (method.md#hindsight).

The step is AdaptiveAdamW's (method.md#parameter-step), its gradient noise included, in plain torch
that autograd can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from adaptiverl.hindsight.training import Training
from adaptiverl.kernels.normals import normals


class Point(NamedTuple):
    """Where the runs are: each (runs, parameters)."""

    params: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


Watch = Callable[[int, Tensor, Tensor, Point], None]


def beginning(training: Training, copies: int = 1) -> Point:
    """Before the first step; every run so many times."""
    start = training.start().repeat(copies, 1)
    return Point(start, torch.zeros_like(start), torch.zeros_like(start))


def numbers_of(knobs: Tensor) -> Tensor:
    """α, μ, σ and 1 − ∏μ of every step, (steps, 4), from the first three, (steps, 3)."""
    corrections = 1 - knobs[:, 1].cumprod(0)  # method.md#bias-correction
    return torch.cat([knobs, corrections[:, None]], 1)


def advanced(
    training: Training,
    point: Point,
    numbers: Tensor,
    steps: Iterable[int],
    watch: Watch | None = None,
) -> Point:
    """So many steps later.

    Args:
        training: What is trained.
        point: Where the runs are.
        numbers: float64 [steps of the run, runs, 4], as `numbers_of`.
        steps: Numbers of the steps to be taken, from 0.
        watch: Sees each step's number, losses, gradients and point before it is taken.
    """
    noisy = bool((numbers[..., 2] != 0).any())
    for step in steps:
        losses, gradient = _gradient(training, point.params, step)
        if watch is not None:
            watch(step, losses, gradient, point)
        if noisy:
            gradient = _with_noise(training, gradient, numbers[step, :, 2], step)
        point = _stepped(training, point, gradient, numbers[step], step)
    return point


def judged(training: Training, params: Tensor) -> Tensor:
    """The loss that counts, float [runs]."""
    found: Tensor = vmap(training.judge, randomness="same")(training.tensors(params))
    _check_scalar("judge", found)
    return found


def final_losses(training: Training, knobs: Tensor) -> Tensor:
    """What schedules are worth: the judged loss of each run at its end.

    Args:
        training: What is trained.
        knobs: float64 [steps, 3], α, μ, σ of every step (`Schedule.knobs`); or [schedules, steps,
            3], which are tried side by side.

    Returns:
        float [runs], or [schedules, runs]; NaN or infinite where a run diverged.

    Raises:
        ValueError: Knobs of another number of steps.
    """
    if knobs.shape[-2:] != (training.steps, 3):
        raise ValueError(
            f"knobs must be of shape {(training.steps, 3)}, α, μ and σ of every step, got "
            f"{tuple(knobs.shape)}: the schedule and the training need the same number of steps"
        )
    with torch.no_grad():
        many = knobs.double().reshape(-1, training.steps, 3)
        numbers = torch.cat([for_each_run(training, numbers_of(one)) for one in many], 1)
        start = beginning(training, len(many))
        losses = judged(training, advanced(training, start, numbers, range(training.steps)).params)
        return losses.view(*knobs.shape[:-2], -1)


def for_each_run(training: Training, numbers: Tensor) -> Tensor:
    """(steps, runs, 4) of (steps, 4): each run has numbers of its own, to have its own gradient."""
    return numbers.detach()[:, None].repeat(1, len(training.runs), 1)


def _gradient(training: Training, params: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Losses and gradients of a step's batch; autograd follows them where it is on."""
    followed = torch.is_grad_enabled()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed + step)  # a step that is taken again draws the same
        params = params if params.requires_grad else params.detach().requires_grad_()
        batch = training.stacked_batch(step, len(params) // len(training.runs))
        losses = vmap(training.loss, randomness="different")(training.tensors(params), *batch)
        _check_scalar("loss", losses)
        if not losses.requires_grad:
            raise ValueError(
                "Training.loss must depend on the parameters it is given, got a loss without a "
                "gradient: no detach() and no no_grad() inside"
            )
        (gradient,) = torch.autograd.grad(losses.sum(), params, create_graph=followed)
    return losses.detach(), gradient


def _check_scalar(name: str, losses: Tensor) -> None:
    if losses.dim() != 1:
        raise ValueError(
            f"Training.{name} must return a scalar, got shape {tuple(losses.shape[1:])}: take its "
            "mean"
        )


def _with_noise(training: Training, gradient: Tensor, noise: Tensor, step: int) -> Tensor:
    """g + σ·RMS(g)·ξ of each tensor, ξ as AdaptiveAdamW draws it (method.md#noise)."""
    device = gradient.device
    key = [torch.tensor(word, device=device) for word in (training.seed, 0)]
    count, noised = torch.tensor(step + 1, device=device), []
    for index, g in enumerate(training.tensors(gradient).values()):
        flat = g.flatten(1) if g.dim() > 1 else g[:, None]
        drawn = normals(key, index, count, 0, flat.shape[1], torch.float32)
        rms = root(flat.double().square().mean(1))
        noised.append(flat + (noise * rms).to(flat.dtype)[:, None] * drawn.to(flat.dtype))
    return torch.cat(noised, 1)


def _stepped(training: Training, point: Point, g: Tensor, numbers: Tensor, step: int) -> Point:
    columns = numbers[:, :, None]  # worked out in float64, as the step's scalars are
    lr, momentum, correction = columns[:, 0], columns[:, 1], columns[:, 3]
    beta2, dtype = training.beta2, g.dtype
    bias2_sqrt = (1 - beta2 ** (step + 1)) ** 0.5
    m = point.exp_avg + (1 - momentum).to(dtype) * (g - point.exp_avg)
    v = point.exp_avg_sq * beta2 + (1 - beta2) * (g * g)
    denominator = root(v) / bias2_sqrt + training.eps
    decay = (1 - lr * training.weight_decay).to(dtype)
    p = point.params * decay - (lr / correction).to(dtype) * (m / denominator)
    return Point(p, m, v)


def root(x: Tensor) -> Tensor:
    """√x with the derivative 0 at 0: what never had a gradient does not move, either way."""
    if not x.requires_grad:
        return x.sqrt()
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
