"""`observe_backward` for Accelerate: what goes backward is what the controller hears."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from adaptiverl.integrations.checks import ScheduleWatch, check_horizon, tell_horizon
from adaptiverl.integrations.steering import Steered, knob_logs, steered

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.accelerate needs accelerate, which is not there ({error}): "
        "pip install 'accelerate>=1.10'"
    ) from error

__all__ = ["knob_logs", "observe_backward"]

REMEDY = "pass the one that accelerator.prepare(AdaptiveAdamW(...)) returned"


def observe_backward(accelerator: Accelerator, optimizer: Any) -> None:
    """From now on every loss given to ``accelerator.backward`` is observed by the optimizer.

    Accelerate divides it by the number of micro-batches and scales it for float16 only after that,
    so the controller hears the loss itself and averages the micro-batches of a step. Nothing waits.
    With several optimizers call ``optimizer.optimizer.observe(loss)`` beside each one's backward
    instead; with ``Control(every=None)``, ``optimizer.optimizer.update(loss)`` after an evaluation.

    A scheduler under ``Control(mode="replace")`` is warned of once, and so is a horizon that is not
    the number of steps that a prepared scheduler was made for, where it says.

    Args:
        accelerator: Whose `backward` to wrap.
        optimizer: An `AdaptiveAdamW`, prepared or not.

    Raises:
        TypeError: The optimizer is none of ours.
        ValueError: It is controlled epoch by epoch.

    Examples:
        >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        >>> observe_backward(accelerator, optimizer)
        >>> ...
        >>> accelerator.log({"loss": float(loss), **knob_logs(optimizer)}, step=step)
    """
    inner = steered(optimizer, REMEDY)
    if inner.control.every is None:
        raise ValueError(
            "observe_backward() has no effect with Control(every=None): call "
            "optimizer.optimizer.update(loss) after each evaluation instead"
        )
    backward = accelerator.backward
    first = accelerator.is_main_process
    watch = ScheduleWatch(inner, "a scheduler", "leave the scheduler out") if first else None
    steps_unchecked = True

    def observed_backward(loss: Tensor, **kwargs: Any) -> None:
        nonlocal steps_unchecked
        if watch is not None:
            watch.look()
        if steps_unchecked:  # not before: a scheduler may be prepared after the optimizer
            steps_unchecked = False
            steps = _steps(accelerator, inner)
            tell_horizon(inner, steps)
            if first:
                check_horizon(inner.control, steps, "its prepared scheduler's")
        inner.observe(loss)
        backward(loss, **kwargs)

    accelerator.backward = observed_backward


def _steps(accelerator: Accelerator, optimizer: Steered) -> float:
    """Optimizer steps that its prepared scheduler was made for; infinite where none says.

    torch's OneCycleLR says, and so do those of transformers.get_scheduler that end.
    """
    for prepared in getattr(accelerator, "_schedulers", []):
        scheduler = getattr(prepared, "scheduler", prepared)
        if not _is_around(getattr(scheduler, "optimizer", None), optimizer):
            continue
        steps = getattr(scheduler, "total_steps", None)
        for schedule in getattr(scheduler, "lr_lambdas", []):
            steps = getattr(schedule, "keywords", {}).get("num_training_steps", steps)
        if steps is not None:
            # Accelerate steps it once for each process, unless a batch is split among them.
            together = getattr(prepared, "step_with_optimizer", False)
            split = getattr(prepared, "split_batches", True)
            return steps / (accelerator.num_processes if together and not split else 1)
    return math.inf


def _is_around(wrapper: Any, optimizer: Steered) -> bool:
    """Whether it is the optimizer, or wraps it."""
    while wrapper is not None and wrapper is not optimizer:
        wrapper = getattr(wrapper, "optimizer", None)
    return wrapper is optimizer
