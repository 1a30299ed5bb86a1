"""One step in five stages: plan, decide, measure, apply, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.algorithms import Algorithm
from adaptiverl.backends import backend_for
from adaptiverl.backends.layouts import is_fake
from adaptiverl.backends.reference import noise_on
from adaptiverl.codecs import Storage, decoded_states
from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.decision import Decision
from adaptiverl.devices import beside, numbers_device, outside_autograd
from adaptiverl.law.registry import law_of
from adaptiverl.log import Log
from adaptiverl.ranks.dtensors import to_local
from adaptiverl.ranks.group import Ranks
from adaptiverl.ranks.shards import Shards
from adaptiverl.step.bucket import Bucket
from adaptiverl.step.clipping import GradientScale
from adaptiverl.step.counters import Counters
from adaptiverl.step.entries import CompleteState, Entries
from adaptiverl.step.groups import GroupTable, any_rate
from adaptiverl.step.losses import Losses
from adaptiverl.step.memory import Groups, settle
from adaptiverl.step.plan import Plan
from adaptiverl.step.scaling import scaling_of
from adaptiverl.step.snapshot import Snapshot
from adaptiverl.step.workspace import Workspace

Decisions = Mapping[torch.device, Decision]
"""What the controller decided, on every device that has tensors, and on its own"""


class Rules(NamedTuple):
    """What an optimizer's class says of its steps."""

    algorithm: Algorithm
    storage: Storage
    check_group: Callable[[dict[str, Any], Control], None]
    """Raises ValueError where a group asks for what the class does not do"""
    complete_state: CompleteState
    """Makes what is missing of a parameter's slots"""


