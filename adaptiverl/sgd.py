"""`AdaptiveSGD`: torch.optim.SGD with α, μ and σ steered while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adaptiverl.algorithms import SGD
from adaptiverl.checkpoint import complete_count
from adaptiverl.codecs import Storage
from adaptiverl.control import Control
from adaptiverl.decay import INDEPENDENT, Decay, check_decay
from adaptiverl.optimizer import AdaptiveOptimizer
from adaptiverl.ranks.group import ProcessGroup

DEFAULT_CONTROL = Control()


class AdaptiveSGD(AdaptiveOptimizer, torch.optim.SGD):
    """SGD whose learning rate α, momentum μ and gradient noise σ a controller steers.

    Takes every argument of `torch.optim.SGD`, in its place; without observations it is SGD.

    μ is the momentum itself. Its default bounds are (0.85, 0.95), widened to hold the start, and so
    tighter than AdamW's (0.85, 0.99): SGD's buffer sums the gradients instead of averaging them, so
    in a lasting direction a step is α/(1−μ) long. Between those bounds μ alone makes it up to
    twice as long, or two thirds as long, as at 0.9; up to 0.99 it would be ten times as long, and
    nothing in α's law would know of it. A group whose momentum is 0 has no buffer and stays so.

    Args:
        params: Parameters, or dicts of groups.
        lr: Where α starts (``mode="replace"``), or what α multiplies (``"modulate"``). Groups keep
            it; the rate in effect is ``knobs()["lr"]``.
        momentum: Where μ starts, in [0, 1).
        dampening: 1 − the weight of a gradient that enters the buffer; the first enters whole.
        weight_decay: Added to the gradient, as in torch, or decoupled.
        nesterov: Nesterov's momentum.
        maximize: Ascend.
        foreach: Accepted; the step is fused either way.
        differentiable: Must be False.
        fused: As in torch: also tells a `GradScaler` to leave unscaling and skipping to the step.
        decoupled_weight_decay: Shrink the parameter by lr·weight_decay, with the learning rate in
            effect (method.md#weight-decay), instead of adding the decay to the gradient: then it
            passes through no momentum.
        control: The law, its gains, bounds and cadence: `Control()` follows the loss,
            `Control.find_lr(horizon=steps)` finds the learning rate itself.
        max_grad_norm: Clip the gradients' global norm to this, before decay and noise
            (method.md#clipping).
        seed: Of the noise, 0 to 2^64 − 1.
        process_group: The ranks whose observations are averaged, so that all have the same knobs
            (`adaptiverl.ranks.group.Ranks`): ``None``, all of torch.distributed's world where it is
            initialised; ``False``, this rank alone.
        state_dtype: What the state of a parameter's shape is kept in: torch.float32,
            torch.bfloat16, which takes half the memory (method.md#storage), or torch.int8, which
            takes a quarter (method.md#blocks); tensors below 4,096 elements stay float32 there.
        stochastic_rounding: Parameters in bfloat16 or float16 are rounded by chance, so that
            updates below their last bit are not lost; False rounds to nearest.
        master_bits: 8 keeps an error term of 8 bits beside each parameter in bfloat16, which makes
            24 bits of its 16 (method.md#error-term). Other parameters have none.
        decay: ``"coupled"``: weight decay is scaled by the learning rate in effect, as in torch.
            ``"independent"``: by the group's own ``lr``, a scheduler's included, and the cooldown,
            whatever the controller makes of the rate; with
            ``decoupled_weight_decay=True`` alone (method.md#weight-decay). A group may choose
            for itself.

    Raises:
        ValueError: An argument out of range, a ``state_dtype`` that there is not,
            ``differentiable=True``, a start outside the bounds, ``master_bits`` without a parameter
            in bfloat16.
        TypeError: A control that is not a `Control`; a process group that is none.

    Examples:
        >>> optimizer = AdaptiveSGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> loss.backward()
        >>> optimizer.observe(loss)
        >>> optimizer.step()
    """

    _algorithm = SGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        control: Control = DEFAULT_CONTROL,
        max_grad_norm: float | None = None,
        seed: int = 0,
        process_group: ProcessGroup = None,
        state_dtype: torch.dtype = torch.float32,
        stochastic_rounding: bool = True,
        master_bits: int | None = None,
        decay: Decay = "coupled",
    ) -> None:
        if differentiable:
            raise ValueError(
                "AdaptiveSGD does not support differentiable=True: its step is one fused sweep, "
                "in place, that autograd cannot follow. Use torch.optim.SGD where you "
                "differentiate through the optimizer"
            )
        storage = Storage(state_dtype, stochastic_rounding, master_bits)
        self._prepare(control, max_grad_norm, seed, process_group, storage)
        super().__init__(
            params,
            lr=control.given_lr(lr),
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults["decoupled_weight_decay"] = decoupled_weight_decay
        self._fill_in()
        storage.check_parameters(type(self).__name__, self.param_groups)
        self._choose_decay(decay)

    @classmethod
    def _check_group(cls, group: dict[str, Any], control: Control) -> None:
        check_decay(group)
        # torch's constructor has not heard of this option yet, nor have its checkpoints.
        decoupled = group.get("decoupled_weight_decay", True)
        if group.get("decay") == INDEPENDENT and not decoupled:
            raise ValueError(
                "decay='independent' needs decoupled_weight_decay=True in AdaptiveSGD, got False: "
                "what is added to the gradient is multiplied by the learning rate in effect"
            )
        momentum = group["momentum"]
        if not 0 <= momentum < 1:
            raise ValueError(
                f"momentum must be in [0, 1), got {momentum!r}: the controller moves its logit"
            )
        if momentum == 0 and control.reads_gradients:
            raise ValueError(
                f"momentum must be above 0 with Control(law={control.law!r}), got {momentum!r}: "
                "that law compares the gradient with the momentum buffer, and there is none. Use "
                "momentum=0.9, or law='loss'"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fill_in()

    def _fill_in(self) -> None:
        """The option that torch's groups and checkpoints lack is what the constructor was given."""
        for group in self.param_groups:
            group.setdefault(
                "decoupled_weight_decay", self.defaults.get("decoupled_weight_decay", False)
            )

    def _check_capture(self) -> None:
        """torch.optim.SGD has no `capturable` to ask for; the step can be captured as it is."""

    @classmethod
    def _complete_state(
        cls, storage: Storage, param: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        complete_count(group, state)
        super()._complete_state(storage, param, group, state)
