"""`AdaptiveAdamW`: torch.optim.AdamW with α, μ and σ steered while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adaptiverl.control import Control
from adaptiverl.dispatch import Bucket, Scalars
from adaptiverl.optimizer import AdaptiveOptimizer, moment_dtype
from adaptiverl.tables import Entry

DEFAULT_CONTROL = Control()


class AdaptiveAdamW(AdaptiveOptimizer, torch.optim.AdamW):
    """AdamW whose learning rate α, momentum μ (β₁) and gradient noise σ a controller steers.

    Takes every argument of `torch.optim.AdamW`, in its place; without observations it is AdamW.

    Args:
        params: Parameters, or dicts of groups.
        lr: Where α starts (``mode="replace"``), or what α multiplies (``"modulate"``).
        betas: μ starts at ``betas[0]``; ``betas[1]`` stays.
        eps: Added to the denominator.
        weight_decay: Decoupled, scaled by the learning rate in effect (decisions.md 19).
        amsgrad: Use the maximum of the second moments so far.
        maximize: Ascend.
        foreach: Accepted; the step is fused either way.
        capturable: As in torch: needed to capture a step in a CUDA graph.
        differentiable: Must be False.
        fused: As in torch: also tells a `GradScaler` to leave unscaling and skipping to the step.
        control: Gains, bounds and cadence of the controller.
        max_grad_norm: Clip the gradients' global norm to this, before the noise (decisions.md 18).
        seed: Of the noise, 0 to 2^64 − 1.

    Raises:
        ValueError: An argument out of range, ``differentiable=True``, or a start outside the bounds.
        TypeError: A control that is not a `Control`.

    Example:
        >>> optimizer = AdaptiveAdamW(model.parameters(), lr=3e-4)
        >>> loss.backward()
        >>> optimizer.observe(loss)
        >>> optimizer.step()
    """

    _moments = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
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
    ) -> None:
        if differentiable:
            raise ValueError(
                "AdaptiveAdamW does not support differentiable=True: its step is one fused, in-place "
                "sweep that autograd cannot follow. Use torch.optim.AdamW where you differentiate "
                "through the optimizer"
            )
        self._prepare(control, max_grad_norm, seed)
        super().__init__(
            params,
            lr=lr,
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

    def _entry(self, param: Tensor, group: dict[str, Any], g: int, index: int) -> Entry:
        state = self.state[param]
        if "exp_avg" not in state:
            self._init_state(param, state)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = _zeros_like(param)
        if "mu_product" not in state:
            # A checkpoint of torch.optim.AdamW: its momentum was constant so far (decisions.md 16).
            step = state["step"].to(device=param.device, dtype=torch.float64)
            state["mu_product"] = torch.as_tensor(group["betas"][0]) ** step
        state["step"] = state["step"].to(param.device)
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

    @staticmethod
    def _init_state(param: Tensor, state: dict[str, Any]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        state["exp_avg"] = _zeros_like(param)
        state["exp_avg_sq"] = _zeros_like(param)
        state["mu_product"] = torch.ones((), dtype=torch.float64, device=param.device)

    def _sweep(
        self, bucket: Bucket, scalars: Scalars, squares: Tensor, gradient_scale: Tensor | None
    ) -> None:
        bucket.backend.adamw_step(bucket, scalars, squares, gradient_scale)


def _zeros_like(param: Tensor) -> Tensor:
    return torch.zeros_like(param, dtype=moment_dtype(param), memory_format=torch.preserve_format)
