"""`steer`: α, μ and σ over any torch optimizer, whose own step stays what it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

from adaptiverl.control import Control
from adaptiverl.ranks.group import ProcessGroup
from adaptiverl.steering.checks import check_control, check_optimizers
from adaptiverl.steering.steering import ATTRIBUTE, Steering

DEFAULT_CONTROL = Control()


def steer(
    optimizer: Optimizer | Iterable[Optimizer],
    control: Control = DEFAULT_CONTROL,
    *,
    seed: int = 0,
    process_group: ProcessGroup = None,
) -> Steering:
    """Put the controller over any torch optimizer, or over several of one model together.

    The training loop goes on calling ``optimizer.step()``; new is ``steered.observe(loss)`` before
    it, which a law that finds the rate does without. While a step runs, every group's ``lr`` is the
    rate in effect, and so is ``betas[0]`` or ``momentum`` where there is one; between two steps
    they are what you or a scheduler set. A ``lr`` that is a tensor is written in place, and nothing
    waits; one that is a number, as the noise and a momentum that moves, makes a CUDA device be
    waited for in every step.

    ``optimizer.state_dict()`` has the controller's memory, and loading it goes on with that.
    `AdaptiveAdamW`, `AdaptiveSGD` and `AdaptiveLion` do all this inside their one pass, and more
    exactly: they know their direction, where `steer` looks at a sample of the parameters before and
    after the step (method.md#any-optimizer).

    Args:
        optimizer: A torch optimizer, or several that step one after another.
        control: As for `AdaptiveAdamW`.
        seed: Of the noise, and of the sample.
        process_group: As for `AdaptiveAdamW`: those who decide together.

    Returns:
        What hears the losses and tells the knobs.

    Raises:
        TypeError: No optimizer; a control that is not a `Control`.
        ValueError: One that is steered already, or cannot be: `LBFGS`, a group without ``lr``; a
            start outside the bounds; a law that finds the rate, and parameters of 16 bits.

    Examples:
        >>> optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
        >>> steered = steer(optimizer, Control.find_lr(horizon=10_000))
        >>> loss.backward()
        >>> optimizer.step()
    """
    optimizers = check_optimizers(optimizer, ATTRIBUTE)
    check_control(control, optimizers)
    return Steering(optimizers, control, seed, process_group)
