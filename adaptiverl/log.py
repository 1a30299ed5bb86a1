"""What an optimizer has to say, once each: warnings, and lines in the log.

Reading the controller's state for it never waits for a device.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptiverl.announcements import Announcements, readable_exp
from adaptiverl.arms import key_of
from adaptiverl.control import Control
from adaptiverl.layout import SLOT
from adaptiverl.limits import STAND_IN_LR
from adaptiverl.ranks.group import Ranks
from adaptiverl.terms import SEARCH_STEPS

logger = logging.getLogger("adaptiverl")

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
ROUNDING = 1e-9
"""log-units by which two controllers' factors may differ that have heard the same"""


class Log:
    """What one optimizer has to say.

    Args:
        control: Its control.
        optimizer: Its name, for people.
        ranks: Those that decide together; of them one speaks in the log.

    Attributes:
        optimizer: As given.
        announcements: What its law announces, of the first controller.
    """

    def __init__(self, control: Control, optimizer: str, ranks: Ranks) -> None:
        self.optimizer = optimizer
        self._announcements: list[Announcements] = []
        self._control, self._ranks = control, ranks
        self._unobserved_steps = self._unrewarded = 0
        self._looks_at_rates = control.mode == "replace" and not control.is_frozen
        self._rates: tuple[int, list[float]] = (0, [])
        self._warned_of_shards = False
        self._pulsed = False

    @property
    def announcements(self) -> Announcements:
        """Those of the first controller, or of the only one."""
        return self.announcements_of(0)

    def announcements_of(self, place: int) -> Announcements:
        """What the law of one controller announces."""
        while len(self._announcements) <= place:
            number = len(self._announcements)
            new = Announcements(self._control, self._name_of(number), self._ranks.is_first, number)
            self._announcements.append(new)
        return self._announcements[place]

    def _name_of(self, place: int) -> str:
        own = self._control.groups == "own"
        return f"{self.optimizer} (parameter group {place})" if own else self.optimizer

    def tell_of_controllers(
        self, several: bool, memories: Sequence[Tensor], controllers: int, groups: int
    ) -> None:
        """A checkpoint was loaded: of one controller for all groups or of several, as here or not.

        Args:
            several: Its groups' memories differ.
            memories: Those.
            controllers: How many there are here.
            groups: How many groups there are.
        """
        first = _log_factor(memories[0])
        parted = any(abs(_log_factor(one) - first) > ROUNDING for one in memories)
        if several and parted and controllers < groups:
            _warn(
                f"the checkpoint has a controller for each of its {groups} parameter groups, and "
                "Control(groups='one') has one: it goes on from the first group's, so that the "
                "other groups' rates are now multiplied by that one's factor. Load it with "
                "Control(groups='own') to go on as it was"
            )
        # Where losses alone decide, all of them move alike.
        same = several or controllers == 1 or not self._control.finds_lr
        same = same or not memories[0][SLOT["step"]]
        if not same and self._ranks.is_first():
            logger.info(
                "%s has a controller for each of its %d parameter groups, and the checkpoint had "
                "one: each goes on from it, at the rate that was in effect, and moves by its own "
                "group's sums from now on. Load it with Control(groups='one') to go on as it was",
                self.optimizer,
                groups,
            )

    def resume(self, memory: Tensor, lr_bounds: tuple[float, float], place: int = 0) -> None:
        """A memory was loaded, float64 on any device: its α may lie outside this control's bounds.

        Args:
            memory: As the controller took it over.
            lr_bounds: (α_min, α_max) in force.
            place: The controller's.
        """
        self.announcements_of(place).resume(memory)
        if place == 0:
            self._tell_of_other_arms(memory)
        log_lr = float(memory[SLOT["log_lr"]])
        low, high = map(math.log, lr_bounds)
        if not low <= log_lr <= high and self._ranks.is_first():
            down, up = self._control.lr_change
            logger.info(
                "%s goes on at the α of its checkpoint, %.3g, which is outside this Control's "
                "lr_bounds, (%.3g, %.3g): it moves there by a factor of at most %.3g or %.3g in an "
                "update (Control.lr_change)",
                self._name_of(place),
                readable_exp(log_lr),
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
        self,
        converted: set[tuple[torch.dtype, torch.dtype]],
        without_product: int,
        dropped_errors: int,
        without_errors: int,
    ) -> None:
        """What of a checkpoint is not as it was saved.

        Args:
            converted: State that was converted: from what, to what.
            without_product: Parameters whose product of momenta a checkpoint of ours lacks.
            dropped_errors: Parameters whose error terms are not kept.
            without_errors: Parameters whose error terms a checkpoint of ours lacks.
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
        if dropped_errors:
            logger.info(
                "%s dropped the error terms of %d parameters, which master_bits does not ask for "
                "here, or the parameters' dtype: they go on from what bfloat16 says",
                self.optimizer,
                dropped_errors,
            )
        if without_errors:
            logger.info(
                "%s found no error terms of %d parameters in the checkpoint: they start at 0, "
                "master_bits=8 keeps them from now on",
                self.optimizer,
                without_errors,
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
                "nearest. Leave it True, give master_bits=8 for bfloat16, or keep them in float32"
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
                f"leaves the search for a learning rate no room: it may take {SEARCH_STEPS} steps, "
                "which must be at most a quarter of the run and end before the cooldown. Held "
                "instead, with a warm-up and the cooldown: lr as it was given, or "
                f"{STAND_IN_LR:g} where it was None. Give a longer horizon, or an lr that you trust"
            )

    def warn_if_endless(self, control: Control) -> None:
        """Once, where the law has a horizon and was given none: every pulse is then a reading.

        Args:
            control: As it runs now.
        """
        if self._pulsed or not control.finds_lr or control.known_horizon is not None:
            return
        self._pulsed = True
        _warn(
            f"pulse() with Control(law={control.law!r}, horizon=None): nobody knows how long "
            "the run is, so that each pulse is judged by itself, however soon after the last, and "
            "a rate that was cut stays what it is. Give a horizon, or pulse at most once in a "
            "hundredth of the run"
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


def _log_factor(memory: Tensor) -> float:
    """What α is over its start, as a logarithm: every layout has both where today's has."""
    return float(memory[SLOT["log_lr"]] - memory[SLOT["log_lr_start"]])


def _rate(lr: Tensor | float) -> float:
    return 0.0 if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)


def _warn(message: str) -> None:
    """At the line that called us, over all frames of ours and of torch's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


OURS = ("adaptiverl", "torch")
