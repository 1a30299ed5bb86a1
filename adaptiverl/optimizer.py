"""The torch.optim contract: groups, state, the order of one step, loss scaling, save and load."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from torch.optim.optimizer import _device_dtype_check_for_fused
from torch.utils.weak import TensorWeakRef

from adaptiverl.algorithms import Algorithm
from adaptiverl.announcements import Announcements
from adaptiverl.backends import backend_for
from adaptiverl.backends.clipping import GradientScale
from adaptiverl.backends.layouts import is_fake
from adaptiverl.backends.placement import controller_device
from adaptiverl.backends.reference import noise_on
from adaptiverl.codecs import codec_of_slot
from adaptiverl.control import Control
from adaptiverl.controller import Controller, Decision, Trace, current_layout
from adaptiverl.devices import numbers_device
from adaptiverl.distributed import (
    NOISE_PLACE,
    Ranks,
    Shards,
    gradient_of,
    is_dtensor,
    to_local,
    to_whole,
)
from adaptiverl.fingerprint import GroupKey
from adaptiverl.slots import as_counter, check_gradient, check_state
from adaptiverl.tables import Bucket, Buckets, GroupTable, ParameterEntry, any_rate
from adaptiverl.workspace import Workspace, outside_inference

if TYPE_CHECKING:
    from adaptiverl.distributed import Group

STATE_KEY = "adaptive_state"
"""Where every group keeps the controller's memory: the one home that every checkpoint keeps."""

BLIND_STEPS = 10
"""Steps without an observation, at least, before the warning"""

SENSORS = (
    "step",
    "updates",
    "loss",
    "reward",
    "loss_mean",
    "loss_trend",
    "loss_scale",
    "loss_direction",
    "variance",
    "variance_scale",
    "plateau",
    "reward_mean",
    "reward_trend",
    "reward_scale",
    "reward_direction",
    "nonfinite",
    "alignment",
    "alignment_direction",
    "alignment_mean",
    "held",
)


