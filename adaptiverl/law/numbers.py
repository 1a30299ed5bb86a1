"""`Control` and its limits as the numbers that a law reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from adaptiverl.arms import DISCOUNT, Arm, key_of, window_of
from adaptiverl.control import Control
from adaptiverl.law.arithmetic import logit
from adaptiverl.layout import (
    ARMS,
    COOLDOWN_SHAPES,
    LAWS,
    REWARD_SOURCES,
    ArmNumbers,
    ControlNumbers,
    names,
)
from adaptiverl.limits import Limits
from adaptiverl.terms import NOMINAL_HORIZON, search_within
from adaptiverl.weights import Weights

CLIMB_SHARE = 1.0
"""Of the rate that the alignment law's climb marks, what is held where somebody anneals"""
UNANNEALED_SHARE = 0.5
"""Of the rate that would be held, what is held where nobody anneals: the noise of the batches then
stays, and a lower rate makes less of it."""
RAMP_SHARE = 0.7
"""Of the rate that the range test marks, what is held in a run of up to `NOMINAL_HORIZON` steps;
in a longer one less, by the cube root of its length"""
WARM_UP = 0.15
"""Share of the run over which α rises to the held rate: the moments start anew"""
WARM_FROM = 0.1
"""Share of the held rate that α rises from in a run of up to `NOMINAL_HORIZON` steps; in a longer
one less, by its length"""
PULSE_SPACING = 0.01
"""Share of the run between two readings of a held-out loss, at least (method.md#pulse)"""

OWN = names(ControlNumbers)[:-1]
"""The control numbers but for the arms"""
ARM_SIZE = len(names(ArmNumbers))
CONTROL_SIZE = len(OWN) + ARMS * ARM_SIZE
"""Numbers of a row that C++ reads: arms that are not there are 0"""


def numbers_of(control: Control, limits: Limits) -> ControlNumbers:
    """Every number by its name; `layout.ControlNumbers` says what each is."""
    minibatches, epochs = control.reuse or (0, 0)
    trend_center, trend_slope = control.plateau_trend
    variance_center, variance_slope = control.plateau_variance
    noisy = limits.noise_max > 0
    return ControlNumbers(
        every=float(control.every or 0),
        reward_source=REWARD_SOURCES[control.reward],
        beta_loss=control.beta_loss,
        beta_reward=control.beta_reward,
        beta_variance=control.beta_variance,
        gain_lr_reward=control.gain_lr_reward,
        gain_lr_loss=control.gain_lr_loss,
        gain_momentum_reward=control.gain_momentum_reward,
        gain_momentum_loss=control.gain_momentum_loss,
        gain_noise_plateau=control.gain_noise_plateau,
        gain_noise_reward=control.gain_noise_reward,
        lr_min=limits.lr_min,
        lr_max=limits.lr_max,
        momentum_min=limits.momentum_min,
        momentum_max=limits.momentum_max,
        noise_min=limits.noise_min,
        noise_max=limits.noise_max,
        log_lr_min=math.log(limits.lr_min),
        log_lr_max=math.log(limits.lr_max),
        logit_momentum_min=logit(limits.momentum_min),
        logit_momentum_max=logit(limits.momentum_max),
        log_noise_floor=math.log(limits.noise_floor) if noisy else -math.inf,
        log_noise_max=math.log(limits.noise_max) if noisy else -math.inf,
        log_lr_change_down=math.log(control.lr_change[0]),
        log_lr_change_up=math.log(control.lr_change[1]),
        spike_clip=control.spike_clip,
        trend_center=trend_center,
        trend_slope=trend_slope,
        variance_center=variance_center,
        variance_slope=variance_slope,
        law=LAWS[control.law],
        log_lr_acquire=math.log(limits.lr_acquire),
        horizon=float(control.known_horizon or 0),
        hold_by=hold_by(control),
        annealed_over=annealed_over(control),
        log_held_share=math.log(held_share(control)),
        log_ramp_share=math.log(ramp_share(control)),
        log_ramp_floor=math.log(limits.lr_floor),
        search_within=float(_search_within(control, limits)),
        warm_up=warm_up(control),
        log_warm_from=math.log(WARM_FROM / _times(control)),
        cooldown_shape=COOLDOWN_SHAPES[control.cooldown_shape],
        reused_for=float(minibatches * epochs if epochs > 1 else 0),
        fresh_for=float(minibatches),
        pulse_spacing=PULSE_SPACING * (control.known_horizon or 0),
        **(_of_bandit(control) if control.arms else {}),
        **(_of_distilled(control.weights) if isinstance(control.weights, Weights) else {}),
    )


