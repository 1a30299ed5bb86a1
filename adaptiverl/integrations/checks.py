"""What a framework and a `Control` can get wrong together without an error: one warning each.

A framework knows what the optimizer cannot: how many steps the run takes, whether it evaluates,
who else moves the learning rate. Nothing here waits for the device while the run goes on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

from torch import Tensor

from adaptiverl import Control
from adaptiverl.integrations.steering import Steered


def warn(message: str) -> None:
    """Say what is misconfigured."""
    warnings.warn(message, UserWarning, stacklevel=3)


def check_names(where: str, **named: object) -> None:
    """Metrics that a callback was given are text, which is looked up only after an evaluation.

    Args:
        where: The callback's name, for the message.
        named: Its arguments.

    Raises:
        TypeError: One is neither a name nor None.
    """
    for option, name in named.items():
        if name is not None and not isinstance(name, str):
            raise TypeError(
                f"{where}'s {option} must be the name of a metric or None, got {name!r} of type "
                f"{type(name).__name__}: give one that an evaluation has, as in "
                f"{option}='eval_loss'"
            )


def check_metrics(where: str, control: Control, monitor: str | None, reward: str | None) -> None:
    """The names of metrics that a callback was given are ones that it will look at.

    Args:
        where: The callback's name, for the message.
        control: The optimizer's.
        monitor: The metric that is the loss, or None where none was named.
        reward: The metric that is the reward.

    Raises:
        ValueError: A reward, and epoch-wise control that takes none.
    """
    if control.every is not None:
        named = {"monitor": monitor, "reward": reward}
        given = ", ".join(f"{name}={x!r}" for name, x in named.items() if x is not None)
        if given:
            warn(
                f"{where}({given}) is ignored: a metric is looked at after an evaluation, with "
                f"Control(every=None), and this Control has every={control.every}, so the knobs "
                "move by the losses in training. Leave it out, or use Control.epochwise()"
            )
    elif reward is not None and control.reward != "given":
        raise ValueError(
            f"{where}(reward={reward!r}) is for Control(reward='given'), and this Control has "
            f"reward={control.reward!r}: use Control(every=None, reward='given'), or leave the "
            "metric out"
        )
    elif reward is None and control.reward == "given" and not control.rests:
        warn(
            f"Control(every=None, reward='given') and {where}() names no metric for the reward, so "
            f"none comes and the learning rate can only sink: name one, as in "
            f"{where}(reward='eval_accuracy'), or use Control(reward='neg_loss')"
        )


def check_pulse(where: str, control: Control, pulse: str | None, evaluates: bool) -> None:
    """A metric that pulses are to come from can do something.

    Args:
        where: The callback's name, for the message.
        control: The optimizer's.
        pulse: The metric that is the held-out loss, or None where none was named.
        evaluates: Whether the framework is to evaluate during training; or it is not for this rank
            to say that it isn't.

    Raises:
        ValueError: A control that moves nothing; epoch-wise control, which hears that loss anyway.
    """
    if pulse is None:
        return
    if control.is_frozen:
        raise ValueError(
            f"{where}(pulse={pulse!r}) lowers the learning rate where that metric worsens, and "
            "this Control moves nothing, for all its gains are 0: use another Control, or leave "
            "pulse out"
        )
    if control.every is None:
        raise ValueError(
            f"{where}(pulse={pulse!r}) compares a held-out loss with the training's, and with "
            "Control(every=None) the knobs are told evaluations alone: leave pulse out, or give "
            "Control an `every`"
        )
    if not evaluates:
        warn(
            f"{where}(pulse={pulse!r}) looks at evaluations, and this trainer makes none, so "
            f"Control(law={control.law!r}) is told of no held-out loss: evaluate during the run, "
            "or leave pulse out"
        )


def tell_horizon(optimizer: Steered, steps: float) -> None:
    """Resolve ``Control(horizon="auto")``, on every rank; where nobody knows, the step says so.

    Args:
        optimizer: One of ours.
        steps: Optimizer steps of the whole run as the framework counts them; not finite, or not
            above 0, where it doesn't know.
    """
    if optimizer.control.horizon == "auto" and 0 < steps < math.inf:
        optimizer.set_horizon(round(steps))


def check_horizon(control: Control, steps: float, named: str) -> None:
    """A control's horizon is as long as the run.

    Args:
        control: The optimizer's.
        steps: Optimizer steps of the whole run as the framework counts them; not finite, or not
            above 0, where it doesn't know.
        named: What the framework calls that number.
    """
    horizon = control.known_horizon
    if horizon is None or horizon == steps or not 0 < steps < math.inf:
        return
    if control.terms.learned:
        what = f"that law moves the knobs as if the run ended at step {horizon}"
    elif control.mode == "modulate":  # A scheduler anneals, and the horizon ends the search alone.
        ends = (1 - control.cooldown) * horizon
        until = "the search for the factor lasts" if control.finds_lr else "losses steer the factor"
        what = f"{until} until step {ends:.0f} at most"
    elif horizon < steps:
        what = f"the last {steps - horizon:.0f} steps train nothing"
    else:
        what = f"it ends {horizon - steps:.0f} steps before the cooldown does"
    warn(
        f"Control(horizon={horizon}) and a run of {steps:.0f} steps ({named}): {what}. "
        f"Give horizon={steps:.0f}"
    )


class ScheduleWatch:
    """Tells once that somebody else moves the learning rate that ``mode="replace"`` steers."""

    def __init__(self, optimizer: Steered, scheduler: str, remedy: str) -> None:
        """Start from the rates of this moment.

        Args:
            optimizer: One of ours.
            scheduler: Who is thought to move it, for the message.
            remedy: How to go without it.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._remedy = remedy
        control = optimizer.control
        self._looks = control.mode == "replace" and not control.is_frozen
        optimizer.warns_of_schedulers = False  # or it would say the same
        self._start = list(self._rates()) if self._looks else []

    def look(self) -> None:
        """Compare the groups' rates with those of the start; call it between two steps."""
        if not self._looks:
            return
        for number, (before, now) in enumerate(zip(self._start, self._rates(), strict=False)):
            if before != now:
                self._looks = False
                warn(
                    f"{self._scheduler} moved lr of parameter group {number} from {before:g} to "
                    f"{now:g}, and Control(mode='replace') steers the learning rate itself, so "
                    "both pull: use Control(mode='modulate'), which multiplies what a scheduler "
                    f"sets, or {self._remedy}"
                )
                return

    def _rates(self) -> Iterator[float]:
        """Every group's rate; 0 where reading it would wait for a device."""
        for group in self._optimizer.param_groups:
            lr = group["lr"]
            on_device = isinstance(lr, Tensor) and lr.device.type != "cpu"
            yield 0.0 if on_device else float(lr)


