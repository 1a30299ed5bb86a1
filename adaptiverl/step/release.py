"""Gradient release: a round whose stages are spread over a backward pass.

Each parameter is planned, measured and stepped when its gradient is complete, and the gradient is
let go (method.md#gradient-release). The first of them opens the round: it decides. `step` closes
it: it reports. The stages are those of `step.round`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptiverl.devices import outside_autograd
from adaptiverl.step.bucket import Bucket
from adaptiverl.step.entries import Numbered, numbered_in
from adaptiverl.step.losses import Sample
from adaptiverl.step.plan import Plan
from adaptiverl.step.round import Decisions, Round
from adaptiverl.step.scaling import scaling_of

SECOND_GRADIENT = (
    "parameter {} got a second gradient before step(). Under release_gradients a parameter is "
    "stepped as soon as its gradient is there, so gradients cannot be accumulated over backward "
    "passes, nor over the parts of a reentrant checkpoint that share a parameter: call step() "
    "after each backward(), and use checkpoint(..., use_reentrant=False). This gradient was "
    "dropped, and nothing else was changed by it; zero_grad() gives up the rest of a backward pass"
)
SCALED = (
    "release_gradients does not work with a gradient scaler: every parameter was stepped in the "
    "backward pass, with a gradient that was still multiplied by the loss scale, and none of these "
    "steps can be skipped any more. Load the last checkpoint, and train in bfloat16, which needs "
    "no scaler, or without release_gradients"
)


@dataclass
class OpenRound:
    """A round that has been decided and not yet reported.

    Attributes:
        decisions: What was decided.
        idle: The controller learns nothing from it.
        told: Something was observed for it.
        stepped: The bucket of what was stepped, by the parameter's place in the optimizer.
        samples: For `Round.report`.
    """

    decisions: Decisions
    idle: bool
    told: bool
    stepped: dict[int, Bucket] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def passes(self) -> list[list[Bucket]]:
        """The buckets that an ordinary step would have had as one, in that step's order."""
        alike: dict[Any, list[Bucket]] = {}
        for _, bucket in sorted(self.stepped.items(), key=lambda pair: pair[0]):
            key = bucket.backend.name, bucket.home, bucket.variant
            alike.setdefault(key, []).append(bucket)
        return list(alike.values())


