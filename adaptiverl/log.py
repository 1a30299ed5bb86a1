"""What an optimizer has to say, once each: warnings, and lines in the log.

Reading the controller's state for it never waits for a device.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.arms import key_of
from adaptiverl.control import Control
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
BLIND_EPOCH = 10_000
"""The same under epoch-wise control: few epochs are longer, and none that is can be told"""
UNREWARDED = 100
"""Losses without a reward, before the warning"""
UNREWARDED_UPDATES = 5
"""The same under epoch-wise control"""


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
        self._unobserved_steps = self._unrewarded = 0
        self._looks_at_rates = control.mode == "replace" and not control.is_frozen
        self._rates: tuple[int, list[float]] = (0, [])
        self._warned_of_shards = False

    def resume(self, memory: Tensor, lr_bounds: tuple[float, float]) -> None:
        """A memory was loaded, float64 on any device: its α may lie outside this control's bounds.

        Args:
            memory: As the controller took it over.
            lr_bounds: (α_min, α_max) in force.
        """
        self.announcements.resume(memory)
        self._tell_of_other_arms(memory)
        log_lr = float(memory[SLOT["log_lr"]])
        low, high = map(math.log, lr_bounds)
        if not low <= log_lr <= high and self._ranks.is_first():
            down, up = self._control.lr_change
            logger.info(
                "%s goes on at the α of its checkpoint, %.3g, which is outside this Control's "
                "lr_bounds, (%.3g, %.3g): it moves there by a factor of at most %.3g or %.3g in an "
                "update (Control.lr_change)",
                self.optimizer,
                _exp(log_lr),
                *lr_bounds,
                down,
                up,
            )

    def _tell_of_other_arms(self, memory: Tensor) -> None:
        known = int(memory[SLOT["arms_key"]])
        if (
            self._control.arms
            and known not in (0, key_of(self._control))
            and self._ranks.is_first()
        ):
            logger.info(
                "%s learns anew which of its %d arms is best: its checkpoint knows of other arms, "
                "or of another Control.window",
                self.optimizer,
                len(self._control.arms),
            )

    def tell_of_load(
        self, converted: set[tuple[torch.dtype, torch.dtype]], without_product: int
    ) -> None:
        """What of a checkpoint is not as it was saved.

        Args:
            converted: State that was converted: from what, to what.
            without_product: Parameters whose product of momenta a checkpoint of ours lacks.
        """
        if not self._ranks.is_first():
            return
        for old, new in sorted(converted, key=str):
            logger.info(
                "%s converted the checkpoint's state from %s to %s, which state_dtype and the "
                "parameters ask for",
                self.optimizer,
                old,
                new,
            )
        if without_product:
            logger.warning(
                "%s has loaded %d parameters without mu_product, the product of their momenta: β₁ "
                "to the number of their steps stands for it, which is the same where β₁ never "
                "moved. Set a flattened state_dict of torch.distributed.checkpoint on a new "
                "optimizer, or load it in place, dcp.load(get_optimizer_state_dict(...))",
                self.optimizer,
                without_product,
            )

    def warn_of_lost_updates(self, lost: Tensor, step: int) -> None:
        """Of a step's updates this share, 0-d on the host, was rounded away."""
        share = lost.item()
        if share >= LOST_SHARE:
            _warn(
                f"{share:.0%} of the updates of parameters of 16 bits were lost at step {step}: "
                "they are below the parameter's last bit, and stochastic_rounding=False rounds to "
                "nearest. Leave it True, or keep the parameters in float32"
            )

    def warn_if_blind(self) -> None:
        """Another step was taken without one observation so far."""
        control, every = self._control, self._control.every
        if control.needs_no_loss or (every is None and control.rests):
            return
        self._unobserved_steps += 1
        if self._unobserved_steps != (BLIND_EPOCH if every is None else max(every, BLIND_STEPS)):
            return
        here = "" if self._ranks.size == 1 else " on this rank (nor, perhaps, on any)"
        if every is None:
            missing = (
                "optimizer.update(loss) once per epoch or evaluation, or give Control an `every`"
            )
        else:
            missing = "optimizer.observe(loss) before step(), or step(loss=loss)"
        _warn(
            f"{self.optimizer} took {self._unobserved_steps} steps and was never told a "
            f"loss{here}, so nothing is adapted: call {missing}, or pass Control.frozen() if that "
            "is what you want"
        )

    def look_at_reward(self, ever_rewarded: bool) -> None:
        """Another loss came; with ``Control(reward="given")`` some reward should have, too."""
        if ever_rewarded or self._control.reward != "given":
            return
        self._unrewarded += 1
        every = UNREWARDED_UPDATES if self._control.every is None else UNREWARDED
        if self._unrewarded == every and not self._control.rests:
            here = "" if self._ranks.size == 1 else " on this rank (nor, perhaps, on any)"
            _warn(
                f"{self.optimizer} was told {every} losses and no reward{here}, with "
                "Control(reward='given'): only a reward lets the learning rate rise, so it can "
                "only sink. Give one, as in observe(loss, reward), or use "
                "Control(reward='neg_loss')"
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

    def look_at_rates(self, groups: Sequence[dict[str, Any]]) -> None:
        """A step is about to use these groups' rates; a scheduler may have moved them.

        A rate set by hand is the user's to set: only where a scheduler has been is it looked at,
        and never one that lies on an accelerator.
        """
        if not self._looks_at_rates or "initial_lr" not in groups[0]:
            return
        rates = [_rate(group["lr"]) for group in groups]
        before, self._rates = self._rates, (id(groups[0]), rates)  # a load makes other groups
        if before[0] != id(groups[0]):
            return
        for number, (was, now) in enumerate(zip(before[1], rates, strict=False)):
            if was != now:
                self._looks_at_rates = False
                if self._ranks.is_first():
                    _warn(
                        f"a scheduler moved lr of parameter group {number} from {was:g} to "
                        f"{now:g}, and Control(mode='replace') steers the learning rate itself, "
                        "so both pull: use Control(mode='modulate'), which multiplies what a "
                        "scheduler sets, or leave the scheduler out"
                    )
                return

    def warn_of_shards(self, shapes: list[tuple[int, ...]]) -> None:
        """There are tensors of these shapes whose shards are no runs of elements."""
        if shapes and not self._warned_of_shards:
            self._warned_of_shards = True
            _warn(
                f"{len(shapes)} sharded parameters, the first of shape {shapes[0]}, are cut in a "
                "way that makes no shard one run of elements: should σ rise, each shard draws its "
                "own noise, which depends on the number of ranks. Shard(0) does not have this"
            )


def _rate(lr: Tensor | float) -> float:
    return 0.0 if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


def _warn(message: str) -> None:
    """At the line that called us, over all frames of ours and of torch's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


OURS = ("adaptiverl", "torch")


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
    """

    def __init__(self, control: Control, optimizer: str, speaks: Callable[[], bool]) -> None:
        self._control = control
        self._optimizer = optimizer
        self._speaks = speaks
        self._silent = not (control.finds_lr or control.anneals)
        self._looks = 0
        self._next_look: float = 0
        self._copy: Copy | None = None
        self._told_held = self._told_climb = False

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
        what = "learning rate"
        if self._control.mode == "modulate":
            what = "factor of the learning rate"
        if climbs and not (held or self._told_climb):
            self._told_climb = True
            message = (
                "put its weights back where the search began, and its moments to 0, by step %.0f; "
                "no loss confirmed the %s that was marked, so that it climbs slowly, from below "
                "it: %.3g now"
            )
            self._say(logging.INFO, message, step, what, _exp(log_lr))
        if held and not self._told_held:
            self._told_held = True
            message = "holds the %s it found: %.3g, by step %.0f"
            if numbers[SLOT["held_at"]] and not climbs:
                message += "; its weights are back where the search began, its moments at 0"
            if self._control.is_too_short:
                message = "holds the %s it was given: %.3g, from step %.0f on"
            self._say(logging.INFO, message, what, _exp(log_lr), step)

    def _tell_of_end(self, step: float) -> None:
        horizon = self._control.known_horizon
        if (
            self._told_held or not self._control.finds_lr
        ):  # only the horizon is still to be watched, and a step adds one at most
            left = math.inf if horizon is None or not step <= horizon else horizon + 1 - step
            self._next_look = self._looks + min(LOOK_EVERY, left)
        if horizon is not None and step > horizon and self._control.anneals:
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
