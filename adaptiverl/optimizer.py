"""The torch.optim contract: groups, state, the order of one step, loss scaling, save and load."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor

from adaptiverl.control import Control
from adaptiverl.controller import Controller, Decision, Trace, check_memory
from adaptiverl.dispatch import backend_for, controller_device, gradient_scale
from adaptiverl.tables import Bucket, Buckets, Entry, GroupTable

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
)


class AdaptiveOptimizer(torch.optim.Optimizer):
    """What an optimizer needs to be steered: `observe`, `update`, `knobs`, `trace`, one step."""

    grad_scale: Tensor
    """Set by a gradient scaler for the length of a step; so is `found_inf`"""
    found_inf: Tensor
    _control: Control
    _controller: Controller
    _algorithm: str
    """The function of a backend that does the step"""
    _moments: tuple[str, ...]
    """State entries that follow the parameter's shape."""

    def _prepare(self, control: Control, max_grad_norm: float | None, seed: int) -> None:
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
        self._buckets = Buckets(backend_for)
        self._group_table: GroupTable | None = None
        self._unobserved_steps = 0

    def _start_controller(self, lr: float, momentum: float) -> None:
        self._start = (lr, momentum)
        self._controller = Controller(self._control, lr, momentum, seed=self._seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's. The first group's rate and β₁ are where α and μ start."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not hasattr(self, "_start"):
            self._start_controller(float(group["lr"]), float(group["betas"][0]))
        group[STATE_KEY] = self._controller.memory

    # What the user tells it and asks it

    @torch._disable_dynamo
    def observe(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Tell the controller this step's loss; nothing waits. Several before a step are averaged.

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
        self._controller.observe(loss, reward)

    def update(self, loss: Tensor | float, reward: Tensor | float | None = None) -> None:
        """Epoch-wise control (§5), ``Control(every=None)``: one observation and one update.

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
        self._controller.update(loss, reward)

    def knobs(self) -> dict[str, float]:
        """The first group's learning rate and momentum in effect, σ, and the sensors by name.

        Waits for the device: call it when you print, not every step.
        """
        self._adopt_loaded_memory()
        table = self._settle()
        self._controller.read_groups(table.numbers, table.effective)
        lr, momentum = table.effective[0].tolist()
        state = self._controller.read()
        knobs = {"lr": lr, "momentum": momentum, "noise": state.noise}
        return knobs | {name: getattr(state, name) for name in SENSORS}

    def trace(self) -> Trace:
        """The last few thousand updates of the knobs, recorded on the device. Waits for it."""
        return self._controller.trace()

    # One step

    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """One optimizer step.

        Args:
            closure: Reevaluates the model and returns the loss, which is observed unless something
                else was observed since the last step.
            loss: This step's loss, the same as calling ``observe(loss)`` before.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: A sparse gradient; nothing has changed then.
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
    @torch.no_grad()
    def _step_parameters(self) -> None:
        self._adopt_loaded_memory()
        buckets = self._buckets.sort(self._entries())
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        decision = self._advance(buckets, found_inf)
        squares, factor = self._measure(buckets, decision, grad_scale)
        for bucket, square in zip(buckets, squares, strict=True):
            factor = None if factor is None else factor.to(bucket.device)
            step = getattr(bucket.backend, self._algorithm)
            step(bucket, decision.to(bucket.device), square, factor)

    def _advance(self, buckets: list[Bucket], found_inf: Tensor | None) -> Decision:
        """Sensors, laws and this step's decision, in one launch."""
        controller, table = self._controller, self._settle()
        if found_inf is not None:
            found_inf = found_inf.to(controller.device, torch.float32, non_blocking=True)
        rows = [b.rows() for b in buckets if b.backend.addressed and b.device == controller.device]
        return controller.advance(table.numbers, table.effective, rows, found_inf)

    def _measure(
        self, buckets: list[Bucket], decision: Decision, grad_scale: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """What the sweep must know before: Σ g² per tensor, and the gradients' common factor."""
        clipping = self._max_grad_norm is not None
        squares = []
        for bucket in buckets:
            square = torch.zeros(len(bucket.entries), dtype=torch.float64, device=bucket.device)
            if clipping or decision.noise_possible:
                bucket.backend.sum_squares(bucket, decision.to(bucket.device), square, clipping)
            squares.append(square)
        if not buckets:
            return squares, None
        return squares, gradient_scale(squares, self._max_grad_norm, grad_scale)

    def _entries(self) -> Iterator[Entry]:
        """One entry per parameter with a gradient; all are checked before any state is made."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not support sparse gradients, got one of "
                        f"layout {param.grad.layout} for a parameter of shape "
                        f"{tuple(param.shape)}: use torch.optim.SparseAdam for that parameter, or "
                        "torch.nn.Embedding(..., sparse=False)"
                    )
        index = 0
        for g, group in enumerate(self.param_groups):
            for param in group["params"]:
                if param.grad is not None:
                    yield self._entry(param, group, g, index)
                index += 1

    def _entry(self, param: Tensor, group: dict[str, Any], g: int, index: int) -> Entry:
        state = self.state[param]
        self._init_state(param, group, state)
        return Entry(
            param=param,
            grad=param.grad,  # type: ignore[arg-type]
            exp_avg=state["exp_avg"],
            exp_avg_sq=state["exp_avg_sq"],
            max_exp_avg_sq=state["max_exp_avg_sq"] if group["amsgrad"] else None,
            step=state["step"],
            mu_product=state["mu_product"],
            group=g,
            index=index,
            offset=0,
            logical_numel=param.numel() * (2 if param.is_complex() else 1),
            maximize=bool(group["maximize"]),
        )

    def _init_state(self, param: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Make what is missing of a parameter's state; a checkpoint may have brought a part."""
        moments = self._moments if group["amsgrad"] else self._moments[:2]
        for name in moments:
            if name not in state:
                state[name] = zeros_like(param)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=param.device)
        if "mu_product" not in state:
            # From a checkpoint of torch.optim.AdamW, whose momentum is constant.
            step = state["step"].to(torch.float64)
            state["mu_product"] = torch.as_tensor(group["betas"][0]).to(step) ** step

    def _settle(self) -> GroupTable:
        """The groups' numbers, and the controller, beside the parameters, which may have moved."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        if first is not None:
            self._controller.to(controller_device(first.device))
        self._share_memory()
        if self._group_table is None or self._group_table.device != self._controller.device:
            self._group_table = GroupTable(self._controller.device)
        self._group_table.refresh(self.param_groups)
        return self._group_table

    def _warn_if_blind(self) -> None:
        every = self._control.every
        if every is None or self._controller.ever_observed or self._control.is_frozen:
            return
        self._unobserved_steps += 1
        if self._unobserved_steps == max(every, BLIND_STEPS):
            warnings.warn(
                f"{type(self).__name__} took {self._unobserved_steps} steps and was never told a "
                "loss, so nothing is adapted: call optimizer.observe(loss) before step(), or "
                "step(loss=loss), or pass Control.frozen() if that is what you want",
                UserWarning,
                stacklevel=4,
            )

    # Save and load

    def _adopt_loaded_memory(self) -> None:
        """A group that holds another memory was loaded: copy it into ours; addresses survive."""
        memory = self.param_groups[0].get(STATE_KEY) if self.param_groups else None
        if memory is not None and memory is not self._controller.memory:
            self._controller.adopt(memory)
        self._share_memory()

    def _share_memory(self) -> None:
        for group in self.param_groups:
            group[STATE_KEY] = self._controller.memory

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim's. A torch.optim.AdamW checkpoint loads too; the controller starts fresh.

        Raises:
            ValueError: The controller's memory is damaged or of another layout; nothing changed.
        """
        for group in state_dict["param_groups"]:
            if STATE_KEY in group:
                check_memory(group[STATE_KEY])
        super().load_state_dict(state_dict)
        self._restore_precision(state_dict)

    def _restore_precision(self, state_dict: dict[str, Any]) -> None:
        """A load casts state to the parameter's dtype; ours keeps the one it was made with."""
        saved = [p for group in state_dict["param_groups"] for p in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for key, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                loaded = self.state[param].get(name)
                dtype = self._state_dtype(param, name)
                if isinstance(loaded, Tensor) and dtype is not None and loaded.dtype != dtype:
                    self.state[param][name] = value.to(device=param.device, dtype=dtype)

    def _state_dtype(self, param: Tensor, name: str) -> torch.dtype | None:
        """The dtype that a state entry is kept in, or None for an entry that isn't ours."""
        if name == "mu_product":
            return torch.float64
        return moment_dtype(param) if name in self._moments else None

    def __getstate__(self) -> dict[str, Any]:
        adaptive = (self._control, self._max_grad_norm, self._seed, self._start)
        return super().__getstate__() | {"_adaptive": adaptive}

    def __setstate__(self, state: dict[str, Any]) -> None:
        adaptive = state.pop("_adaptive", None)
        super().__setstate__(state)
        if adaptive is not None:
            control, max_grad_norm, seed, start = adaptive
            self._prepare(control, max_grad_norm, seed)
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


def moment_dtype(param: Tensor) -> torch.dtype:
    """float32 beside parameters of half precision, the parameter's own dtype otherwise."""
    return torch.promote_types(param.dtype, torch.float32)


def zeros_like(param: Tensor) -> Tensor:
    """A moment of the parameter's shape and layout."""
    return torch.zeros_like(param, dtype=moment_dtype(param), memory_format=torch.preserve_format)


def _is_loss(result: Any) -> TypeGuard[Tensor | float]:
    """Whether a closure's result can be observed; AdamW takes closures that return anything."""
    if isinstance(result, Tensor):
        return result.numel() == 1 and not result.is_complex() and result.dtype != torch.bool
    return isinstance(result, (int, float)) and not isinstance(result, bool)
