"""The update rules, a record each: what a rule keeps of a parameter and reads of a group.

What a rule does with an element stands in three places under the rule's name: plain torch
(`kernels/reference.py`), Triton (`kernels/`) and C++ (`csrc/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptiverl.decay import signed
from adaptiverl.limits import BETA1, HEAVY_BALL, MomentumKind

Group = Mapping[str, Any]
"""A parameter group, as torch.optim keeps it"""

NESTEROV, DECOUPLED = 1, 2
"""SGD's options in its row of the group table, a sum of these: csrc/sgd.cpp, kernels/"""


@dataclass(frozen=True)
class Algorithm:
    """One update rule.

    Attributes:
        name: What the rule is called in every backend.
        momentum: What the knob μ is to it, and μ's default bounds.
        slots: Its state entries that have the parameter's shape, at most three; the columns
            `state0`, `state1`, `state2` of the address table, in this order.
        corrects_bias: It keeps `mu_product`, the product of a parameter's momenta.
        needed: Those of `slots` that a parameter's state has after a step, whatever its group says.
        options: Entries that every group of its checkpoints has, torch's oldest included.
        slots_of: Those of `slots` that a group needs.
        start_of: The μ that a group starts from.
        numbers_of: A group's row of the group table: lr, the starting μ, two numbers of the rule's
            own, weight decay (`decay.signed`). A number may be a tensor.
    """

    name: str
    momentum: MomentumKind
    slots: tuple[str, ...]
    corrects_bias: bool
    needed: tuple[str, ...]
    options: tuple[str, ...]
    slots_of: Callable[[Group], tuple[str, ...]]
    start_of: Callable[[Group], float]
    numbers_of: Callable[[Group], tuple[Any, Any, Any, Any, Any]]


def _adamw_slots(group: Group) -> tuple[str, ...]:
    return ADAMW.slots if group["amsgrad"] else ADAMW.slots[:2]


def _adamw_numbers(group: Group) -> tuple[Any, Any, Any, Any, Any]:
    beta1, beta2 = group["betas"]
    return group["lr"], beta1, beta2, group["eps"], signed(group)


ADAMW = Algorithm(
    name="adamw",
    momentum=BETA1,
    slots=("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    corrects_bias=True,
    needed=("exp_avg", "exp_avg_sq"),
    options=("lr", "betas", "eps", "weight_decay"),
    slots_of=_adamw_slots,
    start_of=lambda group: float(group["betas"][0]),
    numbers_of=_adamw_numbers,
)


def _sgd_slots(group: Group) -> tuple[str, ...]:
    return SGD.slots if group["momentum"] != 0 else ()


def _sgd_numbers(group: Group) -> tuple[Any, Any, Any, Any, Any]:
    decoupled = bool(group["decoupled_weight_decay"])
    options = NESTEROV * bool(group["nesterov"]) + DECOUPLED * decoupled
    decay = signed(group) if decoupled else group["weight_decay"]
    return group["lr"], group["momentum"], group["dampening"], options, decay


SGD = Algorithm(
    name="sgd",
    momentum=HEAVY_BALL,
    slots=("momentum_buffer",),
    corrects_bias=False,
    needed=(),
    options=("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    slots_of=_sgd_slots,
    start_of=lambda group: float(group["momentum"]),
    numbers_of=_sgd_numbers,
)


def _lion_numbers(group: Group) -> tuple[Any, Any, Any, Any, Any]:
    beta1, beta2 = group["betas"]
    return group["lr"], beta1, beta2, 0.0, signed(group)


LION = Algorithm(
    name="lion",
    momentum=BETA1,
    slots=("exp_avg",),
    corrects_bias=False,
    needed=("exp_avg",),
    options=("lr", "betas", "weight_decay"),
    slots_of=lambda group: ("exp_avg",),
    start_of=lambda group: float(group["betas"][0]),
    numbers_of=_lion_numbers,
)

ALGORITHMS = {algorithm.name: algorithm for algorithm in (ADAMW, SGD, LION)}
"""Every update rule that the backends have, by name"""
