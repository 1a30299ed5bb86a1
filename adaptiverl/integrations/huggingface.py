"""`AdaptiveCallback` for Hugging Face's Trainer: it hears every loss, and logs the knobs."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakSet

from torch import Tensor

from adaptiverl.integrations.checks import (
    ScheduleWatch,
    UpdateWatch,
    check_horizon,
    check_metrics,
    check_names,
    check_pulse,
    tell_horizon,
)
from adaptiverl.integrations.steering import (
    Steered,
    knob_logs,
    metric,
    rate_in_effect,
    rescaled,
    steered,
)

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.huggingface needs transformers, which is not there ({error}): "
        "pip install 'transformers>=5' 'accelerate>=1.10'"
    ) from error

REMEDY = (
    "give the Trainer one, as in Trainer(..., optimizer_cls_and_kwargs=(AdaptiveAdamW, "
    "{'lr': args.learning_rate, 'control': Control(mode='modulate')}))"
)


STACK_DEPTH = 16
"""Calls between a trainer and the callback that it tells something, at most; usually 3"""


class AdaptiveCallback(TrainerCallback):
    """Steers a Trainer's `AdaptiveAdamW`.

    Every micro-batch's loss goes to the controller as `training_step` returns it, a tensor on its
    device, before the Trainer's NaN filter sees it; nothing waits. Where the Trainer logs a
    training loss, ``adaptive/lr``, ``adaptive/alpha``, ``adaptive/momentum`` and
    ``adaptive/noise`` are logged with it, to every reporter, and ``learning_rate`` is the rate that
    the step used, the controller's part included. With ``Control(every=None)`` the knobs move once
    after each evaluation in training instead (method.md#epoch-wise).

    A callback is told neither the loss nor its trainer. It looks its trainer up when training
    begins, and wraps that trainer's `training_step` and `log` from then on.

    What is misconfigured is warned of once, when training begins: a metric that nothing looks at, a
    horizon that is not the run's number of steps, epoch-wise control without evaluations; later, a
    scheduler under ``Control(mode="replace")``.

    Args:
        trainer: The trainer that this callback is added to; may be left out.
        monitor: With ``Control(every=None)``: the metric that is the loss, by default
            ``"eval_loss"``.
        reward: With ``Control(every=None, reward="given")``: the metric that is the reward.
        pulse: The metric of evaluations in training that goes to `optimizer.pulse`, such as
            ``"eval_loss"`` (method.md#pulse); none by default.

    Raises:
        TypeError: `trainer` is no Trainer. When training begins: the trainer's optimizer is none
            of ours.
        ValueError: After an evaluation: no such metric. When training begins: `monitor` is of none
            of several evaluation data sets; `reward` or `pulse`, and a control that takes none.
        RuntimeError: When training begins: no trainer was given, and none is found.

    Examples:
        >>> trainer = Trainer(
        ...     model,
        ...     args,
        ...     optimizer_cls_and_kwargs=(
        ...         AdaptiveAdamW, {"lr": args.learning_rate, "control": Control(mode="modulate")}
        ...     ),
        ...     callbacks=[AdaptiveCallback()],
        ... )
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        monitor: str | None = None,
        reward: str | None = None,
        pulse: str | None = None,
    ) -> None:
        if trainer is not None and not isinstance(trainer, Trainer):
            raise TypeError(
                f"AdaptiveCallback's trainer must be a Trainer or None, got {trainer!r} of type "
                f"{type(trainer).__name__}: name what is none, as in "
                "AdaptiveCallback(monitor='eval_loss')"
            )
        check_names(type(self).__name__, monitor=monitor, reward=reward, pulse=pulse)
        self._monitor = monitor
        self._reward = reward
        self._pulse = pulse
        self._wrapped: WeakSet[Trainer] = WeakSet()
        self._trainer: Trainer | None = None
        self._schedule: ScheduleWatch | None = None
        self._updates: UpdateWatch | None = None
        if trainer is not None:
            self._attach(trainer)

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, and say what is missing before the first step rather than at it."""
        trainer = _trainer_of(self, state) or self._trainer
        if trainer is None:
            raise RuntimeError(
                "AdaptiveCallback found no Trainer that it belongs to: name it, as in "
                "trainer.add_callback(AdaptiveCallback(trainer))"
            )
        self._attach(trainer)
        optimizer = self._optimizer
        tell_horizon(optimizer, state.max_steps)
        evaluates = trainer.args.eval_strategy != "no" or not state.is_world_process_zero
        check_pulse(type(self).__name__, optimizer.control, self._pulse, evaluates)
        self._check_monitored_data(trainer, optimizer)
        self._schedule = self._updates = None
        if state.is_world_process_zero:
            self._check(trainer, optimizer, state)

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so where the knobs never moved."""
        if self._updates is not None:
            self._updates.look(state.global_step)

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Epoch-wise control: one update after each evaluation in training; otherwise a pulse."""
        trainer = self._trainer
        if trainer is None or not trainer.is_in_train:
            return
        metrics = metrics or {}
        if self._optimizer.control.every is not None:
            self._tell_pulse(trainer, metrics)
            return
        several = isinstance(trainer.eval_dataset, dict)
        if several and self._loss_name not in metrics:
            return  # Each data set is evaluated by itself; the monitored one has its turn.
        loss = metric(metrics, self._loss_name, type(self).__name__)
        reward = None
        if self._reward is not None:
            reward = metric(metrics, self._reward, type(self).__name__)
        self._optimizer.update(loss, reward)
        if self._updates is not None:
            self._updates.updated(state.global_step)

    def _tell_pulse(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self._pulse is None:
            return
        if isinstance(trainer.eval_dataset, dict) and self._pulse not in metrics:
            return  # Each data set is evaluated by itself; the one that is meant has its turn.
        asked_by = f"pulse={self._pulse!r}"
        self._optimizer.pulse(metric(metrics, self._pulse, type(self).__name__, asked_by))

    @property
    def _optimizer(self) -> Steered:
        return steered(None if self._trainer is None else self._trainer.optimizer, REMEDY)

    @property
    def _loss_name(self) -> str:
        return "eval_loss" if self._monitor is None else self._monitor

    def _check(self, trainer: Trainer, optimizer: Steered, state: TrainerState) -> None:
        """Warn of what would go wrong silently."""
        name, control = type(self).__name__, optimizer.control
        check_metrics(name, control, self._monitor, self._reward)
        check_horizon(control, state.max_steps, "TrainerState.max_steps")
        kind = getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type)
        scheduler = f"the scheduler (lr_scheduler_type={str(kind)!r})"
        self._schedule = ScheduleWatch(optimizer, scheduler, "lr_scheduler_type='constant'")
        evaluates = trainer.args.eval_strategy != "no"
        remedy = "give TrainingArguments an eval_strategy whose evaluations come during the run"
        self._updates = UpdateWatch(optimizer, name, remedy, evaluates)

    def _check_monitored_data(self, trainer: Trainer, optimizer: Steered) -> None:
        data = trainer.eval_dataset
        epochwise = optimizer.control.every is None
        option, named = ("monitor", self._loss_name) if epochwise else ("pulse", self._pulse)
        if named is None or not isinstance(data, dict):
            return
        if not named.startswith(tuple(f"eval_{name}_" for name in data)):
            raise ValueError(
                f"AdaptiveCallback({option}={named!r}) is the metric of none of the "
                f"evaluation data sets {', '.join(data)}: name one, as in "
                f"{option}='eval_{next(iter(data), 'name')}_loss'"
            )

    def _attach(self, trainer: Trainer) -> None:
        """Hear every loss of a trainer, and log with it; several are served one after another."""
        self._trainer = trainer
        if trainer in self._wrapped:
            return
        self._wrapped.add(trainer)
        training_step, log = trainer.training_step, trainer.log

        def observed_training_step(*args: Any, **kwargs: Any) -> Tensor:
            if self._schedule is not None:
                self._schedule.look()
            loss = training_step(*args, **kwargs)
            optimizer = steered(trainer.optimizer, REMEDY)
            if optimizer.control.every is not None:
                # The trainer, or the model by its token count, has divided by the micro-batches.
                optimizer.observe(rescaled(loss, trainer.current_gradient_accumulation_steps))
            return loss

        def log_with_knobs(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            # Wrapped rather than on_log: reporters are callbacks too, and come before ours.
            if trainer.is_in_train and "loss" in logs:
                knobs = knob_logs(trainer.optimizer)
                logs.update(knobs)
                if "learning_rate" in logs:
                    scheduled = logs["learning_rate"]
                    logs["learning_rate"] = rate_in_effect(trainer.optimizer, scheduled, knobs)
            log(logs, *args, **kwargs)

        trainer.training_step = observed_training_step  # type: ignore[method-assign]
        trainer.log = log_with_knobs  # type: ignore[method-assign]


def _trainer_of(callback: TrainerCallback, state: TrainerState) -> Trainer | None:
    """The trainer that is telling a callback something.

    It tells its callbacks everything but itself; it is among those who are calling. Only methods'
    own objects are looked at, and one is taken for the trainer if it has this callback and state.
    """
    frame = inspect.currentframe()
    for _ in range(STACK_DEPTH):
        frame = None if frame is None else frame.f_back
        if frame is None:
            return None
        code = frame.f_code
        if code.co_argcount > 0 and code.co_varnames[0] == "self":
            caller = frame.f_locals.get("self")
            if isinstance(caller, Trainer) and caller.state is state:
                callbacks = caller.callback_handler.callbacks
                if any(other is callback for other in callbacks):
                    return caller
    return None