def _of_bandit(control: Control) -> dict[str, Any]:
    arms = tuple(map(arm_numbers, control.arms or ()))
    return {
        "window": float(window_of(control)),
        "discount": DISCOUNT if control.discount is None else control.discount,
        "arms_key": float(key_of(control)),
        "arm_count": float(len(arms)),
        "arms": arms,
    }


def _of_distilled(weights: Weights) -> dict[str, Any]:
    first, second = (*weights.hidden, 0, 0)[:2]
    return {
        "weight_count": float(len(weights.numbers)),
        "hidden0": float(first),
        "hidden1": float(second),
        "weights": weights.numbers,
    }


def arm_numbers(arm: Arm) -> ArmNumbers:
    """What an arm puts in the place of the control's own, by its name there."""
    return ArmNumbers(
        every=float(arm.every or 0),
        gain_lr_reward=arm.gain_lr_reward,
        gain_lr_loss=arm.gain_lr_loss,
        gain_momentum_reward=arm.gain_momentum_reward,
        gain_momentum_loss=arm.gain_momentum_loss,
        gain_noise_plateau=arm.gain_noise_plateau,
        gain_noise_reward=arm.gain_noise_reward,
        log_lr_change_down=math.log(arm.lr_change[0]),
        log_lr_change_up=math.log(arm.lr_change[1]),
    )


def packed(control: ControlNumbers) -> list[float]:
    """The row that C++ reads: `CONTROL_SIZE` numbers, or, with weights behind, a multiple."""
    row = [getattr(control, name) for name in OWN]
    for arm in control.arms:
        row += astuple(arm)
    row += [0.0] * (CONTROL_SIZE - len(row))
    row += control.weights
    return row + [0.0] * (-len(row) % CONTROL_SIZE)


def unpacked(row: Sequence[float]) -> ControlNumbers:
    """The control numbers of such a row."""
    control = ControlNumbers(**dict(zip(OWN, row, strict=False)))  # type: ignore[arg-type]
    starts = [len(OWN) + arm * ARM_SIZE for arm in range(int(control.arm_count))]
    control.arms = tuple(ArmNumbers(*row[start : start + ARM_SIZE]) for start in starts)
    control.weights = tuple(row[CONTROL_SIZE : CONTROL_SIZE + int(control.weight_count)])
    return control


def hold_by(control: Control) -> float:
    """The step at which a search holds at the latest: that of the cooldown.

    An annealed rate says nothing of the one that it was annealed from.
    """
    return (
        math.inf
        if control.known_horizon is None
        else (1 - control.cooldown) * control.known_horizon
    )


def annealed_over(control: Control) -> float:
    """Steps of the cooldown, up to the horizon; 0 where a scheduler anneals, or nobody."""
    if control.known_horizon is None or control.mode == "modulate":
        return 0.0
    return control.cooldown * control.known_horizon


def held_share(control: Control) -> float:
    """What is held of the rate that a law finds (method.md#share)."""
    annealed = control.known_horizon is not None or control.mode == "modulate"
    share = CLIMB_SHARE if control.law == "alignment" else 1.0
    return share if annealed else share * UNANNEALED_SHARE


def ramp_share(control: Control) -> float:
    """What is held of the rate that the range test marks, beside (method.md#share)."""
    return RAMP_SHARE * _times(control) ** (-1 / 3)


def _search_within(control: Control, limits: Limits) -> int:
    """Steps that a ramp may take; 0 as well where there is nothing above its foot to look at."""
    if limits.lr_acquire >= limits.lr_max:
        return 0
    return search_within(control.known_horizon, control.cooldown)


def warm_up(control: Control) -> float:
    """Steps over which the range test's α rises to the rate that is held."""
    return WARM_UP * _length(control) if control.law == "range_test" else 0.0


def _times(control: Control) -> float:
    """How many times longer the run is than those that were measured most; at least 1."""
    return max(_length(control) / NOMINAL_HORIZON, 1.0)


def _length(control: Control) -> int:
    return NOMINAL_HORIZON if control.known_horizon is None else control.known_horizon
