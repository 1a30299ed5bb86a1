"""`set_horizon`: a run's length, for a control that leaves it to a framework to say."""

from __future__ import annotations

from typing import Any

from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.log import Log
from adaptiverl.step.horizon import HORIZON, control_for, horizon_in
from adaptiverl.step.memory import STATE_KEY, loaded_memory


class RunLength:
    """What an optimizer with ``Control(horizon="auto")`` is told, before its first step."""

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    _control: Control
    _controller: Controller
    _log: Log

    def set_horizon(self, steps: int) -> None:
        """Tell ``Control(horizon="auto")`` how many optimizer steps the run takes.

        The callbacks and `observe_backward` do, once the framework knows. Call it before the first
        loss is observed; after a load too, where the run is to take another number of steps than
        the checkpoint says. Waits for the device.

        Args:
            steps: T, those before a checkpoint included.

        Raises:
            ValueError: The control's horizon is not ``"auto"``, or the number is out of range.
            TypeError: No whole number.
        """
        known = control_for(self._control, steps).known_horizon
        if known == self._controller.control.known_horizon:
            return
        kept = self.__getstate__()  # type: ignore[attr-defined]
        unused = loaded_memory(self.param_groups[0], self._controller) is None
        unused = unused and self._controller.read().step == 0
        self.defaults[HORIZON] = known
        for group in self.param_groups:
            group[HORIZON] = known
            if unused:  # another horizon may start the search elsewhere
                group.pop(STATE_KEY, None)
        self.__setstate__(kept)  # type: ignore[attr-defined]
        self._log.warn_if_too_short()

    def _keep_horizon(self) -> None:
        """A checkpoint was loaded: what it says of the run counts, or else what was said before."""
        known, loaded = self._controller.control.known_horizon, horizon_in(self.param_groups)
        if self._control.horizon != "auto" or loaded == known:
            return
        if loaded is not None:
            self.set_horizon(loaded)
            return
        for group in self.param_groups:
            group[HORIZON] = known