class Round:
    """Takes the steps of one optimizer.

    Args:
        control: Gains, bounds and cadence.
        rules: Its class's.
        max_grad_norm: The global norm to clip to, or None.
        ranks: Those that decide together.
        log: What is worth saying is said there.

    Attributes:
        controller: The optimizer's; set before the first step.
        snapshot: What a search goes back to; None where the law never does.
    """

    controller: Controller

    def __init__(
        self,
        control: Control,
        rules: Rules,
        max_grad_norm: float | None,
        ranks: Ranks,
        log: Log,
    ) -> None:
        self._control, self._rules, self._ranks, self._log = control, rules, ranks, log
        self._clips = max_grad_norm is not None
        self.workspace = Workspace()
        self._shards = Shards(self.workspace)
        noisy = control.noise_bounds[1] > 0
        choose = partial(backend_for, noisy=noisy)
        algorithm, storage, _, complete_state = rules
        self.counters = Counters(algorithm, self.workspace)
        entries = Entries(
            algorithm,
            storage,
            log.optimizer,
            complete_state,
            self.counters,
            self._shards,
            ranks,
            needs_whole=self._clips or noisy,
        )
        self.plan = Plan(algorithm, entries, choose, self.workspace)
        self.gradient_scale = GradientScale(max_grad_norm, self.workspace)
        self._group_table: GroupTable | None = None
        self.snapshot: Snapshot | None = None
        if law_of(control.law).goes_back:
            self.snapshot = Snapshot(algorithm, self.workspace, control.snapshot == "device")
        self._losses = None if storage.stochastic_rounding else Losses(log.warn_of_lost_updates)

    @torch._disable_dynamo
    @outside_autograd
    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of this optimizer, whose parameters have their gradients.

        Raises:
            RuntimeError: A gradient or a state that a step cannot take; nothing has changed then.
            ValueError: A group that asks for what the optimizer does not do; likewise.
        """
        groups, state = optimizer.param_groups, optimizer.state
        grad_scale, found_inf = scaling_of(optimizer)
        if optimizer.warns_of_schedulers:  # type: ignore[attr-defined]
            self._log.look_at_rates(groups)
        self._begin(groups, state)
        idle = self._is_idle(groups, state)
        try:
            buckets = self.plan.of_step(groups, state)
            self._log.warn_of_shards(self._shards.take_unknown())
            decisions = self._decide(buckets, groups, found_inf, idle)
            self._go_back(groups, state, decisions, idle)
            factor = self._measure(buckets, decisions, grad_scale)
            samples = None
            if self._losses is not None and not self._searches:  # at rates that it will not have
                samples = self._losses.before(groups)
            for bucket in buckets:
                here = None if factor is None else factor.to(numbers_device(bucket.device))
                bucket.backend.step(bucket, decisions[bucket.device], bucket.squares, here)
            if samples and self._losses is not None and not idle:
                self._losses.after(samples)
            self._report(buckets, decisions, idle)
            if idle:  # who makes state to load into it looks there for what there is to load
                self.counters.show_products(state)
        finally:
            self.plan.release()

    # Plan

    def _begin(self, groups: Groups, state: Mapping[Tensor, Any]) -> None:
        for group in groups:
            self._rules.check_group(group, self._control)
            self._rules.storage.check_group(self._log.optimizer, group)
        settle(groups, self.controller, self._log)
        if self.snapshot is not None:
            self.snapshot.begin_step(groups, state, self.controller, self._searches)
        self.workspace.begin_step()

    # Decide

    def _decide(
        self,
        buckets: list[Bucket],
        groups: Groups,
        found_inf: Tensor | None,
        idle: bool,
    ) -> Decisions:
        """Sensors, law and this step's numbers, in one launch; every tensor's step is counted."""
        controller, here = self.controller, self.controller.device
        table = self.group_table(here)
        table.refresh(groups)
        if idle:
            controller.observations.empty()
        elif self._control.every is not None:
            self.share_observations()
        if found_inf is not None:
            found_inf = beside(found_inf.to(torch.float32), here)
        rows = [b.rows() for b in buckets if b.backend.addressed and b.device == here]
        decision = controller.advance(table.numbers, table.effective, rows, found_inf)
        decisions = {here: decision}
        for bucket in buckets:
            if bucket.device not in decisions:
                decisions[bucket.device] = decision.to(numbers_device(bucket.device))
            if bucket.backend.addressed and bucket.device != here:
                bucket.backend.count_steps(bucket, decisions[bucket.device])
        return decisions

    def group_table(self, device: torch.device) -> GroupTable:
        """The groups' numbers beside the controller, which may have moved."""
        if self._group_table is None or self._group_table.device != device:
            self._group_table = GroupTable(device, self._rules.algorithm.numbers_of, self.workspace)
        return self._group_table

    def share_observations(self) -> None:
        """Meet the other ranks, who do the same in this step (`Ranks`)."""
        controller = self.controller
        controller.observations.close()
        if self._ranks.size > 1 and not self._control.rests:
            self._ranks.average(controller.inbox, controller.observed)

    def _is_idle(self, groups: Groups, state: Mapping[Tensor, Any]) -> bool:
        """Whether the controller learns nothing from this step: the rates are all 0 (`Ranks`).

        So a checkpoint library's step to make state leaves it as it is. On one rank, which nobody
        waits for, that step can be told from training: it is the first, with zero gradients.
        """
        if any_rate(groups):
            return False
        if self._ranks.size > 1:
            return True
        if state or self.controller.observed:
            return False
        params = (p for group in groups for p in group["params"])
        grads = [to_local(p.grad) for p in params if p.grad is not None]
        if any(map(is_fake, grads)):
            return False
        return bool(grads) and not any(bool(grad.any()) for grad in grads)

    @property
    def _searches(self) -> bool:
        """A search that goes back is not over, as far as the host has heard, which may be late."""
        over = self._log.announcements.held or self._control.is_too_short
        return self.snapshot is not None and not over

    def _go_back(
        self, groups: Groups, state: Mapping[Tensor, Any], decisions: Decisions, idle: bool
    ) -> None:
        """In the step that ends a search, to the weights of its start (method.md#going-back)."""
        if self.snapshot is None or idle or not self._searches:
            return
        decision = decisions[self.controller.device]

        def on(device: torch.device) -> Decision:
            return decisions.get(device) or decision.to(numbers_device(device))

        if not is_fake(decision.state):
            self.snapshot.keep_and_put_back(groups, state, on, self.plan.followed)

    def exported(
        self, groups: Groups, keys: Sequence[Any], state: Mapping[Any, Any]
    ) -> dict[Any, Any]:
        """State as checkpoints have it: what a step keeps elsewhere is among its entries.

        Args:
            groups: The optimizer's.
            keys: What the checkpoint calls its parameters, in order.
            state: Those names to their parameters' entries, which are left as they are.
        """
        exported = decoded_states(self.counters.exported(state))
        if self.snapshot is not None and self._searches:
            self.snapshot.added_to(groups, keys, exported)
        return exported

    # Measure

    def _measure(
        self,
        buckets: list[Bucket],
        decisions: Decisions,
        grad_scale: Tensor | None,
    ) -> Tensor | None:
        """What the pass must know before: in every bucket's `squares`, those that the noise needs.

        Returns:
            The gradients' common factor.
        """
        decision = decisions[self.controller.device]
        self._sum_squares(buckets, decisions, decision, of_parameters=False, always=self._clips)
        squares = self.plan.squares_by_device()
        factor = self.gradient_scale(buckets, squares, grad_scale) if buckets else None
        if decision.noise_on_parameter:
            self._sum_squares(buckets, decisions, decision, of_parameters=True, always=False)
        return factor

    def _sum_squares(
        self,
        buckets: list[Bucket],
        decisions: Decisions,
        decision: Decision,
        of_parameters: bool,
        always: bool,
    ) -> None:
        """Σ g² or Σ p² into every bucket's `squares`, where somebody needs them."""
        noisy = decision.noise_possible and decision.noise_on_parameter == of_parameters
        if always or noisy:
            for bucket in buckets:
                bucket.backend.sum_squares(
                    bucket, decisions[bucket.device], bucket.squares, always, of_parameters
                )
        if not self._shards:
            return
        # Where ranks may differ in σ, they must not differ in whether they meet.
        if always or (noisy and (not self._ranks.agree or noise_on(decision))):
            numbers = [(bucket.squares, bucket.indices) for bucket in buckets]
            self._shards.add_up(numbers, self._ranks)

    # Report

    def _report(self, buckets: list[Bucket], decisions: Decisions, idle: bool) -> None:
        """The pass's sums to the controller, version counters to autograd, news to the log."""
        decision = decisions[self.controller.device]
        if decision.aligned and not idle:
            self._reduce_alignment(buckets, decision)
        self._shards.end_step(self.plan.dtensors)
        if not is_fake(self.controller.state):
            self._log.announcements.look(self.controller.state)

    def _reduce_alignment(self, buckets: list[Bucket], decision: Decision) -> None:
        """What the passes summed, to the controller: over all tensors, shards and ranks."""
        controller = self.controller
        sums = [bucket.sums for bucket in buckets]
        if self._shards:
            places = [bucket.indices for bucket in buckets]
            sums = [self._shards.as_whole(*pair) for pair in zip(sums, places, strict=True)]
        controller.reduce_alignment([beside(s, controller.device) for s in sums])
        active = decision.active if decision.skippable else None
        self._ranks.average_alignment(controller.alignment, active)
