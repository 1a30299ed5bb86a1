"""What the three ways in have in common: finding the optimizer, a loss's scale, what is logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from adaptiverl import Control
from adaptiverl.steering import steering_of

LOGGED = {
    "adaptive/lr": "lr",
    "adaptive/alpha": "alpha",
    "adaptive/momentum": "momentum",
    "adaptive/noise": "noise",
}
"""Names in a framework's logs to names in ``optimizer.knobs()``."""


@runtime_checkable
class Steered(Protocol):
    """An optimizer of ours, a wrapper that forwards to one, or what `steer` returned."""

    warns_of_schedulers: bool

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As torch.optim's."""
        ...

    @property
    def control(self) -> Control:
        """The controller's gains and cadence."""
        ...

    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Tell the controller this step's loss."""
        ...

    def update(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """One observation and one update of the knobs, now."""
        ...

    def pulse(self, validation_loss: Tensor | float) -> None:
        """Tell the controller a loss on data that is not trained on."""
        ...

    def set_horizon(self, steps: int) -> None:
        """How many optimizer steps the run takes, for ``Control(horizon="auto")``."""
        ...

    def knobs(self) -> dict[str, float]:
        """The knobs and sensors as Python floats."""
        ...


def steered(optimizer: Any, remedy: str) -> Steered:
    """The optimizer of ours inside whatever a framework has wrapped around it, or `steer`'s.

    Args:
        optimizer: An optimizer; a wrapper keeps what it wraps in ``optimizer``.
        remedy: What to do where there is none, for the message.

    Raises:
        TypeError: None of ours is in there.
    """
    inner, layers = optimizer, []
    while inner is not None:
        if isinstance(inner, Steered):
            return inner
        over = steering_of(inner)
        if over is not None:
            return over
        layers.append(type(inner).__name__)
        inner = getattr(inner, "optimizer", None)
    found = " around ".join(layers) or "None"
    raise TypeError(f"expected an AdaptiveAdamW, got {found}: {remedy}")


def rescaled(loss: Tensor, factor: float) -> Tensor:
    """A micro-batch's share of a step's loss, on the scale of a whole step's.

    Every micro-batch is observed and the controller takes their mean, so that one divided by the
    number of micro-batches, as frameworks do before backward, is multiplied by it again.
    """
    return loss.detach().to(torch.promote_types(loss.dtype, torch.float32)) * factor


def knob_logs(optimizer: Any) -> dict[str, float]:
    """The knobs under the names that they have in logs.

    Waits for the device, as printing a loss does: call it where you log, not every step.

    Args:
        optimizer: An `AdaptiveAdamW`, also inside a framework's wrapper.

    Returns:
        ``adaptive/lr``: the first group's learning rate in effect, after scheduler and controller;
        ``adaptive/alpha``: α; ``adaptive/momentum``: the first group's μ; ``adaptive/noise``: σ.

    Raises:
        TypeError: The optimizer is none of ours.
    """
    knobs = steered(optimizer, "only ours has knobs to log").knobs()
    return {name: knobs[knob] for name, knob in LOGGED.items()}


def rate_in_effect(optimizer: Any, scheduled: float, logs: Mapping[str, float]) -> float:
    """What the controller made of the rate that a scheduler had set for the first group.

    Args:
        optimizer: An `AdaptiveAdamW`, also inside a framework's wrapper.
        scheduled: The rate that the last step was given; the scheduler may have moved on since.
        logs: The `knob_logs` of this moment.

    Returns:
        The rate that the last step used.
    """
    inner = steered(optimizer, "only ours steers a rate")
    group = inner.param_groups[0]
    current = float(group["lr"])
    if scheduled == current:
        return logs["adaptive/lr"]
    if inner.control.mode == "modulate":
        return scheduled * logs["adaptive/alpha"]
    if current == 0:  # The end of a schedule, who keeps the rate that α started from as well.
        return scheduled * logs["adaptive/alpha"] / float(group.get("initial_lr", scheduled))
    return scheduled * (logs["adaptive/lr"] / current)


def metric(
    metrics: Mapping[str, Any], name: str, where: str, asked_by: str = "Control(every=None)"
) -> Any:
    """One metric of an evaluation.

    Raises:
        ValueError: It is not there.
    """
    if name not in metrics:
        raise ValueError(
            f"{where} looks for the metric {name!r} after each evaluation, with "
            f"{asked_by}, and this one has {_listed(metrics)}: name another one in "
            f"{where}(...), or log that metric"
        )
    return metrics[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
