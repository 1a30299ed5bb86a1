"""What `knobs()` tells: the knobs in effect, and the sensors by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptiverl.layout import ARM_COUNTS, ARM_MEANS
from adaptiverl.step.memory import STATE_KEY

SENSORS = (
    "step",
    "updates",
    "loss",
    "reward",
    "loss_mean",
    "loss_trend",
    "loss_scale",
    "loss_direction",
    "variance",
    "variance_scale",
    "plateau",
    "reward_mean",
    "reward_trend",
    "reward_scale",
    "reward_direction",
    "nonfinite",
    "alignment",
    "alignment_direction",
    "alignment_mean",
    "held",
)


OF_THE_GRADIENT = ("gradient_rms", "gradient_variance", "update_rms")
OF_THE_DISTILLED = ("move_lr", "move_momentum", "move_noise")
OF_THE_BANDIT = ("arm", "arm_draws", "window_left", "window_reward")
OF_PULSES = ("pulse", "pulses", "pulse_readings", "pulse_mean", "pulse_limit", "pulse_cuts")


def readings(
    state: Any,
    lr: float,
    momentum: float,
    arms: int = 0,
    sums: bool = False,
    learned: bool = False,
) -> dict[str, float]:
    """The knobs and sensors by name.

    Args:
        state: A controller's `State`.
        lr: A group's learning rate in effect.
        momentum: Its momentum in effect.
        arms: How many arms the law of a bandit has.
        sums: The passes' sums are taken: a law that finds the rate, or
            ``Control(gradient_sensors=True)``.
        learned: The law was fitted.

    Returns:
        ``lr`` and ``momentum`` of the first group's next step; ``alpha``, the knob α: a
        learning rate, or a factor in ``mode="modulate"``; ``noise``, σ as a share of the
        gradient's (or parameter's) RMS; counts ``step``, ``updates``, ``nonfinite``; the
        sensors of `Trace`, losses and rewards in their own units, directions in [-1, 1],
        ``plateau`` in [0, 1]; ``held``, 1 once the alignment law holds its rate. Where sums are
        taken also, of the last step that had any, ``gradient_rms``, in the gradient's unit, after
        clipping; ``gradient_variance``, how far that is from its average, squared; ``update_rms``,
        the RMS of an update per unit of the learning rate; 0 before the first. Of a bandit also
        ``arm``, the one in force, counted from 0; ``arm_draws``, times that one was chosen;
        ``window_left``, losses until the next; ``window_reward``, the last window's, in [-1, 1];
        and of each arm ``arm_count0``, windows, and ``arm_mean0``, their rewards' mean, discounted.
        Of the distilled law ``move_lr``, ``move_momentum`` and ``move_noise``, what it last asked
        for, in log- and logit-units of a whole run; ``held`` is there that updates once overshot.
    """
    knobs = {"lr": lr, "alpha": state.lr, "momentum": momentum, "noise": state.noise}
    names: tuple[str, ...] = SENSORS + (OF_THE_GRADIENT if sums else ())
    if learned:
        names += OF_THE_DISTILLED
    if arms:
        names += OF_THE_BANDIT + ARM_COUNTS[:arms] + ARM_MEANS[:arms]
    if state.pulses > 0:
        names += OF_PULSES
    return knobs | {name: getattr(state, name) for name in names}


def described(name: str, groups: Sequence[dict[str, Any]]) -> str:
    """An optimizer and its groups' hyperparameters, as torch.optim prints them."""
    lines = [f"{name} ("]
    for i, group in enumerate(groups):
        lines.append(f"Parameter Group {i}")
        shown = sorted(key for key in group if key not in ("params", STATE_KEY))
        lines += [f"    {key}: {group[key]}" for key in shown]
    return "\n".join([*lines, ")"])
