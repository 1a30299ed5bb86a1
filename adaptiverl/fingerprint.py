"""Whether only gradients have moved since the last step, which is how training goes.

Every step asks this of every tensor, so it is written for the host's time: one call per question
and tensor, through `map`, and no object made for any of them. It sees addresses and sizes as plain
numbers, and so keeps no tensor alive.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor

from adaptiverl.distributed import any_dtensor, local_tensors, placed_alike

PLAIN_TYPES = {Tensor, torch.nn.Parameter}
"""Of gradients that lie where `data_ptr` says; a subclass may have no memory of its own."""


@dataclass(frozen=True)
class GroupKey:
    """What of a group decides which backend takes its tensors, and how.

    Attributes:
        params: The group's list.
        kept: Names of the state entries that a sweep walks or counts.
        maximize: The group's option.
    """

    params: list[Tensor]
    kept: tuple[str, ...]
    maximize: bool


@dataclass(frozen=True)
class Fingerprint:
    """One step's tensors as numbers.

    Attributes:
        options: Of every group, and its count of parameters: a parameter has its group's numbers.
        present: Of every parameter whether it has a gradient. What follows is of those that have.
        sizes: Elements of the parameters, then of the gradients.
        dtypes: The gradients'.
        params: The parameters' addresses.
        states: Addresses of their state. No two parameters share a `step`, so these tell the
            parameters' order, too, where some are empty.
        gradients: The gradients' addresses.
        plain: Everything here is contiguous, dense, in no need of negation, and every gradient is
            laid out over the ranks as its parameter is.
    """

    options: list[tuple[int, tuple[str, ...], bool]]
    present: list[bool]
    sizes: list[int]
    dtypes: list[torch.dtype]
    params: list[int]
    states: list[int]
    gradients: list[int]
    plain: bool

    @classmethod
    def of(cls, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]) -> Fingerprint | None:
        """None where something is missing, or has no address.

        Args:
            groups: The optimizer's groups.
            state: The optimizer's state.
        """
        params = list(chain.from_iterable(group.params for group in groups))
        grads: list[Any] = [p.grad for p in params]
        present = [grad is not None for grad in grads]
        if not all(present):
            params, grads = list(compress(params, present)), list(compress(grads, present))
        try:
            columns = list(_columns_of(groups, present, _states_of(params, state)))
            alike = True
            if any_dtensor(params):
                alike = placed_alike(params, grads)
                params, grads, *columns = map(local_tensors, (params, grads, *columns))
            return cls(
                options=[(len(group.params), group.kept, group.maximize) for group in groups],
                present=present,
                sizes=[*map(Tensor.numel, params), *map(Tensor.numel, grads)],
                dtypes=[grad.dtype for grad in grads],
                params=list(map(Tensor.data_ptr, params)),
                states=[address for c in columns for address in map(Tensor.data_ptr, c)],
                gradients=list(map(Tensor.data_ptr, grads)),
                plain=alike
                and set(map(type, grads)) <= PLAIN_TYPES
                and all(map(Tensor.is_contiguous, params))
                and all(map(Tensor.is_contiguous, grads))
                and not any(map(Tensor.is_neg, grads)),
            )
        except (KeyError, TypeError, RuntimeError):
            # No such state yet, a number for a tensor, a layout without an address.
            return None

    def is_followed_by(self, other: Fingerprint) -> bool:
        """Whether nothing but gradients' addresses differs."""
        return (
            other.plain
            and self.present == other.present
            and self.params == other.params
            and self.states == other.states
            and self.sizes == other.sizes
            and self.dtypes == other.dtypes
            and self.options == other.options
        )


def _states_of(params: Sequence[Tensor], state: Mapping[Tensor, Any]) -> list[Any]:
    """Each parameter's state.

    A lookup by tensor calls `Tensor.__hash__`, which is Python. Once all parameters have stepped,
    the state mostly has their order, and is walked instead.
    """
    if len(state) == len(params) and all(map(operator.is_, state, params)):
        return list(state.values())
    return [state[p] for p in params]


def _columns_of(groups: Sequence[GroupKey], present: list[bool], states: list[Any]) -> Any:
    """The state entries of each group's parameters, one list per name."""
    first = begin = 0
    for group in groups:
        end = first + len(group.params)
        count = sum(present[first:end])
        for name in group.kept:
            yield list(map(operator.itemgetter(name), states[begin : begin + count]))
        first, begin = end, begin + count
