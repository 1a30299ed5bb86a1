"""What an optimizer has to say, once each: warnings, and lines in the log.

Reading the controller's state for it never waits for a device.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adaptiverl.control import Control
from adaptiverl.law.numbers import annealed_over
from adaptiverl.layout import SLOT
from adaptiverl.ranks.group import Ranks
from adaptiverl.terms import SEARCH_STEPS

logger = logging.getLogger("adaptiverl")

LOOK_EVERY = 64
"""Steps between two looks once the rate is held: only the horizon is still to be watched."""


LOST_SHARE = 0.01
"""Of a step's updates lost, at least, before the warning"""

BLIND_STEPS = 10
"""Steps without an observation, at least, before the warning"""


class Log:
    """What one optimizer has to say.

    Args:
        control: Its control.
        optimizer: Its name, for people.
        ranks: Those that decide together; of them one speaks in the log.

    Attributes:
        optimizer: As given.
        announcements: What its law announces.
    """

    def __init__(self, control: Control, optimizer: str, ranks: Ranks) -> None:
        self.optimizer = optimizer
        self.announcements = Announcements(control, optimizer, ranks.is_first)
        self._control, self._ranks = control, ranks
        self._unobserved_steps = 0
        self._warned_of_shards = False

    def tell_of_conversion(self, converted: set[tuple[torch.dtype, torch.dtype]]) -> None:
        """A checkpoint's state was converted: from what, to what."""
        if self._ranks.is_first():
            for old, new in sorted(converted, key=str):
                logger.info(
                    "%s converted the checkpoint's state from %s to %s, which state_dtype and the "
                    "parameters ask for",
                    self.optimizer,
                    old,
                    new,
                )

    def warn_of_lost_updates(self, share: float, step: int) -> None:
        """Of a step's updates, this share was rounded away."""
        if share >= LOST_SHARE:
            _warn(
                f"{share:.0%} of the updates of parameters of 16 bits were lost at step {step}: "
                "they are below the parameter's last bit, and stochastic_rounding=False rounds to "
                "nearest. Leave it True, or keep the parameters in float32"
            )

    def warn_if_blind(self) -> None:
        """Another step was taken without one observation so far."""
        every = self._control.every
        if every is None or self._control.needs_no_loss:
            return
        self._unobserved_steps += 1
        if self._unobserved_steps == max(every, BLIND_STEPS):
            here = "" if self._ranks.size == 1 else " on this rank (nor, perhaps, on any)"
            _warn(
                f"{self.optimizer} took {self._unobserved_steps} steps and was never told a "
                f"loss{here}, so nothing is adapted: call optimizer.observe(loss) before step(), "
                "or step(loss=loss), or pass Control.frozen() if that is what you want"
            )

    def warn_if_too_short(self) -> None:
        """The run has no room for the search that it asks for."""
        if self._control.is_too_short:
            _warn(
                f"Control(horizon={self._control.horizon}, cooldown={self._control.cooldown:g}) "
                f"leaves the search for a learning rate, which may take {SEARCH_STEPS} steps, more "
                "than half of the run or less than that before the cooldown: the rate that was "
                "given is held instead, with a warm-up and the cooldown"
            )

    def warn_of_shards(self, shapes: list[tuple[int, ...]]) -> None:
        """There are tensors of these shapes whose shards are no runs of elements."""
        if shapes and not self._warned_of_shards:
            self._warned_of_shards = True
            _warn(
                f"{len(shapes)} sharded parameters, the first of shape {shapes[0]}, are cut in a "
                "way that makes no shard one run of elements: should σ rise, each shard draws its "
                "own noise, which depends on the number of ranks. Shard(0) does not have this"
            )


def _warn(message: str) -> None:
    """At the line that called us, over all frames of ours and of torch's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


OURS = ("adaptiverl", "torch")


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
        control: Of a law that finds the rate; any other has nothing to say.
        optimizer: Its name, for people.
        speaks: Whether this process logs, asked when there is something to say: of many ranks, one
            does.
    """

    def __init__(self, control: Control, optimizer: str, speaks: Callable[[], bool]) -> None:
        self._control = control
        self._optimizer = optimizer
        self._speaks = speaks
        self._silent = not control.finds_lr
        self._looks = 0
        self._copy: Copy | None = None
        self._told_held = False

    @property
    def held(self) -> bool:
        """Whether the rate is held, as far as has been heard."""
        return self._told_held

    def resume(self, memory: Tensor) -> None:
        """A loaded memory, float64 on any device: what it already held is not news."""
        self._told_held = bool(memory[SLOT["held"]].item())
        self._copy = None  # of the memory before, which is no longer true

    def look(self, state: Tensor) -> None:
        """Read the controller's state as a step left it, or as much of it as has arrived."""
        if self._silent:
            return
        self._looks += 1
        if self._told_held and self._looks % LOOK_EVERY:
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
        step, held, log_lr = (numbers[SLOT[name]] for name in ("step", "held", "log_lr"))
        if held and not self._told_held:
            self._told_held = True
            what = "learning rate"
            if self._control.mode == "modulate":
                what = "factor of the learning rate"
            message = "holds the %s it found: %.3g, by step %.0f"
            if numbers[SLOT["held_at"]]:
                message += "; its weights are back where the search began, its moments at 0"
            if self._control.is_too_short:
                message = "holds the %s it was given: %.3g, from step %.0f on"
            self._say(logging.INFO, message, what, _exp(log_lr), step)
        horizon = self._control.horizon
        if horizon is not None and step > horizon and annealed_over(self._control):
            self._silent = True
            self._say(
                logging.WARNING,
                "is at step %.0f, beyond Control(horizon=%d): the learning rate is 0 from there "
                "on. Give the number of steps that the run takes",
                step,
                horizon,
            )

    def _say(self, level: int, message: str, *values: object) -> None:
        if self._speaks():
            logger.log(level, f"{self._optimizer} {message}", *values)


def _exp(x: float) -> float:
    """eˣ, or infinity where that leaves float64: a line in the log must not end a step."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
