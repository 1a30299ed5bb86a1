"""`Steering`: what hears the losses, tells the knobs, saves and loads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from adaptiverl.control import Control
from adaptiverl.devices import outside_inference
from adaptiverl.hooks import check_epochwise, check_stepwise
from adaptiverl.law.range_test import CLIMB_FROM
from adaptiverl.pulse import Pulses
from adaptiverl.ranks.dtensors import to_whole
from adaptiverl.ranks.group import ProcessGroup
from adaptiverl.readings import readings
from adaptiverl.steering.around import Around
from adaptiverl.steering.groups import numbers_of
from adaptiverl.steering.hooks import StepHooks
from adaptiverl.steering.saving import Saving, check_search
from adaptiverl.step.horizon import HORIZON, control_for, horizon_in
from adaptiverl.step.memory import STATE_KEY, hold, loaded_memory
from adaptiverl.trace import Trace

ATTRIBUTE = "_adaptiverl_steering"
"""Where an optimizer has its `Steering`; neither pickled nor copied with it, as hooks are not"""


def steering_of(optimizer: Any) -> Steering | None:
    """What steers a torch optimizer; None where nothing does."""
    found = getattr(optimizer, ATTRIBUTE, None)
    return found if isinstance(found, Steering) else None


class Found(NamedTuple):
    """What a search has found."""

    factor: float
    """What is held, of each group's ``lr``, before warm-up and cooldown"""
    sure: bool
    """Updates pointed downhill below it and overshot above; and the loss, if told, says so too"""
    marked: bool = True
    """Something was; if not, the search knows no rate, and `factor` is where it goes on from"""


