"""An optimizer's controllers, one or one of each group: where they start, and what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from adaptiverl.algorithms import Algorithm
from adaptiverl.arguments import whole_number
from adaptiverl.codecs import Storage
from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.devices import outside_inference
from adaptiverl.footprint import bytes_by_part
from adaptiverl.log import Log
from adaptiverl.readings import readings
from adaptiverl.step.memory import (
    STATE_KEY,
    controller_of,
    device_beside,
    hold,
    loaded_memory,
    settle,
)
from adaptiverl.step.round import Round
from adaptiverl.trace import Trace

if TYPE_CHECKING:
    Optimizer = torch.optim.Optimizer
else:
    Optimizer = object

Start = tuple[float, float]
"""The α and the μ that a controller starts from"""


class Controlled(Optimizer):
    """An optimizer of ours as its controllers see it; it comes before torch's among the bases."""

    _algorithm: Algorithm
    _control: Control
    """What the user gave"""
    _running: Control
    """The same, with the horizon where ``"auto"`` was resolved"""
    _log: Log
    _round: Round
    _seed: int
    _storage: Storage
    _controller: Controller
    """The first group's, or that of all; it hears the losses for the others, too"""
    _controllers: list[Controller]
    _starts: list[Start]
    _awaits_rate = False
    """Whether all groups so far had a rate of 0, which no factor moves"""

    @outside_inference
    def _start_controllers(self, starts: Sequence[Start]) -> None:
        self._starts, self._controllers = [], []
        for start in starts:
            self._add_controller(start)

    def _add_controller(self, start: Start) -> None:
        controller = Controller(
            self._running,
            *start,
            kind=self._algorithm.momentum,
            seed=self._seed,
            device=device_beside(self.param_groups) or "cpu",
            observations=self._controller.observations if self._controllers else None,
        )
        self._starts.append(start)
        self._controllers.append(controller)
        self._controller = self._controllers[0]
        self._round.controllers = self._controllers

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's. The first group's rate and momentum are where α and μ start.

        A first group whose rate is 0, a frozen backbone's perhaps, is followed by the next whose
        rate is not; until there is one the constructor's `lr` is where α starts. With
        ``Control(groups="own")`` each group's are where its own start; one that comes after the
        first step goes on from the first group's controller, at the same factor of its rate.

        A dictionary that is another steered optimizer's group already is copied: each controller
        keeps its memory in its own groups.

        Raises:
            ValueError: A group that asks for what this optimizer does not do, or starts outside the
                bounds.
        """
        if isinstance(param_group, dict):  # anything else torch refuses itself
            self._check_new_group(param_group)
            if STATE_KEY in param_group:
                param_group = {k: v for k, v in param_group.items() if k != STATE_KEY}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if self._control.groups == "own":
            self._start_own(group)
        elif not hasattr(self, "_starts") or self._awaits_rate:
            self._start_from(group)
        hold(self.param_groups, self._controllers)

    def _check_new_group(self, param_group: dict[str, Any]) -> None:
        if param_group.get("lr", 0.0) is None:
            raise ValueError(
                "lr of a parameter group must be a number, got None: leave it out, and the "
                "group has the optimizer's"
            )
        group = self.defaults | param_group
        self._check_group(group, self._control)  # type: ignore[attr-defined]
        self._storage.check_group(type(self).__name__, group)
        if self._control.groups == "own":
            place = len(self.param_groups)
            try:
                self._running.limits(*self._start_of(group), self._algorithm.momentum)
            except ValueError as error:
                raise ValueError(
                    f"parameter group {place}, with Control(groups='own'): {error}"
                ) from None

    def _start_of(self, group: dict[str, Any]) -> Start:
        """A group's; one at a rate of 0 is told from the constructor's."""
        lr = float(group["lr"])
        if lr == 0 and self._control.mode == "replace":
            lr = float(self.defaults["lr"])
        return lr, self._algorithm.start_of(group)

    def _start_from(self, group: dict[str, Any]) -> None:
        """Start by this group, or once more where all before it had a rate of 0, and no step."""
        lr, first = float(group["lr"]), not hasattr(self, "_starts")
        if first:
            self._log.warn_if_too_short()
        elif lr == 0 or self.state:
            return
        self._awaits_rate = lr == 0 and self._control.mode == "replace"
        self._start_controllers([self._start_of(group)])

    @outside_inference
    def _start_own(self, group: dict[str, Any]) -> None:
        """A controller for this group alone."""
        start = self._start_of(group)
        if not hasattr(self, "_starts"):
            self._start_controllers([start])
            return
        self._add_controller(start)
        if self.state or self._controller.ever_observed:
            self._controllers[-1].go_on_from(self._controller)

    def _settle(self) -> None:
        settle(self.param_groups, self._controllers, self._log)

    @property
    def _others(self) -> Sequence[Controller]:
        """Whom the first one hears for."""
        return self._controllers[1:]

    # What the user asks it

    @outside_inference
    def knobs(self, group: int = 0) -> dict[str, float]:
        """A group's learning rate and momentum in effect, α, σ, and the sensors by name.

        Waits for the device: call it when you print, not every step. It is a copy that is looked
        at; nothing changes that a step reads. Called from another thread while a step runs it
        disturbs nothing, but what it shows may be of two steps.

        Args:
            group: Its place among ``param_groups``. With ``Control(groups="own")`` α, μ, σ and the
                sensors are that group's; otherwise they are the same for all.

        Returns:
            `readings.readings` says which there are, and their units.

        Raises:
            ValueError: There is no such group.
        """
        controller = self._controller_of("knobs", group)
        numbers = [float(x) for x in self._algorithm.numbers_of(self.param_groups[group])]
        place = self._controllers.index(controller)
        loaded = loaded_memory(self.param_groups[place], controller)
        arms, sums = len(self._control.arms or ()), self._control.reads_sums
        learned = self._control.terms.learned
        return readings(*controller.in_effect(numbers, loaded), arms, sums, learned)

    def trace(self, group: int = 0) -> Trace:
        """The last few thousand updates of the knobs, recorded on the device. Waits for it.

        Args:
            group: As for `knobs`.

        Raises:
            ValueError: There is no such group.
        """
        return self._controller_of("trace", group).trace()

    def _controller_of(self, asked: str, group: int) -> Controller:
        count = len(self.param_groups)
        expected = f"the place of a parameter group, from 0 to {count - 1}"
        place = whole_number(group, f"{asked}(group)", expected, ValueError)
        if not 0 <= place < count:
            raise ValueError(f"{asked}(group) must be {expected}, got {group!r}")
        return controller_of(self._controllers, place)

    def memory(self) -> dict[str, int]:
        """Bytes that everything takes on this rank, by part, counted from the tensors.

        Returns:
            ``parameters``, ``gradients`` and each state entry by its name, such as ``exp_avg``, of
            a shard only what lies here; ``controller``, the controllers' numbers and tables, sums
            and counts of every tensor; and ``trace``, 1 MB of each controller whatever the model's
            size, of which a host touches what is written. State and the trace are made by the first
            step.
        """
        numbers = [x for one in self._controllers for x in (one.state, one.numbers, one.inbox)]
        rows = [one.ring.rows for one in self._controllers if one.ring.rows is not None]
        own = {"controller": [*numbers, *self._round.workspace.held()], "trace": rows}
        return bytes_by_part(self.param_groups, self.state, own)
