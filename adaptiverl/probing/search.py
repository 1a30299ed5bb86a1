"""The range test around whatever optimizer steps first, until it has found a rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from adaptiverl.control import Control
from adaptiverl.steering import Steering, steer


class ProbeError(Exception):
    """The run cannot be probed; the message says why."""


class _FoundIt(BaseException):
    """Ends the run that is probed; no ``except Exception`` of its own holds it."""


@dataclass
class Probe:
    """What a search saw and found.

    Attributes:
        rates: Each step's learning rate of the first group.
        losses: What went backward before each step; NaN where nothing with one element did.
        cosines: h of each step, the alignment of its gradient with the last direction.
        found: By optimizer and group, the rate to give it, or None: no search ended.
        names: Each optimizer's class.
        sure: Whether the loss or h confirmed it; if not, `found` is a guess.
        marked: Whether the search marked a rate at all; if not, `found` says nothing.
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    found: list[list[float]] | None = None
    names: list[str] = field(default_factory=list)
    sure: bool = False
    marked: bool = True


def probe(run: Callable[[], object], steps: int = 1000) -> Probe:
    """Let a run train for less than a hundred steps, mostly, and stop it when a rate is found.

    Its optimizers are steered from their first step on, all that have been made by then together.
    What a scheduler does to the rate is undone before each step. The weights are then those of the
    first step again.

    Args:
        run: Trains; is not told that it is probed.
        steps: T, optimizer steps that the real run is to take: longer ones get lower rates
            (method.md#share).

    Returns:
        What was seen; `Probe.found` is None where the run ended before the search.

    Raises:
        ProbeError: Something that cannot be steered, or no step at all.
        ValueError: Fewer steps than a search takes.
    """
    control = Control.find_lr(steps)
    if control.is_too_short:
        raise ValueError(
            f"a range test takes 40 steps or more, a quarter of the run at most: got {steps}"
        )
    search = _Search(control)
    with search.watching():
        try:
            run()
        except _FoundIt:
            pass
    if search.steered is None:
        raise ProbeError("the run ended without a step of any torch.optim.Optimizer")
    search.steered.remove()
    return search.seen


class _Search:
    """Watches every optimizer, and steers those that there are at the first step."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._made: list[Optimizer] = []
        self._bases: list[tuple[dict[str, Any], float]] = []
        self._losses: list[Tensor] = []
        """Of the step to come, as they went backward"""
        self._stepped: list[Optimizer] = []
        """Those that have taken this step: which of them do, and how often, is the run's affair"""
        self._heard = math.nan
        """The mean loss of this step"""
        self.steered: Steering | None = None
        self.seen = Probe()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For as long as the run is going on."""
        made, backward = Optimizer.__init__, Tensor.backward

        def make(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            made(optimizer, *args, **kwargs)
            self._made.append(optimizer)

        def go_backward(loss: Any, *args: Any, **kwargs: Any) -> Any:
            if loss.numel() == 1:
                self._losses.append(loss.detach())
            return backward(loss, *args, **kwargs)

        hooks = (
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        )
        Optimizer.__init__, Tensor.backward = make, go_backward  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Optimizer.__init__, Tensor.backward = made, backward  # type: ignore[method-assign]
            for hook in hooks:
                hook.remove()

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if self.seen.found is not None:  # a bare ``except`` of the run's held the end
            raise _FoundIt
        if self.steered is None:
            self._begin(optimizer)
        assert self.steered is not None
        if self._stepped and optimizer not in self._stepped:
            self._stepped.append(optimizer)  # another one's share of the same step
            return
        self._stepped = [optimizer]
        for group, lr in self._bases:
            _set_rate(group, lr)
        self._heard = math.nan
        if self._losses:
            loss = torch.stack([x.float().cpu().reshape(()) for x in self._losses]).mean()
            self._heard = float(loss)
            self.steered.observe(loss)
        self._losses = []

    def _begin(self, optimizer: Optimizer) -> None:
        together = [one for one in self._made if one.param_groups]
        if optimizer not in together:
            together.append(optimizer)
        for one in together:
            for group in one.param_groups:
                # Where a schedule began the peak is not yet: only the groups' ratio is of use.
                rate = float(group.get("initial_lr", group.get("lr", 0.0)))
                self._bases.append((group, rate))
                _set_rate(group, rate)
        try:
            self.steered = steer(together, self._control)
        except (TypeError, ValueError) as error:
            raise ProbeError(f"the run's optimizer cannot be probed: {error}") from error
        self.seen.names = [type(one).__name__ for one in together]

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        steered = self.steered
        if steered is None or self._stepped != [optimizer]:
            return
        knobs = steered.knobs()
        self.seen.rates.append(knobs["lr"])
        self.seen.cosines.append(knobs["alignment"])
        self.seen.losses.append(self._heard)
        found = steered.found()
        if found is not None:
            self.seen.found = [
                [float(group["lr"]) * found.factor for group in one.param_groups]
                for one in steered.optimizers
            ]
            self.seen.sure, self.seen.marked = found.sure, found.marked
            raise _FoundIt


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group.get("lr"), Tensor):
        with torch.no_grad():
            group["lr"].fill_(rate)
    elif "lr" in group:
        group["lr"] = rate