class AdaptiveOptimizer(torch.optim.Optimizer):
    """What an optimizer needs to be steered: `observe`, `update`, `knobs`, `trace`, one step."""

    grad_scale: Tensor
    """Set by a gradient scaler for the length of a step; so is `found_inf`"""
    found_inf: Tensor
    _control: Control
    _controller: Controller
    _algorithm: Algorithm

    def _check_group(self, group: dict[str, Any]) -> None:
        """A group asks for nothing that this algorithm does not do.

        Raises:
            ValueError: It does.
        """

    def _prepare(
        self,
        control: Control,
        max_grad_norm: float | None,
        seed: int,
        process_group: Group = None,
    ) -> None:
        """What is neither groups nor state; before torch's constructor, which adds the groups."""
        if not isinstance(control, Control):
            raise TypeError(
                f"control must be a Control, got {control!r} of type {type(control).__name__}"
            )
        if max_grad_norm is not None and not 0 < float(max_grad_norm) < math.inf:
            raise ValueError(
                f"max_grad_norm must be finite and > 0, or None, got {max_grad_norm!r}"
            )
        self._control = control
        self._max_grad_norm = max_grad_norm
        self._seed = seed
        self._workspace = Workspace()
        choose = partial(backend_for, noisy=control.noise_bounds[1] > 0)
        self._buckets = Buckets(choose, self._workspace, self._algorithm.name)
        self._gradient_scale = GradientScale(max_grad_norm, self._workspace)
        self._group_table: GroupTable | None = None
        self._unobserved_steps = 0
        self._unscales = False
        self._ranks = Ranks(process_group)
        self._announcements = Announcements(control, type(self).__name__, self._ranks.is_first)
        self._shards = Shards(self._workspace)
        self._warned_of_shards = False

    @outside_inference
    def _start_controller(self, lr: float, momentum: float) -> None:
        self._start = (lr, momentum)
        self._controller = Controller(
            self._control,
            lr,
            momentum,
            kind=self._algorithm.momentum,
            seed=self._seed,
            device=self._device_of_controller() or "cpu",
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's. The first group's rate and momentum are where α and μ start.

        A dictionary that is another steered optimizer's group already is copied: each controller
        keeps its memory in its own groups.
        """
        if isinstance(param_group, dict) and STATE_KEY in param_group:
            param_group = {k: v for k, v in param_group.items() if k != STATE_KEY}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not hasattr(self, "_start"):
            self._start_controller(float(group["lr"]), self._algorithm.start_of(group))
        group[STATE_KEY] = self._controller.memory

    # What the user tells it and asks it

    @property
    def control(self) -> Control:
        """The gains, bounds and cadence it was made with."""
        return self._control

    @torch._disable_dynamo
    @outside_inference
    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Tell the controller this step's loss; nothing waits. Several before a step are averaged.

        The average is over micro-batches: what was observed since the last step, or since a
        gradient scaler skipped one, whose loss does not count (decisions.md 13).

        Args:
            loss: One real number: a tensor with one element on any device, or a Python number. NaN
                and infinities are signals, not errors (decisions.md 12).
            reward: r, where ``Control(reward="given")``; may be left out.

        Raises:
            TypeError: Something without a real value.
            ValueError: More than one element; a reward in a mode without; epoch-wise control.
        """
        if self._control.every is None:
            raise ValueError(
                "observe() has no effect with Control(every=None): call update(loss) once per "
                "epoch or evaluation, or give Control an `every`"
            )
        self._adopt_loaded_memory()  # which would empty the inbox later
        self._place_controller()  # which would wait for a loss on the parameters' device later
        self._controller.observe(to_whole(loss), to_whole(reward))

    @outside_inference
    def update(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Epoch-wise control (§5), ``Control(every=None)``: one observation and one update.

        On many ranks every rank calls it, and all update by the mean of what they gave.

        Args:
            loss: As in `observe`: an epoch's mean loss, or an evaluation's.
            reward: As in `observe`.

        Raises:
            ValueError: Step-wise control, whose updates come by themselves.
            TypeError: Something without a real value.
        """
        if self._control.every is not None:
            raise ValueError(
                f"update() is for Control(every=None), got every={self._control.every}: "
                "call observe(loss) before each step instead"
            )
        self._adopt_loaded_memory()
        self._place_controller()
        self._controller.update(to_whole(loss), to_whole(reward), self._share_observations)

    @outside_inference
    def knobs(self) -> dict[str, float]:
        """The first group's learning rate and momentum in effect, α, σ, and the sensors by name.

        Waits for the device: call it when you print, not every step. It is a copy that is looked
        at; nothing changes that a step reads. Called from another thread while a step runs it
        disturbs nothing, but what it shows may be of two steps.
        """
        numbers = [float(x) for x in self._algorithm.numbers_of(self.param_groups[0])]
        state, lr, momentum = self._controller.in_effect(numbers, self._loaded_memory())
        knobs = {"lr": lr, "alpha": state.lr, "momentum": momentum, "noise": state.noise}
        return knobs | {name: getattr(state, name) for name in SENSORS}

    def trace(self) -> Trace:
        """The last few thousand updates of the knobs, recorded on the device. Waits for it."""
        return self._controller.trace()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a gradient scaler leaves unscaling and skipping to `step`; torch's own name.

        A scaler asks before every step, and where the answer is no and a gradient overflowed, its
        asking is all that an optimizer ever hears of the skipped step (decisions.md 13). Anybody
        else may ask as well, which changes nothing: see `Observations`.
        """
        params = (p for group in self.param_groups for p in group["params"])
        asked_about = next((p for p in params if p.grad is not None), None)
        if asked_about is not None:
            self._controller.observations.ask(_watch(asked_about))
        return self._unscales

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, unscales: bool) -> None:
        self._unscales = unscales

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim's; after a gradient scaler's skipped step its losses no longer count."""
        self._controller.observations.throw_away()
        super().zero_grad(set_to_none)

    # One step

    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """One optimizer step.

        On a GPU each call (`observe`, `step`, `update`, `knobs`; a replay of a graph that captured
        one, too) may come on another stream, as long as that stream waits for the one before:
        `torch.cuda.Stream.wait_stream`.

        Args:
            closure: Reevaluates the model and returns the loss, which is observed unless something
                else was observed since the last step.
            loss: This step's loss, the same as calling ``observe(loss)`` before.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: A sparse gradient, or a gradient or state of another shape or device; no
                parameter, state or count has changed then. A loss that was told stays told.
        """
        self._check_capture()
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if loss is not None:
            self.observe(loss)
        elif self._control.every is not None and not self._controller.observed and _is_loss(result):
            self.observe(result)
        self._warn_if_blind()
        self._step_parameters()
        return result

    def _check_capture(self) -> None:
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(self, name):
                getattr(self, name)()
                return

    @torch._disable_dynamo
    @outside_inference
    @torch.no_grad()
    def _step_parameters(self) -> None:
        self._workspace.begin_step()
        self._adopt_loaded_memory()
        idle = self._is_idle()
        keys = self._group_keys()
        try:
            buckets = self._buckets.of_step(keys, self.state, self._entries)
            self._sweep(buckets, idle)
            self._shards.end_step(self._buckets.dtensors)
            if not is_fake(self._controller.block):
                self._announcements.look(self._controller.block)
        finally:
            self._buckets.release()

    def _sweep(self, buckets: list[Bucket], idle: bool) -> None:
        self._warn_of_shards_keyed_apart()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        decision = self._advance(buckets, found_inf, idle)
        # What the controller decided, on every device; there is one copy of it for each.
        devices = [decision.block.device, *(bucket.device for bucket in buckets)]
        decisions = {device: decision.to(numbers_device(device)) for device in devices}
        for bucket in buckets:
            if bucket.backend.addressed and bucket.device != self._controller.device:
                bucket.backend.count_steps(bucket, decisions[bucket.device])
        factor = self._measure(buckets, decisions, grad_scale)
        factors = {d: None if factor is None else factor.to(numbers_device(d)) for d in devices[1:]}
        for bucket in buckets:
            device = bucket.device
            bucket.backend.step(bucket, decisions[device], bucket.squares, factors[device])
        if decision.aligned and not idle:
            self._gather_alignment(buckets, decision)

    def _gather_alignment(self, buckets: list[Bucket], decision: Decision) -> None:
        """What the sweeps summed, to the controller: over all tensors, shards and ranks."""
        controller = self._controller
        sums = [bucket.sums for bucket in buckets]
        if self._shards:
            places = [bucket.indices for bucket in buckets]
            sums = [self._shards.as_whole(*pair) for pair in zip(sums, places, strict=True)]
        controller.gather([_beside(controller, s) for s in sums])
        active = decision.active if decision.skippable else None
        self._ranks.average_alignment(controller.alignment, active)

    def _group_keys(self) -> list[GroupKey]:
        """What of the groups decides which backend takes their tensors."""
        for group in self.param_groups:
            self._check_group(group)
        return [
            GroupKey(group["params"], self._kept_of(group), bool(group["maximize"]))
            for group in self.param_groups
        ]

    def _kept_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """State entries that a sweep walks or counts."""
        counters = ("step", "mu_product") if self._algorithm.corrects_bias else ("step",)
        return (*self._algorithm.slots_of(group), *counters)

    def _is_idle(self) -> bool:
        """Whether the controller learns nothing from this step: the rates are all 0 (`Ranks`).

        So a checkpoint library's step to make state leaves it as it is. On one rank, which nobody
        waits for, that step can be told from training: it is the first, with zero gradients.
        """
        if any_rate(self.param_groups):
            return False
        if self._ranks.size > 1:
            return True
        if self.state or self._controller.observed:
            return False
        params = (p for group in self.param_groups for p in group["params"])
        grads = [to_local(p.grad) for p in params if p.grad is not None]
        if any(map(is_fake, grads)):
            return False
        return bool(grads) and not any(bool(grad.any()) for grad in grads)

    def _share_observations(self) -> None:
        """Meet the other ranks, who do the same in this step (`Ranks`)."""
        self._controller.observations.close()
        if self._ranks.size > 1 and not self._control.rests:
            self._ranks.average(self._controller.inbox, self._controller.observed)

    def _advance(self, buckets: list[Bucket], found_inf: Tensor | None, idle: bool) -> Decision:
        """Sensors, laws and this step's decision, in one launch."""
        controller, table = self._controller, self._settle()
        if idle:
            controller.observations.empty()
        elif self._control.every is not None:
            self._share_observations()
        if found_inf is not None:
            found_inf = _beside(controller, found_inf.to(torch.float32))
        rows = [b.rows() for b in buckets if b.backend.addressed and b.device == controller.device]
        return controller.advance(table.numbers, table.effective, rows, found_inf)

    def _measure(
        self,
        buckets: list[Bucket],
        decisions: dict[torch.device, Decision],
        grad_scale: Tensor | None,
    ) -> Tensor | None:
        """What the sweep must know before: in every bucket's `squares`, those that the noise needs.

        Returns:
            The gradients' common factor.
        """
        clipping = self._max_grad_norm is not None
        self._sum_squares(buckets, decisions, of_parameters=False, always=clipping)
        squares = self._buckets.squares_by_device()
        factor = self._gradient_scale(buckets, squares, grad_scale) if buckets else None
        if self._control.noise_target == "parameter":
            self._sum_squares(buckets, decisions, of_parameters=True, always=False)
        return factor

    def _sum_squares(
        self,
        buckets: list[Bucket],
        decisions: dict[torch.device, Decision],
        of_parameters: bool,
        always: bool,
    ) -> None:
        """Σ g² or Σ p² into every bucket's `squares`, where somebody needs them."""
        decision = decisions[self._controller.device]
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

    def _entries(self) -> Iterator[ParameterEntry]:
        """One entry per parameter with a gradient; all are checked before any state is made."""
        self._check_tensors()
        index = 0
        self._shards.start_step()
        for g, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is not None:
                    yield self._entry(param, group, g, getattr(param, NOISE_PLACE, index))
                elif is_dtensor(param):
                    self._shards.add(index, param, self._ranks)
                index += 1

    def _check_tensors(self) -> None:
        """Gradients and state are what a step can take (`slots`). Nothing is changed.

        Raises:
            RuntimeError: They are not.
        """
        index = 0
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    check_gradient(param, index, type(self).__name__)
                    check_state(
                        param, index, self.state.get(param, {}), self._algorithm.slots_of(group)
                    )
                index += 1

    def _entry(self, param: Tensor, group: dict[str, Any], g: int, index: int) -> ParameterEntry:
        state = self.state[param]
        self._init_state(param, group, state)
        grad, offset, numel = param.grad, 0, param.numel()
        needed = self._algorithm.slots_of(group)
        slots = [state[name] if name in needed else None for name in self._algorithm.slots]
        if is_dtensor(param):
            place = self._shards.step(index, param, self._ranks)
            offset, numel = place.offset, place.numel
            slots = [None if x is None else to_local(x) for x in slots]
            grad, param = gradient_of(param), to_local(param)
        reals = 2 if param.is_complex() else 1
        return ParameterEntry(
            param=param,
            grad=grad,  # type: ignore[arg-type]
            slots=tuple(slots),
            step=state["step"],
            mu_product=state["mu_product"] if self._algorithm.corrects_bias else None,
            group=g,
            index=index,
            offset=offset * reals,
            logical_numel=numel * reals,
            maximize=bool(group["maximize"]),
        )

    def _init_state(self, param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Make what is missing of a parameter's state; a checkpoint may have brought a part.

        What is there is put into the dtype that kernels read: torch's own loader, which wrappers
        call, casts every floating entry to the parameter's.
        """
        if not state and group["fused"]:
            _device_dtype_check_for_fused(param)
        for name in self._algorithm.slots_of(group):
            value = state.get(name)
            codec = codec_of_slot(param)
            state[name] = (
                codec.zeros_beside(param) if value is None else codec.adopt(value, param.device)
            )
        home = numbers_device(param.device)
        state["step"] = as_counter(state.get("step", 0.0), torch.float32, home)

    def _settle(self) -> GroupTable:
        """The groups' numbers, and the controller, beside the parameters, which may have moved."""
        self._place_controller()
        if self._group_table is None or self._group_table.device != self._controller.device:
            device = self._controller.device
            self._group_table = GroupTable(device, self._algorithm.numbers_of, self._workspace)
        self._group_table.refresh(self.param_groups)
        return self._group_table

    def _place_controller(self) -> None:
        """The controller beside the parameters. Not before a loaded memory is adopted."""
        device = self._device_of_controller()
        if device is not None and device != self._controller.device:
            self._controller.to(device)
            self._share_memory()

    def _device_of_controller(self) -> torch.device | None:
        """Where it belongs; None without parameters."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        return None if first is None else controller_device(first.device)

    def _warn_of_shards_keyed_apart(self) -> None:
        if not self._shards.unknown:
            return
        shapes, self._shards.unknown = self._shards.unknown, []
        if not self._warned_of_shards:
            self._warned_of_shards = True
            warnings.warn(
                f"{len(shapes)} sharded parameters, the first of shape {shapes[0]}, are cut in a "
                "way that makes no shard one run of elements: should σ rise, each shard draws its "
                "own noise, which depends on the number of ranks. Shard(0) does not have this",
                UserWarning,
                stacklevel=5,
            )

    def _warn_if_blind(self) -> None:
        every = self._control.every
        if every is None or self._controller.ever_observed or self._control.needs_no_loss:
            return
        self._unobserved_steps += 1
        if self._unobserved_steps == max(every, BLIND_STEPS):
            here = "" if self._ranks.size == 1 else " on this rank (nor, perhaps, on any)"
            warnings.warn(
                f"{type(self).__name__} took {self._unobserved_steps} steps and was never told a "
                f"loss{here}, so nothing is adapted: call optimizer.observe(loss) before step(), "
                "or step(loss=loss), or pass Control.frozen() if that is what you want",
                UserWarning,
                stacklevel=4,
            )

    # Save and load

    def _adopt_loaded_memory(self) -> None:
        """A group that holds another memory was loaded: copy it into ours; addresses survive."""
        memory = self._loaded_memory()
        if memory is not None:
            self._controller.adopt(memory)
            self._announcements.resume(self._controller.memory)
        self._share_memory()

    def _loaded_memory(self) -> Tensor | None:
        memory = self.param_groups[0].get(STATE_KEY) if self.param_groups else None
        return None if memory is self._controller.memory else memory

    def _share_memory(self) -> None:
        for group in self.param_groups:
            group[STATE_KEY] = self._controller.memory

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's, whose own checkpoints load too; the controller starts fresh then.

        Raises:
            ValueError: The controller's memory is damaged or of an unknown layout; nothing changed.
        """
        hooked = state_dict

        def check(_: torch.optim.Optimizer, loading: dict[str, Any]) -> None:
            nonlocal hooked
            hooked = loading
            for group in loading["param_groups"]:
                if STATE_KEY in group:
                    current_layout(group[STATE_KEY])

        # The last of the hooks: it sees what the user's own have made of the checkpoint.
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self._restore_precision(hooked)

    def _restore_precision(self, state_dict: dict[str, Any]) -> None:
        """A load casts state to the parameter's dtype; ours keeps the one it was made with."""
        saved = [p for group in state_dict["param_groups"] for p in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for key, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                loaded = self.state[param].get(name)
                dtype = self._state_dtype(param, name)
                if isinstance(loaded, Tensor) and dtype is not None and loaded.dtype != dtype:
                    shaped = name in self._algorithm.slots
                    home = param.device if shaped else numbers_device(param.device)
                    # A rounded product is put right by who knows what it should be (`_init_state`).
                    kept = dtype if shaped else value.dtype
                    self.state[param][name] = value.to(device=home, dtype=kept)

    def _state_dtype(self, param: Tensor, name: str) -> torch.dtype | None:
        """The dtype that a state entry is kept in, or None for an entry that isn't ours."""
        if name == "mu_product":
            return torch.float64
        return codec_of_slot(param).dtype if name in self._algorithm.slots else None

    def __getstate__(self) -> dict[str, Any]:
        adaptive = (self._control, self._max_grad_norm, self._seed, self._start, self._ranks)
        return super().__getstate__() | {"_adaptive": adaptive}

    @outside_inference
    def __setstate__(self, state: dict[str, Any]) -> None:
        adaptive = state.pop("_adaptive", None)
        super().__setstate__(state)
        if adaptive is not None:
            control, max_grad_norm, seed, start, ranks = adaptive
            self._prepare(control, max_grad_norm, seed, ranks.group)
            self._unscales = bool(self.defaults.get("fused"))
            self._start_controller(*start)
        elif STATE_KEY not in self.param_groups[0]:
            self._controller.reset()
        self._adopt_loaded_memory()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            shown = sorted(key for key in group if key not in ("params", STATE_KEY))
            lines += [f"    {key}: {group[key]}" for key in shown]
        return "\n".join([*lines, ")"])


def _watch(param: Tensor) -> Callable[[], bool]:
    """Tells from now on whether the parameter's gradient of this moment was thrown away."""
    assert param.grad is not None
    seen = TensorWeakRef(param.grad)  # accumulating adds to it and leaves it where it is
    owner = TensorWeakRef(param)

    def thrown_away() -> bool:
        here = owner()
        return here is None or here.grad is None or here.grad is not seen()

    return thrown_away


def _beside(controller: Controller, tensor: Tensor) -> Tensor:
    """On the controller's device, without waiting unless that is the host, which reads at once."""
    return tensor.to(controller.device, non_blocking=controller.device.type != "cpu")


def _is_loss(result: Any) -> TypeGuard[Tensor | float]:
    """Whether a closure's result can be observed; AdamW takes closures that return anything."""
    if isinstance(result, Tensor):
        return result.numel() == 1 and not result.is_complex() and result.dtype != torch.bool
    return isinstance(result, (int, float)) and not isinstance(result, bool)