class Steering(Around, Pulses):
    """The controller over one or several optimizers; `steer` makes it."""

    warns_of_schedulers = True
    """Whether a step warns of a scheduler under ``mode="replace"``; frameworks say it themselves"""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        control: Control,
        seed: int,
        process_group: ProcessGroup,
    ) -> None:
        super().__init__(optimizers, control, seed, process_group)
        self._saving = Saving(self)
        self._hooks = [
            StepHooks(o, self._before, self._after, self._abandon) for o in self.optimizers
        ]
        for one in self.optimizers:
            setattr(one, ATTRIBUTE, self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """None: the hooks on its optimizers would stay behind, and the copy would steer nothing.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a Steering can be neither copied nor pickled, for its optimizers' copies have no "
            "hooks: copy the optimizers, steer() the copies, and give the new Steering this one's "
            "state_dict()"
        )

    # What the user tells it and asks it

    @property
    def control(self) -> Control:
        """The gains, bounds and cadence it was made with."""
        return self._control

    @torch._disable_dynamo
    @outside_inference
    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Tell the controller this step's loss, before the step; several are averaged.

        Where a gradient scaler skips a step without telling the optimizer, as it does unless
        ``fused=True``, that step's loss is averaged with the next one's.

        Args:
            loss: One real number, as for `AdaptiveAdamW.observe`.
            reward: r, where ``Control(reward="given")``.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a reward in a mode without; epoch-wise control.
        """
        check_stepwise(self._control)
        self._settle()
        self._controller.observe(to_whole(loss), to_whole(reward))
        self._log.look_at_reward(self._controller.ever_rewarded)

    @torch._disable_dynamo
    @outside_inference
    def update(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Epoch-wise control, ``Control(every=None)``: one observation and one update, now.

        Raises:
            ValueError: Step-wise control, whose updates come by themselves.
            TypeError: Something without a real value.
        """
        check_epochwise(self._control)
        self._settle()
        self._controller.update(to_whole(loss), to_whole(reward), self._share)
        self._log.look_at_reward(self._controller.ever_rewarded)

    def set_horizon(self, steps: int) -> None:
        """Tell ``Control(horizon="auto")`` how many optimizer steps the run takes.

        Before the first loss is observed; frameworks' callbacks do it. Waits for the device.

        Args:
            steps: T, those before a checkpoint included.

        Raises:
            ValueError: The control's horizon is not ``"auto"``, or the number is out of range.
            TypeError: No whole number.
        """
        control = control_for(self._control, steps)
        if control != self._running:
            fresh = loaded_memory(self.param_groups[0], self._controller) is None
            extras = self.search_state()
            self._run_with(control, fresh and self._controller.read().step == 0)
            self.take_search_state(extras)

    def _run_with(self, control: Control, fresh: bool) -> None:
        """Go on under a control for another length; from its own start where nothing was done."""
        for group in self.param_groups:
            group[HORIZON] = control.horizon
            if fresh:
                group.pop(STATE_KEY, None)
        self._begin(control)

    @outside_inference
    def knobs(self) -> dict[str, float]:
        """The first group's rate and momentum in effect, α, σ, and the sensors by name.

        Waits for the device: call it when you print, not every step.

        Returns:
            As `AdaptiveAdamW.knobs`; ``momentum`` is 0 for an optimizer that has none.
        """
        groups = self.param_groups
        numbers = [float(x) for x in numbers_of(groups[0])]
        loaded = loaded_memory(groups[0], self._controller)
        arms, sums = len(self._control.arms or ()), self._control.reads_sums
        learned = self._control.terms.learned
        return readings(*self._controller.in_effect(numbers, loaded), arms, sums, learned)

    def found(self) -> Found | None:
        """What a search has found; None while it goes on. Waits for the device.

        Where nothing confirmed a range test's mark it is what would have been held, right after the
        step that went back: the slow climb then goes on from three tenths of it, or, where nothing
        was marked, from the ramp's floor. While a climb goes on, it says where that has come to,
        and is never sure.
        """
        state = self._controller.read()
        if not state.held and not state.climbing:
            return None
        log_factor = state.log_lr - state.log_lr_start
        # At its upper bound a ramp had seen no updates overshoot.
        top = math.log(self._controller.limits.lr_max)
        marked = not state.held_at or -math.inf < state.log_lr_zero < top
        if state.held:
            ramped = state.held_at and not state.climbing
            mark = state.log_lr_zero if ramped else state.log_lr_downhill
            return Found(math.exp(log_factor), -math.inf < mark < top, marked)
        below = CLIMB_FROM if marked else 0.0
        return Found(math.exp(log_factor - below), False, marked)

    def trace(self) -> Trace:
        """The last few thousand updates of the knobs. Waits for the device."""
        return self._controller.trace()

    def remove(self) -> None:
        """Let go of the optimizers: they go on at the rates that their groups say."""
        self._removed = True
        for hooks in self._hooks:
            hooks.remove()
        self._saving.remove()
        for one in self.optimizers:
            if steering_of(one) is self:
                delattr(one, ATTRIBUTE)
            for group in one.param_groups:
                group.pop(STATE_KEY, None)
                group.pop(HORIZON, None)

    # Save and load: the optimizers' own checkpoints have all this, too (`saving`)

    def state_dict(self) -> dict[str, Any]:
        """What the optimizers' own checkpoints have of the steering, alone.

        For a checkpoint library that keeps ``state`` and ``param_groups`` only, in the middle of a
        search: the groups have the memory, but the search's last direction and its start go there.
        """
        self._settle()
        return {"memory": self._controller.memory, **self.search_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; after the optimizers' own `load_state_dict`.

        Raises:
            TypeError: No dictionary.
            ValueError: No memory of a controller; one that is damaged or of an unknown layout; a
                search of other parameters.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                "Steering.load_state_dict() takes what Steering.state_dict() returned, a "
                f"dictionary, got {type(state_dict).__name__}; nothing was changed"
            )
        if "memory" not in state_dict:
            raise ValueError(
                "Steering.load_state_dict() takes what Steering.state_dict() returned, which has a "
                f"'memory', got the keys {list(state_dict)}: an optimizer's own checkpoint goes to "
                "its own load_state_dict; nothing was changed"
            )
        check_search(state_dict, self.optimizers)
        self._settle()
        self._controller.adopt(state_dict["memory"])
        self._log.resume(self._controller.memory, self._lr_bounds)
        self.take_search_state(state_dict)

    def search_state(self) -> dict[str, Any]:
        """Of a search that is going on: ``directions``, one an optimizer, and ``search_start``."""
        found: dict[str, Any] = {}
        if any(direction.last is not None for direction in self._directions):
            found["directions"] = [direction.last for direction in self._directions]
        if self._start is not None:
            found["search_start"] = self._start.state_dict()
        return found

    def take_search_state(self, saved: dict[str, Any]) -> None:
        """Go on with that search; one whose start is not there begins anew from the weights."""
        self._sums, self._stepped = {}, set()
        lasts = saved.get("directions") or [None] * len(self._directions)
        for direction, last in zip(self._directions, lasts, strict=False):
            direction.load(last)
        self._start = None
        if "search_start" in saved:
            self._start = self._new_start()
            self._start.load_state_dict(saved["search_start"])
        elif self._running.law == "range_test":
            self._controller.search_anew()

    def follow_load(self, optimizer: Optimizer, saved: dict[str, Any] | None) -> None:
        """An optimizer has loaded a checkpoint, with this of the steering in it, if any."""
        if optimizer is not self.optimizers[0]:
            hold(self.param_groups, [self._controller])
            return
        groups, known = self.param_groups, self._running.known_horizon
        if STATE_KEY not in groups[0]:
            self._controller.reset()
            self._log.announcements.resume(self._controller.memory)
        loaded = horizon_in(groups)
        if self._control.horizon == "auto" and loaded not in (None, known):
            self._run_with(self._control.for_run(loaded), fresh=False)
        elif self._control.horizon == "auto" and known is not None:
            for group in groups:
                group[HORIZON] = known
        self._settle()
        self.take_search_state(saved or {})
