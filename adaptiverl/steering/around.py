"""One step of an optimizer that is not ours, with the controller around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adaptiverl.control import Control
from adaptiverl.controller import Controller
from adaptiverl.decision import Decision
from adaptiverl.devices import beside, outside_autograd, outside_inference
from adaptiverl.hooks import is_loss
from adaptiverl.layout import State
from adaptiverl.log import Log
from adaptiverl.ranks.dtensors import to_local, to_whole
from adaptiverl.ranks.group import ProcessGroup, Ranks
from adaptiverl.steering.checks import check_groups
from adaptiverl.steering.direction import Direction
from adaptiverl.steering.groups import InEffect, kind_of, momentum_of, numbers_of, reads_floats
from adaptiverl.steering.noise import add_noise, is_drawn
from adaptiverl.steering.start import SearchStart
from adaptiverl.step.groups import GroupTable
from adaptiverl.step.horizon import check_horizon, horizon_in
from adaptiverl.step.memory import device_beside, settle
from adaptiverl.step.scaling import scaling_of
from adaptiverl.step.workspace import Workspace

STAND_IN_MOMENTUM = 0.9
"""For an optimizer without one: the climb's pace is told by it (method.md#any-optimizer)"""


class Around:
    """The controller, and what happens before and after each step (method.md#any-optimizer).

    Args:
        optimizers: Those that are steered together.
        control: As the user gave it.
        seed: Of the noise and of the sample.
        process_group: Who decides together.
    """

    warns_of_schedulers = True
    _removed = False

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        control: Control,
        seed: int,
        process_group: ProcessGroup,
    ) -> None:
        self.optimizers = tuple(optimizers)
        self._control, self._seed, self._ranks = control, seed, Ranks(process_group)
        self._stepped: set[int] = set()
        """Those that have taken this step already, by their place"""
        self._in_effect = [InEffect() for _ in optimizers]
        self._hidden: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """Gradients of a step that is not taken, by their optimizer's place"""
        self._start: SearchStart | None = None
        self._groups_checked = len(self.param_groups)
        self._begin(control.for_run(horizon_in(self.param_groups)))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Every optimizer's groups, one after another."""
        return [group for one in self.optimizers for group in one.param_groups]

    @outside_inference
    def _begin(self, control: Control) -> None:
        """A controller of its own for this control, where α and μ start."""
        groups = self.param_groups
        first = next((group for group in groups if float(group["lr"]) != 0), groups[0])
        momentum = float(momentum_of(first))
        if momentum == 0 and control.finds_lr:
            momentum = STAND_IN_MOMENTUM
        self._running = control
        name = " and ".join(type(one).__name__ for one in self.optimizers)
        self._log = Log(control, f"steer({name})", self._ranks)
        self._controller = Controller(
            control,
            float(first["lr"]),
            momentum,
            kind=kind_of(first),
            seed=self._seed,
            device=device_beside(groups) or "cpu",
        )
        self._log.warn_if_too_short()
        self._workspace = Workspace()
        self._table: GroupTable | None = None
        self._decision: Decision | None = None
        self._seen: State | None = None
        self._directions: list[Direction] = []
        if control.reads_sums:
            places = range(len(self.optimizers))
            self._directions = [Direction(self._seed, self._first_of(place)) for place in places]
        self._sums: dict[int, Tensor] = {}
        settle(groups, [self._controller], self._log)

    # One step

    @outside_autograd
    def _before(self, optimizer: Optimizer, loss: Any) -> None:
        """Its gradients are there: decide, and let it read what is in effect."""
        place = self.optimizers.index(optimizer)
        if self._control.every is not None and not self._controller.observed and is_loss(loss):
            self._controller.observe(to_whole(loss))
        if not self._stepped or place in self._stepped:
            self._decide(optimizer)
        self._stepped.add(place)
        if self._seen is not None and self._seen.rewind:
            self._hide(place)
            return
        if self._follows:
            sums = self._directions[place].begin_step(optimizer.param_groups)
            if sums is not None:
                self._sums[place] = sums
        if not self._control.noise_target == "parameter":
            self._add_noise(place, [p.grad for p in self._params(place)])
        self._write(place)

    def _decide(self, optimizer: Optimizer) -> None:
        """A step of all of them begins: sensors, law, and this step's numbers."""
        check_horizon(self._running)
        groups, controller = self.param_groups, self._controller
        if len(groups) != self._groups_checked:  # some were added
            check_groups(self.optimizers, self._control)
            self._groups_checked = len(groups)
        self._settle()
        if self.warns_of_schedulers:
            self._log.look_at_rates(groups)
        if not controller.ever_observed:
            self._log.warn_if_blind()
        if self._table is None or self._table.device != controller.device:
            self._table = GroupTable(controller.device, numbers_of, self._workspace)
        self._workspace.begin_step()
        self._table.refresh(groups)
        if self._control.every is not None:
            self._share()
        found_inf = scaling_of(optimizer).found_inf
        if found_inf is not None:
            found_inf = beside(found_inf.to(torch.float32), controller.device)
        searches = self._running.law == "range_test" and not self._log.announcements.went_back
        self._decision = controller.advance(
            self._table.numbers, self._table.effective, [], found_inf
        )
        self._stepped, self._sums = set(), {}
        self._seen = None
        if searches or self._steers_by_host:
            self._seen = State(*controller.state.tolist())
        if searches:
            self._keep_or_go_back()

    def _keep_or_go_back(self) -> None:
        assert self._seen is not None
        if self._seen.rewind and self._start is not None:
            self._start.put_back()
            for direction in self._directions:
                direction.forget()
        if not self._seen.searching:
            self._start = None
        elif self._start is None:
            self._start = self._new_start()

    def _write(self, place: int) -> None:
        assert self._table is not None
        first = sum(len(one.param_groups) for one in self.optimizers[:place])
        groups = self.optimizers[place].param_groups
        effective = self._table.effective[first : first + len(groups)]
        numbers = effective.tolist() if self._steers_by_host else None
        self._in_effect[place].write(groups, effective, numbers, self._moves_momentum)

    @outside_autograd
    def _after(self, optimizer: Optimizer) -> None:
        """Its parameters have moved."""
        place = self.optimizers.index(optimizer)
        if place not in self._stepped or self._decision is None:
            return
        if self._control.noise_target == "parameter" and place not in self._hidden:
            rates = [float(group["lr"]) for group in optimizer.param_groups] if self._noisy else []
            self._add_noise(place, self._params(place), rates)
        if self._follows and place not in self._hidden:
            active = self._decision.active if self._decision.skippable else None
            rates = [group["lr"] for group in optimizer.param_groups]
            self._directions[place].end_step(rates, active)
            self._report()
        self._abandon(optimizer)
        self._log.announcements.look(self._controller.state)

    def _report(self) -> None:
        """What is known so far of this step's alignment, to the controller."""
        if self._sums and self._decision is not None:
            controller = self._controller
            sums = [beside(s, controller.device) for s in self._sums.values()]
            elements = sum(self._directions[place].elements for place in self._sums)
            controller.reduce_alignment(sums, elements)
            active = self._decision.active if self._decision.skippable else None
            told = controller.alignment, controller.aligned_elements
            self._ranks.average_alignment([told], [active])

    def _abandon(self, optimizer: Optimizer) -> None:
        """Its groups and gradients are the user's again."""
        place = self.optimizers.index(optimizer)
        self._in_effect[place].take_back()
        for param, grad in self._hidden.pop(place, []):
            param.grad = grad

    def _hide(self, place: int) -> None:
        """This step is none: the gradients are of weights that are given up."""
        params = [p for p in self._params(place) if p.grad is not None]
        self._hidden[place] = [(p, p.grad) for p in params]  # type: ignore[misc]
        for param in params:
            param.grad = None

    def _add_noise(
        self, place: int, tensors: Sequence[Tensor | None], rates: Sequence[float] = ()
    ) -> None:
        if self._seen is None or not self._noisy or not is_drawn(self._seen):
            return
        groups = self.optimizers[place].param_groups
        first = self._first_of(place)
        of_group = [number for number, g in enumerate(groups) for _ in g["params"]]
        for i, tensor in enumerate(tensors):
            if tensor is not None:
                scale = rates[of_group[i]] if rates else 1.0
                add_noise(to_local(tensor), first + i, self._seen, scale)

    # What it is like

    @property
    def _noisy(self) -> bool:
        return self._control.noise_bounds[1] > 0

    @property
    def _moves_momentum(self) -> bool:
        gains = self._control.arms or (self._control,)
        return any(one.gain_momentum_reward > 0 or one.gain_momentum_loss > 0 for one in gains)

    @property
    def _steers_by_host(self) -> bool:
        """A step reads Python numbers, so the host has to know them."""
        return self._noisy or reads_floats(self.param_groups, self._moves_momentum)

    @property
    def _follows(self) -> bool:
        """The direction is still of use, as far as has been heard.

        The slow climb needs none once the rate is found, unless somebody looks; the range test
        raises a held rate.
        """
        climbs = self._running.law == "alignment" and not self._control.gradient_sensors
        found = climbs and self._log.announcements.held
        return bool(self._directions) and not found

    @property
    def _lr_bounds(self) -> tuple[float, float]:
        return self._controller.limits.lr_min, self._controller.limits.lr_max

    def _params(self, place: int) -> list[Tensor]:
        return [p for group in self.optimizers[place].param_groups for p in group["params"]]

    def _first_of(self, place: int) -> int:
        """The place of an optimizer's first parameter among all."""
        return sum(len(self._params(earlier)) for earlier in range(place))

    def _settle(self) -> None:
        if not self._removed:
            settle(self.param_groups, [self._controller], self._log)

    def _share(self) -> None:
        self._controller.observations.close()
        if self._ranks.size > 1 and self._control.hears_losses:
            self._ranks.average(self._controller.inbox, self._controller.observed)

    def _new_start(self) -> SearchStart:
        return SearchStart(self.optimizers, self._control.snapshot == "device")