class Release:
    """Steps the parameters of one optimizer in their hooks, until it is removed.

    Args:
        optimizer: Its parameters' hooks do not keep it alive.
        round_of: The round of an optimizer; another one where it was built anew.

    Attributes:
        removed: The optimizer steps in `step` again.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, round_of: Callable[[Any], Round]) -> None:
        self.removed = False
        self._optimizer, self._round_of = weakref.ref(optimizer), round_of
        self._round = round_of(optimizer)
        self._open: OpenRound | None = None
        self._places: dict[int, Numbered] = {}
        """By `id`, while a round is open: between rounds nothing here keeps a tensor alive"""
        self._plans: dict[int, tuple[int, Plan]] = {}
        """By the parameter's place in the optimizer, with its group's place"""
        self._hook = _hook_of(self)
        self._handles: list[Any] = []

    @property
    def is_open(self) -> bool:
        """A backward pass has begun to step parameters, and no `step` has come since."""
        return self._open is not None

    @property
    def told(self) -> bool:
        """Something was observed for the open round before it was decided."""
        return self._open is not None and self._open.told

    def watch(self, params: Iterable[Tensor]) -> None:
        """Step these, too, when their gradients come."""
        for param in params:
            trains = param.requires_grad
            param.requires_grad_(True)  # or it takes no hook, which it may want later
            self._handles.append(param.register_post_accumulate_grad_hook(self._hook))
            param.requires_grad_(trains)

    def remove(self) -> None:
        """From now on `step` steps the parameters, as it did before; an open round is closed."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self.give_up(optimizer)
        for handle in self._handles:
            handle.remove()
        self._handles, self.removed = [], True

    @outside_autograd
    def take_gradient(self, param: Tensor) -> None:
        """A parameter's gradient is complete: its step, and the gradient is let go.

        Raises:
            RuntimeError: It has been stepped in this round, or its gradient or state is none that a
                step can take; the parameter has not changed then.
        """
        optimizer = self._optimizer()
        if optimizer is None or param.grad is None:
            return
        if self._open is None:
            self._look_at_round(optimizer)
            self._places = {id(n.param): n for n in numbered_in(optimizer.param_groups)}
        numbered = self._places.get(id(param))
        if numbered is None:  # it is no longer the optimizer's
            return
        if self._has_stepped(numbered):
            param.grad = None
            raise RuntimeError(SECOND_GRADIENT.format(numbered.number))
        self._step(optimizer, numbered)

    @torch._disable_dynamo
    @outside_autograd
    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """The end of a round: what still has a gradient, put there by hand, is stepped as well.

        Raises:
            RuntimeError: As `take_gradient`; or a gradient scaler is at work.
        """
        if any(part is not None for part in scaling_of(optimizer)):
            raise RuntimeError(SCALED)
        self._look_at_round(optimizer)
        left = [n for n in numbered_in(optimizer.param_groups) if n.param.grad is not None]
        for numbered in filter(self._has_stepped, left):
            numbered.param.grad = None
            raise RuntimeError(SECOND_GRADIENT.format(numbered.number))
        for numbered in left:
            self._step(optimizer, numbered)
        self._close(optimizer)

    @outside_autograd
    def give_up(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients are being thrown away: a round whose backward pass broke off is over."""
        if self._open is not None:
            self._close(optimizer)

    def abandon(self) -> None:
        """What was stepped in an open round is being replaced: it is not reported."""
        self._open, self._places = None, {}

    def _look_at_round(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer that was built anew has another round, and nothing is planned there yet."""
        round = self._round_of(optimizer)
        if round is not self._round:
            self._round, self._plans = round, {}
            self.abandon()

    def _has_stepped(self, numbered: Numbered) -> bool:
        return self._open is not None and numbered.number in self._open.stepped

    def _step(self, optimizer: torch.optim.Optimizer, numbered: Numbered) -> None:
        """One parameter's stages; before all others of its round, those of the round."""
        groups, state, round = optimizer.param_groups, optimizer.state, self._round
        idle = round.begin(optimizer) if self._open is None else self._open.idle
        plan = self._plan_of(numbered)
        try:
            buckets = plan.of_step(groups, state, numbered)
            if self._open is None:
                self._open = self._decided(optimizer, buckets, idle)
            else:
                round.count(buckets, self._open.decisions)
            decisions = self._open.decisions
            round.keep(numbered, idle)
            round.measure(plan, buckets, decisions, None)
            self._open.samples += round.sample([numbered.param], idle)
            for bucket in buckets:
                self._open.stepped[numbered.number] = bucket
                bucket.backend.step(bucket, decisions[bucket.home], bucket.squares, None)
            round.end_pass(plan)
        finally:
            plan.release()
        numbered.param.grad = None

    def _decided(
        self, optimizer: torch.optim.Optimizer, buckets: list[Bucket], idle: bool
    ) -> OpenRound:
        told = self._round.controller.observed > 0
        decisions = self._round.decide(buckets, optimizer.param_groups, None, idle)
        return OpenRound(decisions, idle, told)

    def _plan_of(self, numbered: Numbered) -> Plan:
        """The parameter's own plan, which outlives the round."""
        index, _, group = numbered
        if index not in self._plans or self._plans[index][0] != group:
            self._plans[index] = group, self._round.new_plan(only=index)
        return self._plans[index][1]

    def _close(self, optimizer: torch.optim.Optimizer) -> None:
        """What only a whole round has: the way back of a search, and the report.

        The way back comes last, for a backward pass still reads weights that have no gradient yet.
        """
        groups, state = optimizer.param_groups, optimizer.state
        opened = self._open or self._decided(optimizer, [], self._round.begin(optimizer))
        try:
            self._round.go_back(groups, state, opened.decisions, opened.idle)
            passes = opened.passes()
            self._round.report(state, passes, opened.decisions, opened.samples, opened.idle)
        finally:
            self.abandon()


def _hook_of(release: Release) -> Callable[[Tensor], None]:
    """What torch calls with a parameter whose gradient is complete."""
    known = weakref.ref(release)

    @torch._disable_dynamo
    def take_gradient(param: Tensor) -> None:
        release = known()
        if release is not None:
            release.take_gradient(param)

    return take_gradient
