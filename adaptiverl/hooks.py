"""What others put around a step: hooks and profilers that wait for it, and a class's own `step`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import optimizer as registry

from adaptiverl.control import Control


def waits_for_a_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook on this optimizer or on all, or a profiler, waits for a step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or registry._global_optimizer_pre_hooks
        or registry._global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()
    )


def taking_loss(step: Callable[..., Any]) -> Callable[..., Any]:
    """A class's `step` that takes ``loss=`` as well, where it would take a closure only.

    Args:
        step: Of a class derived from an optimizer of ours. What it does not know it cannot pass on.

    Returns:
        `step` itself where it takes that keyword, or any.
    """
    known = inspect.signature(step).parameters
    if "loss" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return step

    @wraps(step)
    def step_with_loss(self: Any, *args: Any, loss: Any = None, **kwargs: Any) -> Any:
        if loss is not None:
            self.observe(loss)
        return step(self, *args, **kwargs)

    del step_with_loss.__wrapped__  # its signature is no longer the same
    return step_with_loss


def check_stepwise(control: Control) -> None:
    """A loss may be observed.

    Raises:
        ValueError: Epoch-wise control, which looks at none.
    """
    if control.every is None:
        raise ValueError(
            "observe() has no effect with Control(every=None): call update(loss) once per "
            "epoch or evaluation, or give Control an `every`"
        )


def check_epochwise(control: Control) -> None:
    """The knobs may be updated by hand.

    Raises:
        ValueError: Step-wise control, whose updates come by themselves.
    """
    if control.every is not None:
        raise ValueError(
            f"update() is for Control(every=None), got every={control.every}: "
            "call observe(loss) before each step instead"
        )


def check_closure(closure: Any) -> None:
    """A closure, or None; a loss in its place is told its name.

    Raises:
        TypeError: Something else.
    """
    if closure is not None and not callable(closure):
        raise TypeError(
            f"step() takes a closure, a function that returns the loss, got {closure!r} of "
            f"type {type(closure).__name__}: tell a loss by its name, step(loss=loss)"
        )


def is_loss(result: Any) -> TypeGuard[Tensor | float]:
    """Whether a closure's result can be observed; AdamW takes closures that return anything."""
    if isinstance(result, Tensor):
        return result.numel() == 1 and not result.is_complex() and result.dtype != torch.bool
    return isinstance(result, (int, float)) and not isinstance(result, bool)
