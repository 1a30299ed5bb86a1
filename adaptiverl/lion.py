"""`AdaptiveLion`: Lion with α, μ and σ steered while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adaptiverl.algorithms import LION
from adaptiverl.codecs import Storage
from adaptiverl.control import Control
from adaptiverl.decay import Decay, check_decay
from adaptiverl.optimizer import AdaptiveOptimizer
from adaptiverl.ranks.group import ProcessGroup

DEFAULT_CONTROL = Control()


class AdaptiveLion(AdaptiveOptimizer):
    """Lion whose learning rate α, momentum μ (β₁) and gradient noise σ a controller steers.

    Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023) moves every element by
    the learning rate, in the direction of the sign of β₁·m + (1 − β₁)·g; m is the one number that
    it keeps of each. Its rates are three to ten times lower than AdamW's, and its weight decay as
    many times higher. Without observations it is that algorithm.

    Args:
        params: Parameters, or dicts of groups.
        lr: Where α starts (``mode="replace"``), or what α multiplies (``"modulate"``). Groups keep
            it; the rate in effect is ``knobs()["lr"]``.
        betas: μ starts at ``betas[0]``; ``betas[1]``, the decay of m, stays.
        weight_decay: Decoupled, scaled by the learning rate in effect (method.md#weight-decay).
        maximize: Ascend.
        capturable: Accepted; the step can be captured in a CUDA graph as it is.
        fused: Tells a `GradScaler` to leave unscaling and skipping to the step.
        control: Gains, bounds and cadence of the controller.
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
        ValueError: An argument out of range, a ``state_dtype`` that there is not, a start outside
            the bounds.
        TypeError: A control that is not a `Control`; a process group that is none.

    Examples:
        >>> optimizer = AdaptiveLion(model.parameters(), lr=1e-4)
        >>> loss.backward()
        >>> optimizer.observe(loss)
        >>> optimizer.step()
    """

    _algorithm = LION

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
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
        storage = Storage(state_dtype, stochastic_rounding, master_bits)
        self._prepare(control, max_grad_norm, seed, process_group, storage)
        defaults = {
            "lr": control.given_lr(lr),
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "fused": fused,
        }
        super().__init__(params, defaults)
        self._step_supports_amp_scaling = bool(fused)
        storage.check_parameters(type(self).__name__, self.param_groups)
        self._choose_decay(decay)

    @classmethod
    def _check_group(cls, group: dict[str, Any], control: Control) -> None:
        check_decay(group)
        if not group["lr"] >= 0:
            raise ValueError(f"lr must be at least 0, got {group['lr']!r}")
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
        for i, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise ValueError(f"betas[{i}] must be in [0, 1), got {beta!r}")
