"""What a law is: what moves α, in a few places of the loop. csrc/law/base.h says it for C++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from adaptiverl.layout import ControlNumbers, State


def nothing(state: State, control: ControlNumbers) -> None:
    """Most laws have nothing to do there."""


def own(state: State, control: ControlNumbers) -> ControlNumbers:
    """The control's numbers are in force as they are."""
    return control


class Law(NamedTuple):
    """How α is moved; μ and σ have one law each, whatever moves α (`knobs.py`)."""

    needs_loss: bool
    """Without observations nothing is updated, nor traced"""
    needs_sums: bool
    """The pass over the parameters has to sum Σg·u, Σg² and Σu² for it"""
    sense: Callable[[State, ControlNumbers], bool]
    """Once in every step, before the step's losses are sensed; whether α has moved"""
    act: Callable[[State, ControlNumbers, float, float], None]
    """Once in every update of the knobs, from the reward's direction and the loss's worsening"""
    goes_back: bool = False
    """It may ask for the weights of an earlier step: someone has to keep them (`state.rewind`)"""
    judge: Callable[[State, ControlNumbers], None] = nothing
    """Behind every observation, once its sensors have been read"""
    reads_sums_until: Literal["end", "held", "cooldown"] = "end"
    """Where it last reads those sums: at the run's end, where a rate is held, or in the step before
    the cooldown, unless that rate was climbed to"""
    in_force: Callable[[State, ControlNumbers], ControlNumbers] = own
    """The numbers that an update goes by"""
