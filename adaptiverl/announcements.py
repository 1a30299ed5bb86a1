"""What a law announces, once each: the rate that is held, and a run beyond its horizon.

Reading the controller's state for it never waits for a device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptiverl.control import Control
from adaptiverl.layout import SLOT

logger = logging.getLogger("adaptiverl")

LOOK_EVERY = 64
"""Steps between two looks once the rate is held: only the horizon is still to be watched."""
_OF_SEARCH = [SLOT["held"], SLOT["climbing"]]


class Copy(NamedTuple):
    """Of a state on a GPU."""

    state: Tensor
    """In pinned memory"""
    arrived: torch.cuda.Event
    device: torch.device
    """Of the state, and so of the event: one can be recorded on one device only"""


class Announcements:
    """Watches one controller's state: INFO when the rate is held, WARNING beyond the horizon.

    On the host the state is read at once. From a GPU it is copied on the stream, and read by a
    later step that finds the copy done, so that a line may come a few steps late.

    Args:
        control: A law that finds the rate, or a horizon; any other has nothing to say.
        optimizer: Its name, for people.
        speaks: Whether this process logs, asked when there is something to say: of many ranks, one
            does.
        place: The controller's: of several the first speaks of the run.
    """

    def __init__(
        self, control: Control, optimizer: str, speaks: Callable[[], bool], place: int = 0
    ) -> None:
        self._control, self._place = control, place
        self._optimizer = optimizer
        self._speaks = speaks
        self._silent = not (control.finds_lr or control.anneals)
        self._looks = 0
        self._next_look: float = 0
        self._copy: Copy | None = None
        self._told_held = self._told_climb = self._told_end = False

    @property
    def held(self) -> bool:
        """Whether the rate is held, as far as has been heard."""
        return self._told_held

    @property
    def went_back(self) -> bool:
        """Whether nothing goes back any more, as far as has been heard."""
        return self._told_held or self._told_climb

    def resume(self, memory: Tensor) -> None:
        """A loaded memory, float64 on any device: what it already held is not news."""
        self._told_held, self._told_climb = map(bool, memory[_OF_SEARCH].tolist())
        self._next_look = 0
        self._copy = None  # of the memory before, which is no longer true

    def look(self, state: Tensor) -> None:
        """Read the controller's state as a step left it, or as much of it as has arrived."""
        if self._silent:
            return
        self._looks += 1
        if self._looks < self._next_look:
            return
        if state.device.type == "cpu":
            self._tell(state)
            return
        # An event, and what is asked of "the current stream", are the current device's: without
        # this another device's event would say that the copy has arrived.
        with torch.cuda.device(state.device):
            if not torch.cuda.is_current_stream_capturing():
                self._look_from_afar(state)

    def _look_from_afar(self, state: Tensor) -> None:
        """Tell what the last copy says once it has arrived, and send for the next one."""
        copy = self._copy
        if copy is None or copy.device != state.device:
            there = torch.empty_like(state, device="cpu", pin_memory=True)
            copy = self._copy = Copy(there, torch.cuda.Event(), state.device)
        elif copy.arrived.query():
            self._tell(copy.state)
        else:
            return
        copy.state.copy_(state, non_blocking=True)
        copy.arrived.record()

    def _tell(self, state: Tensor) -> None:
        numbers = state.tolist()  # all at once: a third of the time that three of them take
        if self._control.finds_lr:
            self._tell_of_search(numbers)
        self._tell_of_end(numbers[SLOT["step"]])

    def _tell_of_search(self, numbers: list[float]) -> None:
        step, held, log_lr = (numbers[SLOT[name]] for name in ("step", "held", "log_lr"))
        climbs = bool(numbers[SLOT["climbing"]])
        went_back = bool(numbers[SLOT["held_at"]]) and not climbs
        unmarked = numbers[SLOT["log_lr_zero"]] == -math.inf  # by a ramp, if there was one
        what = "learning rate"
        if self._control.mode == "modulate":
            what = "factor of the learning rate"
        if climbs and not held and (self._told_held or not self._told_climb):
            before, self._told_held, self._told_climb = self._told_held, False, True
            message = (
                "put its weights back where the search began, and its moments to 0, by step %.0f; "
                "nothing confirmed the %s that was marked, so that it climbs slowly, from below "
                "it: %.3g now"
            )
            if unmarked:
                message = (
                    "put its weights back where the search began, and its moments to 0, by step "
                    "%.0f; no %s could be marked, so that it climbs slowly: %.3g now"
                )
            if before:
                message = (
                    "gives up the rate it held, by step %.0f: the loss did not fall, so that the "
                    "%s climbs slowly, from below it: %.3g now"
                )
            self._say(logging.INFO, message, step, what, readable_exp(log_lr))
        if held and not self._told_held:
            self._told_held = True
            message = "holds the %s it found: %.3g, by step %.0f"
            if went_back and unmarked:
                message = (
                    "holds a %s that nothing confirmed, as none was marked: %.3g, by step %.0f"
                )
            if went_back and self._told_climb:
                message = "climbs no more and holds the %s %.3g, by step %.0f: the loss rose"
            elif went_back:
                message += "; its weights are back where the search began, its moments at 0"
            if self._control.law == "range_test" and not (went_back or climbs):
                message = "holds the %s it was given: %.3g, from step %.0f on"
            self._say(logging.INFO, message, what, readable_exp(log_lr), step)

    def _tell_of_end(self, step: float) -> None:
        horizon = self._control.known_horizon
        if self._told_held or not self._control.finds_lr:
            # Only the horizon is still to be watched, and a step adds one at most.
            left = math.inf if horizon is None or not step <= horizon else horizon + 1 - step
            self._next_look = self._looks + min(LOOK_EVERY, left)
        if horizon is None or not self._control.anneals or not step > horizon:
            return
        self._next_look = math.inf  # until a load there is no more news
        if self._told_end or self._place > 0:
            return
        self._told_end = True
        self._say(
            logging.WARNING,
            "is at step %.0f, beyond Control(horizon=%d): the learning rate is 0 from there on. "
            "Give the number of steps that the run takes",
            step,
            horizon,
        )

    def _say(self, level: int, message: str, *values: object) -> None:
        if self._speaks():
            logger.log(level, f"{self._optimizer} {message}", *values)


def readable_exp(x: float) -> float:
    """eˣ, or infinity where that leaves float64: a line in the log must not end a step."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
