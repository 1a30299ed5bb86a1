"""`AdaptiveCallback` for Lightning's Trainer: it hears every loss, and logs the knobs."""

from __future__ import annotations

from typing import Any

import torch
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
from adaptiverl.integrations.steering import Steered, knob_logs, metric, rescaled, steered

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
except ImportError:
    try:
        from pytorch_lightning import (  # type: ignore[assignment]
            Callback,
            LightningModule,
            Trainer,
        )
        from pytorch_lightning.callbacks import (  # type: ignore[assignment]
            GradientAccumulationScheduler,
        )
    except ImportError as error:
        raise ImportError(
            "adaptiverl.integrations.lightning needs lightning or pytorch-lightning, and neither "
            f"is there ({error}): pip install 'lightning>=2.4'"
        ) from error

REMEDY = "return one from configure_optimizers"


class AdaptiveCallback(Callback):
    """Steers a module's `AdaptiveAdamW`.

    Every micro-batch's loss goes to the controller just before its backward, undone of Lightning's
    division by ``accumulate_grad_batches`` and of a gradient scaler's factor on its device; nothing
    waits. Every ``log_every_n_steps`` steps ``adaptive/lr``, ``adaptive/alpha``,
    ``adaptive/momentum`` and ``adaptive/noise`` are logged by the module, to every logger. With
    ``Control(every=None)`` the knobs move once after each validation in `fit` instead
    (method.md#epoch-wise).

    Automatic optimization, and manual optimization with one optimizer. With several, leave it out
    and call ``optimizer.observe(loss)`` before each one's step.

    What is misconfigured is warned of once, when training starts: a metric that nothing looks at, a
    horizon that is not the run's number of steps, epoch-wise control without validations; later, a
    scheduler under ``Control(mode="replace")``.

    Args:
        monitor: With ``Control(every=None)``: the logged metric that is the loss, by default
            ``"val_loss"``; log it with ``sync_dist=True`` where there are several processes.
        reward: With ``Control(every=None, reward="given")``: the metric that is the reward.
        pulse: The logged metric of validations in `fit` that goes to `optimizer.pulse`, such as
            ``"val_loss"`` (method.md#pulse); none by default. With ``sync_dist=True``, likewise.

    Raises:
        TypeError: When training starts: the module's optimizer is none of ours.
        ValueError: When training starts: several optimizers; `reward` or `pulse`, and a control
            that takes none. After a validation: no such metric.

    Examples:
        >>> trainer = Trainer(callbacks=[AdaptiveCallback()])
    """

    def __init__(
        self, monitor: str | None = None, reward: str | None = None, pulse: str | None = None
    ) -> None:
        check_names(type(self).__name__, monitor=monitor, reward=reward, pulse=pulse)
        self._monitor = monitor
        self._reward = reward
        self._pulse = pulse
        self._stepped = False
        self._schedule: ScheduleWatch | None = None
        self._updates: UpdateWatch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is missing before the first step rather than at it."""
        self._stepped = False
        optimizer = _optimizer(trainer)
        tell_horizon(optimizer, _steps(trainer, pl_module))
        name, control = type(self).__name__, optimizer.control
        evaluates = bool(trainer.enable_validation) or not trainer.is_global_zero
        check_pulse(name, control, self._pulse, evaluates)
        self._schedule = self._updates = None
        if not trainer.is_global_zero:
            return
        check_metrics(name, control, self._monitor, self._reward)
        check_horizon(control, _steps(trainer, pl_module), "Trainer.estimated_stepping_batches")
        schedulers = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
        named = f"the scheduler {schedulers[0]}" if schedulers else "something"
        self._schedule = ScheduleWatch(optimizer, named, "return none from configure_optimizers")
        remedy = "give it a validation_step and data, and validate during the run"
        self._updates = UpdateWatch(optimizer, name, remedy, trainer.enable_validation)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the knobs never moved."""
        if self._updates is not None:
            self._updates.look(trainer.global_step)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Observe what goes backward."""
        if self._schedule is not None:
            self._schedule.look()
        optimizer = _optimizer(trainer)
        if optimizer.control.every is None:
            return
        factor = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        optimizer.observe(_unscaled(trainer, rescaled(loss, factor)))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Note that this batch ends a step."""
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Log the knobs with the steps that Lightning logs, and only then wait for the device."""
        stepped, self._stepped = self._stepped, False
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if stepped and every > 0 and _logged_steps(trainer, pl_module) % every == 0:
            pl_module.log_dict(knob_logs(_optimizer(trainer)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Epoch-wise control: one update after each validation in training; otherwise a pulse."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        optimizer = _optimizer(trainer)
        if optimizer.control.every is not None:
            self._tell_pulse(trainer, optimizer)
            return
        name = "val_loss" if self._monitor is None else self._monitor
        loss = metric(trainer.callback_metrics, name, type(self).__name__)
        reward = None
        if self._reward is not None:
            reward = metric(trainer.callback_metrics, self._reward, type(self).__name__)
        optimizer.update(loss, reward)
        if self._updates is not None:
            self._updates.updated(trainer.global_step)

    def _tell_pulse(self, trainer: Trainer, optimizer: Steered) -> None:
        if self._pulse is not None:
            named = type(self).__name__, f"pulse={self._pulse!r}"
            optimizer.pulse(metric(trainer.callback_metrics, self._pulse, *named))


def _optimizer(trainer: Trainer) -> Steered:
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"AdaptiveCallback is for a module with one optimizer, got {len(trainer.optimizers)}: "
            "leave it out and call optimizer.observe(loss) before each one's step"
        )
    return steered(trainer.optimizers[0], REMEDY)


def _steps(trainer: Trainer, pl_module: LightningModule) -> float:
    """Optimizer steps of the whole run; infinite where Lightning cannot say."""
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if scheduled or not pl_module.automatic_optimization:
        return float("inf")
    return trainer.estimated_stepping_batches


def _unscaled(trainer: Trainer, loss: Tensor) -> Tensor:
    """The loss without the gradient scaler's factor, which Lightning has multiplied into it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return loss
    # scaler.get_scale() would wait for the device; scaling a one tells the same without.
    return loss / scaler.scale(torch.ones_like(loss))


def _logged_steps(trainer: Trainer, pl_module: LightningModule) -> int:
    """What Lightning counts against `log_every_n_steps`: batches that ended with a step."""
    if pl_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1
