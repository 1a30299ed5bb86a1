"""What each algorithm does with an element, in plain torch.

An algorithm is four functions of tensors, which change nothing. Each has a twin in Triton
(`kernels/adamw.py`) and in C++ (`csrc/adamw.cpp`): the same names, the same statement order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

NESTEROV, DECOUPLED = 1, 2
"""SGD's options, of which `hyper1` is a sum"""

Slot = Tensor | None
Slots = tuple[Slot, ...]


class Row(NamedTuple):
    """The numbers of one tensor, 0-d float64."""

    lr: Tensor
    """As this step uses it; so is `momentum`"""
    momentum: Tensor
    hyper0: Tensor
    """As the user set it; so are `hyper1` and `weight_decay`"""
    hyper1: Tensor
    weight_decay: Tensor
    decay_share: Tensor
    """What decoupled weight decay takes off"""
    step: Tensor
    """Which step of this tensor it is, from 1 on"""
    mu_product: Tensor | None
    """The product of the momenta of its steps; None where the algorithm does not keep it"""


def decay_share(group: Tensor, lr: Tensor, anneal: Tensor) -> Tensor:
    """What decoupled weight decay takes off a parameter (method.md#weight-decay).

    Args:
        group: float64 [5], a `layout.Group`. Below 0 its weight decay is independent of the
            controller: it goes by the rate that is there, and by what the cooldown leaves.
        lr: Of this step.
        anneal: The controller's.
    """
    own_lr, _, _, _, weight_decay = group.unbind()
    return torch.where(weight_decay < 0, own_lr * anneal * -weight_decay, lr * weight_decay)


class Elements(Protocol):
    """What an algorithm does with an element."""

    def scalars(self, row: Row) -> Any:
        """What all elements of a tensor share: a named tuple of numbers, rounded afterwards."""
        ...

    def gradient(self, s: Any, g: Tensor, p: Tensor) -> Tensor:
        """The gradient that enters the state, but for the noise."""
        ...

    def direction(self, s: Any, g: Tensor, *slots: Slot) -> Tensor:
        """The direction of the update before: what the alignment law compares `g` with."""
        ...

    def update(self, s: Any, g: Tensor, p: Tensor, *slots: Slot) -> tuple[Tensor, Slots]:
        """One step: the parameter, and the slots."""
        ...


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, 2019); slots m, v and, or not, its maximum."""

    class Scalars(NamedTuple):
        one_minus_momentum: Tensor
        beta2: Tensor
        one_minus_beta2: Tensor
        bias2_sqrt: Tensor
        eps: Tensor
        decay: Tensor
        step_size: Tensor

    def scalars(self, row: Row) -> Scalars:
        beta2 = row.hyper0
        assert row.mu_product is not None
        return self.Scalars(
            one_minus_momentum=1 - row.momentum,
            beta2=beta2,
            one_minus_beta2=1 - beta2,
            bias2_sqrt=(1 - beta2**row.step).sqrt(),
            eps=row.hyper1,
            decay=1 - row.decay_share,
            step_size=row.lr / (1 - row.mu_product),
        )

    def gradient(self, s: Scalars, g: Tensor, p: Tensor) -> Tensor:
        return g

    def direction(
        self, s: Scalars, g: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, max_exp_avg_sq: Slot
    ) -> Tensor:
        return exp_avg / (exp_avg_sq.sqrt() + s.eps)

    def update(
        self,
        s: Scalars,
        g: Tensor,
        p: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Slot,
    ) -> tuple[Tensor, Slots]:
        m = exp_avg + s.one_minus_momentum * (g - exp_avg)
        v = exp_avg_sq * s.beta2 + s.one_minus_beta2 * (g * g)
        v_hat = v if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq, v)
        denominator = v_hat.sqrt() / s.bias2_sqrt + s.eps
        p = p * s.decay - s.step_size * (m / denominator)
        return p, (m, v, v_hat)


class SGD:
    """As torch.optim.SGD has momentum; one slot, the buffer, or none."""

    class Scalars(NamedTuple):
        weight_decay: Tensor
        momentum: Tensor
        one_minus_dampening: Tensor
        decay: Tensor
        lr: Tensor
        nesterov: Tensor

    def scalars(self, row: Row) -> Scalars:
        dampening, options = row.hyper0, row.hyper1
        decoupled = options >= DECOUPLED
        # The first gradient goes undampened into a buffer of zeros: it is the buffer then.
        first = row.step <= 1
        return self.Scalars(
            weight_decay=torch.where(decoupled, 0, row.weight_decay),
            momentum=row.momentum,
            one_minus_dampening=torch.where(first, 1, 1 - dampening),
            decay=torch.where(decoupled, 1 - row.decay_share, 1),
            lr=row.lr,
            nesterov=options - DECOUPLED * decoupled,
        )

    def gradient(self, s: Scalars, g: Tensor, p: Tensor) -> Tensor:
        return torch.where(s.weight_decay != 0, g + s.weight_decay * p, g)

    def direction(self, s: Scalars, g: Tensor, momentum_buffer: Slot) -> Tensor:
        return torch.zeros_like(g) if momentum_buffer is None else momentum_buffer

    def update(
        self, s: Scalars, g: Tensor, p: Tensor, momentum_buffer: Slot
    ) -> tuple[Tensor, Slots]:
        d, b = g, momentum_buffer
        if b is not None:
            b = b * s.momentum + s.one_minus_dampening * g
            d = torch.where(s.nesterov == NESTEROV, g + s.momentum * b, b)
        p = p * s.decay - s.lr * d
        return p, (b,)


class Lion:
    """Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023); one slot, m."""

    class Scalars(NamedTuple):
        momentum: Tensor
        one_minus_momentum: Tensor
        beta2: Tensor
        one_minus_beta2: Tensor
        decay: Tensor
        lr: Tensor

    def scalars(self, row: Row) -> Scalars:
        return self.Scalars(
            momentum=row.momentum,
            one_minus_momentum=1 - row.momentum,
            beta2=row.hyper0,
            one_minus_beta2=1 - row.hyper0,
            decay=1 - row.decay_share,
            lr=row.lr,
        )

    def gradient(self, s: Scalars, g: Tensor, p: Tensor) -> Tensor:
        return g

    def direction(self, s: Scalars, g: Tensor, exp_avg: Tensor) -> Tensor:
        return exp_avg

    def update(self, s: Scalars, g: Tensor, p: Tensor, exp_avg: Tensor) -> tuple[Tensor, Slots]:
        c = s.momentum * exp_avg + s.one_minus_momentum * g
        # A NaN is its own sign: the parameter shows it.
        sign = torch.where(c.isnan(), c, c.sign())
        p = p * s.decay - s.lr * sign
        return p, (s.beta2 * exp_avg + s.one_minus_beta2 * g,)


ELEMENTS: dict[str, Any] = {"adamw": AdamW(), "sgd": SGD(), "lion": Lion()}
"""By the algorithm's name"""
