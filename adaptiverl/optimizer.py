"""The torch.optim contract: groups, state, hooks, loss scaling, save and load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused

from adaptiverl.checkpoint import load, save
from adaptiverl.codecs import Storage
from adaptiverl.control import Control
from adaptiverl.controlled import Controlled
from adaptiverl.decay import DecayChoice
from adaptiverl.devices import outside_inference
from adaptiverl.hooks import (
    check_closure,
    check_epochwise,
    check_stepwise,
    is_loss,
    taking_loss,
    waits_for_a_step,
)
from adaptiverl.horizon import RunLength
from adaptiverl.log import Log
from adaptiverl.pulse import Pulses
from adaptiverl.ranks.dtensors import to_whole
from adaptiverl.ranks.group import ProcessGroup, Ranks
from adaptiverl.ranks.joining import Joins
from adaptiverl.ranks.joining import watch as watch_joins
from adaptiverl.readings import described
from adaptiverl.release import Releases
from adaptiverl.soundness import check
from adaptiverl.step.horizon import horizon_in
from adaptiverl.step.memory import STATE_KEY, settle
from adaptiverl.step.round import Round, Rules
from adaptiverl.step.scaling import watch
from adaptiverl.step.state import complete

DEFAULT_STORAGE = Storage()


class AdaptiveOptimizer(
    Controlled, RunLength, Pulses, Joins, Releases, DecayChoice, torch.optim.Optimizer
):
    """What an optimizer needs to be steered: `observe`, `update`, `knobs`, `trace`, one step."""

    grad_scale: Tensor
    """Set by a gradient scaler for the length of a step; so is `found_inf`"""
    found_inf: Tensor
    warns_of_schedulers = True
    """Whether a step warns of a scheduler under ``mode="replace"``; frameworks say it themselves"""
    _in_hooks = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class derived from ours, as Fabric's wrapper is, takes the loss in its `step` too."""
        super().__init_subclass__(**kwargs)
        step = taking_loss(cls.step)
        if step is not cls.step:
            cls.step = step  # type: ignore[method-assign]

    @classmethod
    def _check_group(cls, group: dict[str, Any], control: Control) -> None:
        """A group, with all its entries, asks for nothing that this algorithm does not do.

        Raises:
            ValueError: It does.
        """

    @classmethod
    def _complete_state(
        cls, storage: Storage, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Make what is missing of a parameter's slots; a checkpoint may have brought a part."""
        if not state and group["fused"]:
            _device_dtype_check_for_fused(param)
        complete(cls._algorithm, storage, param, group, state)

    def _prepare(
        self,
        control: Control,
        max_grad_norm: float | None,
        seed: int,
        process_group: ProcessGroup = None,
        storage: Storage = DEFAULT_STORAGE,
        horizon: int | None = None,
    ) -> None:
        """What is neither groups nor state; before torch's constructor, which adds the groups."""
        if not isinstance(control, Control):
            raise TypeError(
                f"control must be a Control, got {control!r} of type {type(control).__name__}"
            )
        self._control, self._max_grad_norm, self._seed = control, max_grad_norm, seed
        control = self._running = control.for_run(horizon)
        self._storage = storage
        self._unscales = False
        self._ranks = Ranks(process_group)
        watch_joins(self, self._ranks)
        self._log = Log(control, type(self).__name__, self._ranks)
        # Both are the class's: bound to this optimizer they would keep it alive.
        rules = Rules(self._algorithm, storage, self._check_group, self._complete_state)
        self._round = Round(control, rules, max_grad_norm, self._ranks, self._log)

    # What the user tells it

    @property
    def control(self) -> Control:
        """The gains, bounds and cadence it was made with."""
        return self._control

    @torch._disable_dynamo
    @outside_inference
    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Tell the controller this step's loss; nothing waits. Several before a step are averaged.

        The average is over micro-batches: what was observed since the last step, or since a
        gradient scaler skipped one, whose loss does not count (method.md#skipped-steps).

        Args:
            loss: One real number: a tensor with one element on any device, or a Python number. NaN
                and infinities are signals, not errors (method.md#non-finite).
            reward: r, where ``Control(reward="given")``; may be left out.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a reward in a mode without; epoch-wise control.
        """
        check_stepwise(self._control)
        # Or the inbox would be emptied later, or wait for a loss on a device.
        settle(self.param_groups, self._controllers, self._log)
        self._controller.observe(to_whole(loss), to_whole(reward))
        self._log.look_at_reward(self._controller.ever_rewarded)

    @torch._disable_dynamo
    @outside_inference
    def update(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Epoch-wise control, ``Control(every=None)``: one observation and one update.

        See method.md#epoch-wise.

        On many ranks every rank calls it, and all update by the mean of what they gave.

        Args:
            loss: As in `observe`: an epoch's mean loss, or an evaluation's.
            reward: As in `observe`.

        Raises:
            ValueError: Step-wise control, whose updates come by themselves.
            TypeError: Something without a real value.
        """
        check_epochwise(self._control)
        settle(self.param_groups, self._controllers, self._log)
        share, others = self._round.share_observations, self._controllers[1:]
        self._controller.update(to_whole(loss), to_whole(reward), share, others)
        self._log.look_at_reward(self._controller.ever_rewarded)

    # One step

    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """One optimizer step.

        On a GPU each call (`observe`, `step`, `update`, `knobs`; a replay of a graph that captured
        one, too) may come on another stream, as long as that stream waits for the one before:
        `torch.cuda.Stream.wait_stream`.

        Args:
            closure: Reevaluates the model and returns the loss, which is observed unless something
                else was observed since the last step.
            loss: This step's loss, the same as calling ``observe(loss)`` before.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: A sparse gradient, or a gradient or state of another shape or device; no
                parameter, state or count has changed then. A loss that was told stays told.
        """
        if waits_for_a_step(self) and self._runs_hooks():
            return self._step_with_hooks(closure, loss=loss)
        check_closure(closure)
        self._check_capture()
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        controller = self._controller
        if loss is not None:
            self.observe(loss)
        elif self._control.every is not None and not self._told and is_loss(result):
            self.observe(result)
        if not controller.ever_observed:
            self._log.warn_if_blind()
        (self._releasing() or self._round).take(self)
        return result

    # torch.optim would wrap `step` so that hooks run and profilers see it, at the price of ten
    # operators, hooks or not. Here its wrapper is used where there is something for it to do.
    step.hooked = True  # type: ignore[attr-defined]
    _hooked_step = torch.optim.Optimizer.profile_hook_step(step)

    def _runs_hooks(self) -> bool:
        """Not inside them, and not for a subclass's own `step`, which torch has wrapped."""
        return not self._in_hooks and type(self).step is AdaptiveOptimizer.step

    def _step_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        self._in_hooks = True
        try:
            return self._hooked_step(*args, **kwargs)
        finally:
            self._in_hooks = False

    def _check_capture(self) -> None:
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(self, name):
                getattr(self, name)()
                return

    # Loss scaling

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a gradient scaler leaves unscaling and skipping to `step`; torch's own name.

        The protocol is torch's: a scaler reads this before every step, and where the answer is no
        and a gradient overflowed, its reading it is all that an optimizer ever hears of the skipped
        step (method.md#skipped-steps). So it is a hook: a note is taken on the host, and what
        becomes of the gradients that are there now tells later. Anybody else may read it as well,
        which changes nothing: see `Observations`.
        """
        self._refuse_scaler()
        params = (p for group in self.param_groups for p in group["params"])
        asked_about = next((p for p in params if p.grad is not None), None)
        if asked_about is not None:
            self._controller.observations.ask(watch(asked_about))
        return self._unscales

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, unscales: bool) -> None:
        self._unscales = unscales

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's; after a gradient scaler's skipped step its losses no longer count."""
        self._controller.observations.throw_away()
        super().zero_grad(set_to_none)

    # Save and load

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim's, and AdamW's products of momenta, and the controller's memory.

        The memory is a tensor, ``adaptive_state``, the same in every group, or each group's own
        with ``Control(groups="own")``. While a search is going
        on that will go back (method.md#going-back), every parameter's state also has the weights of
        its start, ``search_start``. Tensors are those of the optimizer, not copies, as in torch.
        """
        return save(self, self._round.exported, super().state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's, whose own checkpoints load too; the controller starts fresh then.

        Raises:
            TypeError: It is no dictionary.
            ValueError: It is damaged, another kind of optimizer's, or its controller's memory is of
                an unknown layout; nothing changed.
        """
        check_group = partial(self._check_group, control=self._control)
        rules = (self._algorithm, self._storage, self._round.counters, check_group)
        self._log.tell_of_load(*load(self, *rules, state_dict, super().load_state_dict))
        self._keep_horizon()

    def __getstate__(self) -> dict[str, Any]:
        one = self._control.groups == "one"
        starts: Any = self._starts[0] if one else tuple(self._starts)
        adaptive = (self._control, self._max_grad_norm, self._seed, starts, self._ranks)
        kept = super().__getstate__() | {"_adaptive": (*adaptive, self._storage)}
        params = [p for group in self.param_groups for p in group["params"]]
        exported = self._round.exported(self.param_groups, params, self.state)
        kept["state"] = defaultdict(dict, exported)
        return kept

    @outside_inference
    def __setstate__(self, state: dict[str, Any]) -> None:
        adaptive = state.pop("_adaptive", None)
        if adaptive is None:  # a load, perhaps by torch.optim.Optimizer's own function
            check(state, self, self._algorithm, partial(self._check_group, control=self._control))
        super().__setstate__(state)
        if adaptive is not None:
            control, max_grad_norm, seed, starts, ranks, *later = adaptive
            # Pickles from before there was a choice kept all their state in float32.
            storage = later[0] if later else Storage(stochastic_rounding=False)
            horizon = horizon_in(self.param_groups)
            self._prepare(control, max_grad_norm, seed, ranks.group, storage, horizon)
            self._unscales = bool(self.defaults.get("fused"))
            self._start_controllers([starts] if control.groups == "one" else starts)
        else:
            self._reset_unsaved()
        settle(self.param_groups, self._controllers, self._log)
        self._round.adopt(self.param_groups, self.state)

    def _reset_unsaved(self) -> None:
        """What a checkpoint does not have starts fresh."""
        pairs = zip(self._controllers, self.param_groups, strict=False)
        for place, (controller, group) in enumerate(pairs):
            if STATE_KEY not in group:
                controller.reset()
                self._log.announcements_of(place).resume(controller.memory)
        if STATE_KEY not in self.param_groups[0]:
            self._round.counters.forget()

    def __repr__(self) -> str:
        return described(type(self).__name__, self.param_groups)
