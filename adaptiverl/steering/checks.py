"""What `steer` refuses."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from adaptiverl.control import Control
from adaptiverl.optimizer import AdaptiveOptimizer
from adaptiverl.ranks.dtensors import is_dtensor
from adaptiverl.step.state import is_number


def check_optimizers(given: Any, attribute: str) -> list[Optimizer]:
    """The optimizers themselves, out of whatever a framework has wrapped around them.

    Args:
        given: One, or several.
        attribute: Where a steered one has its steering.

    Raises:
        TypeError: Something else.
        ValueError: None, one twice, one that is steered already, or one that cannot be.
    """
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict, Optimizer))
    optimizers = [_unwrapped(one) for one in (given if several else [given])]
    if not optimizers:
        raise ValueError("steer() needs an optimizer, or several, got an empty list")
    if len(set(map(id, optimizers))) < len(optimizers):
        raise ValueError("steer() got the same optimizer twice: give each one once")
    for one in optimizers:
        _check(one, attribute)
    return optimizers


def _unwrapped(given: Any) -> Optimizer:
    one = given
    while getattr(one, "optimizer", None) is not None:  # Accelerate's, Fabric's, Lightning's
        one = one.optimizer
    if not isinstance(one, Optimizer):
        raise TypeError(
            "steer() takes a torch.optim.Optimizer, or several in a list, got "
            f"{reprlib.repr(given)} of type {type(given).__name__}"
        )
    return one


def _check(one: Optimizer, attribute: str) -> None:
    name = type(one).__name__
    if isinstance(one, AdaptiveOptimizer):
        raise ValueError(
            f"steer() got an {name}, which has a controller of its own: give the control to it, "
            f"as in {name}(params, control=control)"
        )
    if getattr(one, attribute, None) is not None:
        raise ValueError(
            f"steer() got a {name} that is steered already: two controllers would both move its "
            "rate. Use the first one's, or call its remove() before"
        )
    if isinstance(one, LBFGS):
        raise ValueError(
            "steer() does not take LBFGS: it evaluates its closure many times in a step and looks "
            "for the step's length itself. Use it without steer()"
        )
    _check_rates(one)


def check_groups(optimizers: Sequence[Optimizer], control: Control) -> None:
    """Groups that were added since are ones that the control can follow, too.

    Raises:
        ValueError: As for those that were there at first.
    """
    for one in optimizers:
        _check_rates(one)
    check_parameters([group for one in optimizers for group in one.param_groups], control)


def _check_rates(one: Optimizer) -> None:
    for number, group in enumerate(one.param_groups):
        lr = group.get("lr")
        if not is_number(lr):
            found = "no lr" if "lr" not in group else f"lr={lr!r}"
            raise ValueError(
                f"steer() needs a learning rate in every group of {type(one).__name__}, and group "
                f"{number} has {found}: give it a number, or a tensor with one element"
            )


def check_control(control: Any, optimizers: Sequence[Optimizer]) -> None:
    """A control that these optimizers can follow.

    Raises:
        TypeError: No `Control`.
        ValueError: See `check_parameters`; a controller for each group.
    """
    if not isinstance(control, Control):
        raise TypeError(
            f"control must be a Control, got {control!r} of type {type(control).__name__}"
        )
    if control.groups == "own":
        raise ValueError(
            "steer() has one controller for all it is given, got Control(groups='own'): steer "
            "several optimizers of one group each, steer(first, control) and steer(second, "
            "control), or use AdaptiveAdamW, AdaptiveSGD or AdaptiveLion"
        )
    check_parameters([group for one in optimizers for group in one.param_groups], control)


def check_parameters(groups: Sequence[dict[str, Any]], control: Control) -> None:
    """A law that finds the rate sees where the parameters go, and noise has whole tensors.

    Raises:
        ValueError: Parameters whose last bit hides it; shards, and noise.
    """
    noisy = control.noise_bounds[1] > 0
    if not (control.reads_sums or noisy):
        return
    for param in (p for group in groups for p in group["params"]):
        if control.reads_sums and torch.promote_types(param.dtype, torch.float32) != param.dtype:
            raise ValueError(
                f"steer() with Control(law={control.law!r}) compares the parameters before and "
                f"after a step, and {param.dtype} rounds most of it away: keep them in float32, or "
                "use AdaptiveAdamW, AdaptiveSGD or AdaptiveLion, which know their direction"
            )
        if noisy and is_dtensor(param):
            raise ValueError(
                "steer() draws no noise for sharded parameters (DTensor): use "
                "Control(noise_bounds=(0.0, 0.0)), or an optimizer of adaptiverl's, which does"
            )