class UpdateWatch:
    """Tells that with ``Control(every=None)`` no step of a run used what an update decided."""

    def __init__(self, optimizer: Steered, where: str, remedy: str, evaluates: bool) -> None:
        """Say it at once where no evaluation can come. Waits for the device, once a run.

        Args:
            optimizer: One of ours.
            where: The callback's name, for the message.
            remedy: How to get evaluations.
            evaluates: Whether the framework is to evaluate during training.
        """
        self._optimizer = optimizer
        self._where = where
        self._remedy = remedy
        self._first: int | None = None
        control = optimizer.control
        self._looks = control.every is None and not control.rests
        if self._looks and not evaluates:
            self._tell("this trainer makes none")
        # Who resumes a run, or updates by hand, has updates that the callback did not make.
        self._before = self._updates() if self._looks else 0.0

    def updated(self, step: int) -> None:
        """The callback updated the knobs after so many steps."""
        self._first = step if self._first is None else self._first

    def look(self, steps: int) -> None:
        """The run ended after so many steps. Waits for the device, as its end does anyway."""
        if not self._looks or self._before > 0:
            return
        if self._updates() == 0:
            self._tell(f"this run of {steps} steps had none, so the knobs never moved")
        elif self._first == steps:
            self._tell(f"the first came after the last of {steps} steps, too late for any of them")

    def _tell(self, what: str) -> None:
        self._looks = False
        warn(
            f"{self._where} moves the knobs after each evaluation, with Control(every=None), and "
            f"{what}: {self._remedy}, or give Control an `every`"
        )

    def _updates(self) -> float:
        return self._optimizer.knobs()["updates"]
