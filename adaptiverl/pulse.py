"""`pulse`: what an optimizer is told of data that it does not train on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.devices import outside_inference
from adaptiverl.log import Log
from adaptiverl.ranks.dtensors import to_whole
from adaptiverl.ranks.group import Ranks
from adaptiverl.step.horizon import check_horizon


class Pulses:
    """What an optimizer of ours, or `steer`'s, does with held-out losses."""

    _running: Control
    _controller: Controller
    _ranks: Ranks
    _log: Log

    @torch._disable_dynamo
    @outside_inference
    def pulse(self, validation_loss: Tensor | float) -> None:
        """Tell the controller the loss on data that is not trained on; nothing waits.

        Where it has worsened beyond its noise while the training loss still fell, α comes down to a
        tenth, and is not raised above that again; otherwise nothing moves (method.md#pulse). Give
        the mean loss of the same examples each time, with the model in evaluation mode, between two
        steps: some twenty to a hundred times in a run, for the first few only say what its noise
        is. Not the test set: what decides when to stop learning is no longer held out.

        On many ranks every rank calls it, and all decide by the mean of what they gave.

        Args:
            validation_loss: One real number: a tensor with one element on any device, or a Python
                number. One that is not finite is passed over.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a control that moves no α, or whose bounds leave it
                no room; ``horizon="auto"``, and nobody has said it.
        """
        check_pulse(self._running, self._controller)
        self._settle()
        self._controller.pulse(to_whole(validation_loss), self._ranks.add_up, self._others)
        self._log.warn_if_endless(self._running)

    @property
    def _others(self) -> Sequence[Controller]:
        """The controllers of the groups after the first, where each has its own."""
        return ()

    def _settle(self) -> None:
        """Take in what a load has put into the groups."""
        raise NotImplementedError


def check_pulse(control: Control, controller: Controller) -> None:
    """A pulse can move something.

    Raises:
        ValueError: It cannot.
    """
    if control.is_frozen:
        raise ValueError(
            "pulse() lowers the learning rate, and this Control moves nothing, for all its gains "
            "are 0: use Control(), Control.find_lr(horizon) or Control.climb(horizon), or "
            "leave pulse() out"
        )
    low, high = controller.limits.lr_min, controller.limits.lr_max
    if low == high:
        raise ValueError(
            f"pulse() lowers the learning rate, and Control.lr_bounds = ({low}, {high}) leave it "
            "no room: give a lower first bound, or leave pulse() out"
        )
    check_horizon(control)
