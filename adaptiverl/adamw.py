"""`AdaptiveAdamW`: torch.optim.AdamW with α, μ and σ steered while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adaptiverl.algorithms import ADAMW
from adaptiverl.codecs import Storage
from adaptiverl.control import Control
from adaptiverl.decay import Decay, check_decay
from adaptiverl.optimizer import AdaptiveOptimizer
from adaptiverl.ranks.group import ProcessGroup

DEFAULT_CONTROL = Control()


class AdaptiveAdamW(AdaptiveOptimizer, torch.optim.AdamW):
    """AdamW whose learning rate α, momentum μ (β₁) and gradient noise σ a controller steers.

    Takes every argument of `torch.optim.AdamW`, in its place; without observations it is AdamW.

    Args:
        params: Parameters, or dicts of groups.
        lr: Where α starts (``mode="replace"``), or what α multiplies (``"modulate"``). Groups keep
            it; the rate in effect is ``knobs()["lr"]``.
        betas: μ starts at ``betas[0]``; ``betas[1]`` stays.
        eps: Added to the denominator.
        weight_decay: Decoupled, scaled by the learning rate in effect (method.md#weight-decay).
        amsgrad: Use the maximum of the second moments so far.
        maximize: Ascend.
        foreach: Accepted; the step is fused either way.
        capturable: As in torch: needed to capture a step in a CUDA graph.
        differentiable: Must be False.
        fused: As in torch: also tells a `GradScaler` to leave unscaling and skipping to the step.
        control: The law, its gains, bounds and cadence: `Control()` follows the loss,
            `Control.find_lr(horizon=steps)` finds the learning rate itself.
        max_grad_norm: Clip the gradients' global norm to this, before the noise
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
            whatever the controller makes of the rate (method.md#weight-decay). A group may
            choose for itself.

    Raises:
        ValueError: An argument out of range, a ``state_dtype`` that there is not, ``amsgrad=True``
            beside torch.int8, ``differentiable=True``, a start outside the bounds,
            a group with ``decoupled_weight_decay=False``, ``master_bits`` without a parameter in
            bfloat16.
        TypeError: A control that is not a `Control`; a process group that is none.

    Examples:
        >>> optimizer = AdaptiveAdamW(model.parameters(), lr=3e-4)
        >>> loss.backward()
        >>> optimizer.observe(loss)
        >>> optimizer.step()
    """

    _algorithm = ADAMW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        control: Control = DEFAULT_CONTROL,
        max_grad_norm: float | None = None,
        seed: int = 0,
        process_group: ProcessGroup = None,
        state_dtype: torch.dtype = torch.float32,
        stochastic_rounding: bool = True,
        master_bits: int | None = None,
        decay: Decay = "coupled",
    ) -> None:
        if differentiable and not fused:  # both together torch refuses itself
            raise ValueError(
                "AdaptiveAdamW does not support differentiable=True: its step is one fused sweep, "
                "in place, that autograd cannot follow. Use torch.optim.AdamW where you "
                "differentiate through the optimizer"
            )
        storage = Storage(state_dtype, stochastic_rounding, master_bits)
        self._prepare(control, max_grad_norm, seed, process_group, storage)
        super().__init__(
            params,
            lr=control.given_lr(lr),
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        storage.check_parameters(type(self).__name__, self.param_groups)
        self._choose_decay(decay)

    @classmethod
    def _check_group(cls, group: dict[str, Any], control: Control) -> None:
        check_decay(group)
        for i, beta in enumerate(group["betas"]):
            # The host might wait for a tensor; torch looks at those of the constructor.
            if not isinstance(beta, Tensor) and not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] must be in [0, 1), got {beta!r}")
        # What loads is decoupled whatever it was, as in torch.optim.AdamW.
        if not group.get("decoupled_weight_decay", True):
            raise ValueError(
                "AdaptiveAdamW's weight decay is decoupled, got a group with "
                "decoupled_weight_decay=False, which is torch.optim.Adam's: leave it out; "
                "where weight_decay is 0 both are the same"
            )
