"""One step in five stages: plan, decide, measure, apply, report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.algorithms import Algorithm
from adaptiverl.backends import backend_for
from adaptiverl.backends.layouts import is_fake
from adaptiverl.backends.reference import noise_on
from adaptiverl.codecs import ERROR, Storage, decoded_states
from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.decision import Decision
from adaptiverl.devices import beside, numbers_device, outside_autograd
from adaptiverl.law.registry import law_of
from adaptiverl.log import Log
from adaptiverl.ranks.dtensors import to_local
from adaptiverl.ranks.group import Ranks
from adaptiverl.ranks.shards import Shards
from adaptiverl.step.alignment import reduce_alignment, still_read
from adaptiverl.step.bucket import Bucket, Home
from adaptiverl.step.clipping import GradientScale
from adaptiverl.step.counters import Counters
from adaptiverl.step.entries import CompleteState, Entries, Numbered
from adaptiverl.step.groups import GroupTable, any_rate
from adaptiverl.step.horizon import check_horizon
from adaptiverl.step.losses import Losses, Sample
from adaptiverl.step.memory import Groups, check_controllers, settle
from adaptiverl.step.plan import Plan
from adaptiverl.step.scaling import scaling_of
from adaptiverl.step.snapshot import KEY as SEARCH_START
from adaptiverl.step.snapshot import Snapshot
from adaptiverl.step.state import PRODUCT, STEP, in_order
from adaptiverl.step.workspace import Workspace

Decisions = dict[Home, Decision]
"""What each controller decided, on every device that has tensors, and on its own"""


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
        controllers: The optimizer's, set before the first step: one, or one of each group.
        snapshot: What a search goes back to; None where the law never does.
    """

    controllers: Sequence[Controller]

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
        self._choose = partial(backend_for, noisy=noisy)
        algorithm, storage, _, complete_state = rules
        self.counters = Counters(algorithm, self.workspace)
        self._entries = Entries(
            algorithm,
            storage,
            log.optimizer,
            complete_state,
            self.counters,
            self._shards,
            ranks,
            needs_whole=self._clips or noisy,
        )
        self.plan = self.new_plan()
        self.gradient_scale = GradientScale(max_grad_norm, self.workspace)
        self._group_table: GroupTable | None = None
        self._resting: set[int] = set()
        """Of several controllers those whose group has a rate of 0 in this step"""
        self.snapshot: Snapshot | None = None
        if law_of(control.law).goes_back:
            self.snapshot = Snapshot(algorithm, self.workspace, control.snapshot == "device")
        keeps_all = storage.stochastic_rounding or storage.master_bits is not None
        self._losses = None if keeps_all else Losses(log.warn_of_lost_updates)

    @torch._disable_dynamo
    @outside_autograd
    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of this optimizer, whose parameters have their gradients.

        Raises:
            RuntimeError: A gradient or a state that a step cannot take; nothing has changed then.
            ValueError: A group that asks for what the optimizer does not do, or a horizon that
                nobody has said; likewise.
        """
        groups, state = optimizer.param_groups, optimizer.state
        grad_scale, found_inf = scaling_of(optimizer)
        idle = self.begin(optimizer)
        try:
            buckets = self.plan.of_step(groups, state)
            self._log.warn_of_shards(self._shards.take_unknown())
            decisions = self.decide(buckets, groups, found_inf, idle)
            self.go_back(groups, state, decisions, idle)
            factor = self.measure(self.plan, buckets, decisions, grad_scale)
            samples = self.sample((p for group in groups for p in group["params"]), idle)
            for bucket in buckets:
                here = None if factor is None else factor.to(numbers_device(bucket.device))
                bucket.backend.step(bucket, decisions[bucket.home], bucket.squares, here)
            self.end_pass(self.plan)
            self.report(state, [[bucket] for bucket in buckets], decisions, samples, idle)
        finally:
            self.plan.release()

    @property
    def controller(self) -> Controller:
        """Who hears the losses for all."""
        return self.controllers[0]

    # Plan

    def new_plan(self, only: int | None = None) -> Plan:
        """A plan of these rules: of the parameter at the place `only` alone, or of all."""
        rules = self._rules
        parts = rules.algorithm, rules.storage, self._entries, self._choose
        return Plan(*parts, self.workspace, only, self._control.groups == "own")

    def begin(self, optimizer: torch.optim.Optimizer) -> bool:
        """Before anything is planned: what the user or a load has put into groups is looked at.

        Returns:
            Whether the step is an idle one: the controller learns nothing from it.
        """
        groups, state = optimizer.param_groups, optimizer.state
        if optimizer.warns_of_schedulers:  # type: ignore[attr-defined]
            self._log.look_at_rates(groups)
        for group in groups:
            self._rules.check_group(group, self._control)
            self._rules.storage.check_group(self._log.optimizer, group)
        check_controllers(groups, self.controllers, self._control)
        settle(groups, self.controllers, self._log)
        if self.snapshot is not None:
            self.snapshot.begin_step(groups, state, self.controller, self._searches)
        self.workspace.begin_step()
        idle = self._is_idle(groups, state)
        if not idle:
            check_horizon(self._control)
        return idle

    # Decide

    def decide(
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
        decisions: Decisions = {}
        if len(self.controllers) > 1:
            self._resting = {i for i, group in enumerate(groups) if not any_rate([group])}
        for place, one in enumerate(controller.observations.to_each(self.controllers)):
            home = place, here
            effective = table.effective if place == 0 else table.effective_of(place)
            rows = [b.rows() for b in buckets if b.backend.addressed and b.home == home]
            heard = self._log.announcements_of(place)
            read = partial(still_read, heard=heard, ranks=self._ranks)
            decisions[home] = one.advance(table.numbers, effective, rows, found_inf, read)
        self.count([bucket for bucket in buckets if bucket.device != here], decisions)
        return decisions

    def count(self, buckets: Sequence[Bucket], decisions: Decisions) -> None:
        """Count a decided step's tensors that the controller's launch did not count.

        Args:
            buckets: Theirs.
            decisions: The step's; their devices' are added.
        """
        for bucket in buckets:
            if bucket.home not in decisions:
                decision = decisions[bucket.place, self.controller.device]
                decisions[bucket.home] = decision.to(numbers_device(bucket.device))
            if bucket.backend.addressed:
                bucket.backend.count_steps(bucket, decisions[bucket.home])

    def group_table(self, device: torch.device) -> GroupTable:
        """The groups' numbers beside the controller, which may have moved."""
        if self._group_table is None or self._group_table.device != device:
            self._group_table = GroupTable(device, self._rules.algorithm.numbers_of, self.workspace)
        return self._group_table

    def share_observations(self) -> None:
        """Meet the other ranks, who do the same in this step (`Ranks`)."""
        controller = self.controller
        controller.observations.close()
        if self._ranks.size > 1 and self._control.hears_losses:
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
        over = self._log.announcements.went_back or self._control.is_too_short
        return self.snapshot is not None and not over

    def keep(self, numbered: Numbered, idle: bool) -> None:
        """Before a parameter's first step of a search: its weights of now."""
        if self.snapshot is not None and not idle and self._searches:
            self.snapshot.keep(numbered.number, numbered.param)

    def go_back(
        self, groups: Groups, state: Mapping[Tensor, Any], decisions: Decisions, idle: bool
    ) -> None:
        """In the step that ends a search, to the weights of its start (method.md#going-back)."""
        if self.snapshot is None or idle or not self._searches:
            return
        decision = decisions[0, self.controller.device]

        def on(device: torch.device) -> Decision:
            return decisions.get((0, device)) or decision.to(numbers_device(device))

        if not is_fake(decision.state):
            self.snapshot.keep_and_put_back(groups, state, on, self.plan.followed)

    def adopt(self, groups: Groups, state: Mapping[Tensor, Any]) -> None:
        """Take in what a load has put into state.

        Where a search began is no concern of a law that never goes back: the weights would be kept
        and saved for nothing, and a later search would go back to them.

        Args:
            groups: The optimizer's.
            state: The optimizer's.
        """
        if self.snapshot is None:
            for entries in state.values():
                if isinstance(entries, dict):
                    entries.pop(SEARCH_START, None)
        self.counters.adopt(groups, state)

    def exported(
        self, groups: Groups, keys: Sequence[Any], state: Mapping[Any, Any]
    ) -> dict[Any, Any]:
        """State as checkpoints have it: what a step keeps elsewhere is among its entries.

        The entries of a parameter are in one order, whether the run was ever interrupted or not.

        Args:
            groups: The optimizer's.
            keys: What the checkpoint calls its parameters, in order.
            state: Those names to their parameters' entries, which are left as they are.
        """
        exported = decoded_states(self.counters.exported(groups, keys, state))
        if self.snapshot is not None and self._searches:
            self.snapshot.added_to(groups, keys, exported)
        order = (*self._rules.algorithm.slots, ERROR, STEP, PRODUCT, SEARCH_START)
        return {key: in_order(entries, order) for key, entries in exported.items()}

    # Measure

    def measure(
        self, plan: Plan, buckets: list[Bucket], decisions: Decisions, grad_scale: Tensor | None
    ) -> Tensor | None:
        """What the pass must know before: in every bucket's `squares`, those that the noise needs.

        Args:
            plan: Whose the buckets are.
            buckets: Theirs.
            decisions: The step's.
            grad_scale: What a gradient scaler multiplied the loss by; or None.

        Returns:
            The gradients' common factor.
        """
        decision = decisions[0, self.controller.device]
        self._sum_squares(plan, buckets, decisions, of_parameters=False, always=self._clips)
        squares = plan.squares_by_device()
        factor = self.gradient_scale(buckets, squares, grad_scale) if buckets else None
        if decision.noise_on_parameter:
            self._sum_squares(plan, buckets, decisions, of_parameters=True, always=False)
        return factor

    def _sum_squares(
        self,
        plan: Plan,
        buckets: list[Bucket],
        decisions: Decisions,
        of_parameters: bool,
        always: bool,
    ) -> None:
        """Σ g² or Σ p² into every bucket's `squares`, where somebody needs them."""
        here = self.controller.device
        decision = decisions[0, here]
        noisy = decision.noise_possible and decision.noise_on_parameter == of_parameters
        if always or noisy:
            for bucket in buckets:
                bucket.backend.sum_squares(
                    bucket, decisions[bucket.home], bucket.squares, always, of_parameters
                )
        if not self._shards:
            return
        # Where ranks may differ in σ, they must not differ in whether they meet.
        drawn = (noise_on(one) for (_, device), one in decisions.items() if device == here)
        if always or (noisy and (not self._ranks.agree or any(drawn))):
            numbers = [(bucket.squares, bucket.indices) for bucket in buckets]
            self._shards.add_up(numbers, self._ranks, plan.only)

    # Apply

    def sample(self, params: Iterable[Tensor], idle: bool) -> list[Sample]:
        """What of parameters that are about to be stepped `report` compares: mostly nothing."""
        if self._losses is None or idle or self._searches:  # at rates that it will not have
            return []
        return self._losses.before(params)

    def end_pass(self, plan: Plan) -> None:
        """Autograd hears which of a plan's tensors were stepped."""
        self._shards.end_step(plan.dtensors)

    # Report

    def report(
        self,
        state: Mapping[Tensor, Any],
        passes: Sequence[Sequence[Bucket]],
        decisions: Decisions,
        samples: list[Sample],
        idle: bool,
    ) -> None:
        """The passes' sums to the controller, news to the log.

        Args:
            state: The optimizer's.
            passes: The step's buckets; those that are listed together count as one.
            decisions: The step's.
            samples: What `sample` took.
            idle: As `begin` says.
        """
        if self._losses is not None and not self._searches:
            self._losses.end_step(samples)
        if not idle and any(decision.aligned for decision in decisions.values()):
            told = passes, decisions, self._shards, self._ranks
            reduce_alignment(self.controllers, *told, self._resting)
        if not is_fake(self.controller.state):
            for place, controller in enumerate(self.controllers):
                self._log.announcements_of(place).look(controller.state)
        if idle:  # who makes state to load into it looks there for what there is to load
            self.counters.show_products(state)
