"""`observe_backward` for Accelerate: what goes backward is what the controller hears."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptiverl.integrations.steering import knob_logs, steered

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.accelerate needs accelerate, which is not there ({error}): "
        "pip install 'adaptiverl[accelerate]'"
    ) from error

__all__ = ["knob_logs", "observe_backward"]

REMEDY = "pass the one that accelerator.prepare(AdaptiveAdamW(...)) returned"


def observe_backward(accelerator: Accelerator, optimizer: Any) -> None:
    """From now on every loss given to ``accelerator.backward`` is observed by the optimizer.

    Accelerate divides it by the number of micro-batches and scales it for float16 only after that,
    so the controller hears the loss itself and averages the micro-batches of a step. Nothing waits.
    With several optimizers call ``optimizer.optimizer.observe(loss)`` beside each one's backward
    instead; with ``Control(every=None)``, ``optimizer.optimizer.update(loss)`` after an evaluation.

    Args:
        accelerator: Whose `backward` to wrap.
        optimizer: An `AdaptiveAdamW`, prepared or not.

    Raises:
        TypeError: The optimizer is none of ours.
        ValueError: It is controlled epoch by epoch.

    Example:
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

    def observed_backward(loss: Tensor, **kwargs: Any) -> None:
        inner.observe(loss)
        backward(loss, **kwargs)

    accelerator.backward = observed_backward
