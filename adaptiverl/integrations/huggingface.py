"""`AdaptiveCallback` for Hugging Face's Trainer: it hears every loss, and logs the knobs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptiverl.integrations.steering import (
    Steered,
    knob_logs,
    metric,
    rescaled,
    steered,
    warn_if_never_updated,
)

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
except ImportError as error:
    raise ImportError(
        f"adaptiverl.integrations.huggingface needs transformers, which is not there ({error}): "
        "pip install 'adaptiverl[huggingface]'"
    ) from error

REMEDY = (
    "give the Trainer one, as in Trainer(..., optimizer_cls_and_kwargs=(AdaptiveAdamW, "
    "{'lr': args.learning_rate}))"
)


class AdaptiveCallback(TrainerCallback):
    """Steers a Trainer's `AdaptiveAdamW`.

    Every micro-batch's loss goes to the controller as `training_step` returns it, a tensor on its
    device, before the Trainer's NaN filter sees it; nothing waits. Where the Trainer logs a
    training loss, ``adaptive/lr``, ``adaptive/alpha``, ``adaptive/momentum`` and
    ``adaptive/noise`` are logged with it, to every reporter. With ``Control(every=None)`` the
    knobs move once after each evaluation in training instead (§5).

    A callback is told neither the loss nor its trainer, hence the argument; `training_step` and
    `log` of that trainer are wrapped from then on.

    Args:
        trainer: The trainer that this callback is added to.
        monitor: With ``Control(every=None)``: the metric that is the loss.
        reward: With ``Control(every=None, reward="given")``: the metric that is the reward.

    Raises:
        TypeError: When training begins: the trainer's optimizer is none of ours.
        ValueError: After an evaluation: no such metric. When training begins: `monitor` is of none
            of several evaluation data sets.

    Example:
        >>> trainer = Trainer(
        ...     model, args, optimizer_cls_and_kwargs=(AdaptiveAdamW, {"lr": args.learning_rate})
        ... )
        >>> trainer.add_callback(AdaptiveCallback(trainer))
    """

    def __init__(
        self, trainer: Trainer, monitor: str = "eval_loss", reward: str | None = None
    ) -> None:
        self._trainer = trainer
        self._monitor = monitor
        self._reward = reward
        self._training_step, self._log = trainer.training_step, trainer.log
        trainer.training_step = self._observed_training_step  # type: ignore[method-assign]
        trainer.log = self._log_with_knobs  # type: ignore[method-assign]

    @property
    def _optimizer(self) -> Steered:
        return steered(self._trainer.optimizer, REMEDY)

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what is missing before the first step rather than at it."""
        if self._optimizer.control.every is None:
            evaluates = self._trainer.args.eval_strategy != "no"
            remedy = "give TrainingArguments an eval_strategy"
            warn_if_never_updated(type(self).__name__, evaluates, remedy)
            self._check_monitored_data()

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Epoch-wise control: one update after each evaluation in training."""
        if not self._trainer.is_in_train or self._optimizer.control.every is not None:
            return
        metrics = metrics or {}
        several = isinstance(self._trainer.eval_dataset, dict)
        if several and self._monitor not in metrics:
            return  # Each data set is evaluated by itself; the monitored one has its turn.
        loss = metric(metrics, self._monitor, type(self).__name__)
        reward = None
        if self._reward is not None:
            reward = metric(metrics, self._reward, type(self).__name__)
        self._optimizer.update(loss, reward)

    def _check_monitored_data(self) -> None:
        data = self._trainer.eval_dataset
        if isinstance(data, dict) and not self._monitor.startswith(
            tuple(f"eval_{name}_" for name in data)
        ):
            raise ValueError(
                f"AdaptiveCallback(monitor={self._monitor!r}) is the metric of none of the "
                f"evaluation data sets {', '.join(data)}: name one, as in "
                f"monitor='eval_{next(iter(data), 'name')}_loss'"
            )

    def _observed_training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self._training_step(*args, **kwargs)
        optimizer = self._optimizer
        if optimizer.control.every is not None:
            # The trainer, or the model by its token count, has divided by the micro-batches.
            optimizer.observe(rescaled(loss, self._trainer.current_gradient_accumulation_steps))
        return loss

    def _log_with_knobs(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # Wrapped rather than on_log: reporters are callbacks too, and come before ours.
        if self._trainer.is_in_train and "loss" in logs:
            logs.update(knob_logs(self._trainer.optimizer))
        self._log(logs, *args, **kwargs)
