"""Whether only gradients have moved since the last step, which is how training goes.

Every step asks this of every tensor, so it is written for the host's time: few calls per tensor,
through `map` or in C++, and no object made for any of them. It keeps no tensor alive: addresses and
kinds are plain numbers, and that a `step` is another a weak reference tells.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, compress, repeat
from typing import Any, NamedTuple

from torch import Tensor

from adaptiverl.kernels.block_tensor import stored
from adaptiverl.ranks.dtensors import any_dtensor, local_tensors, placed_alike
from adaptiverl.step.look import PLAIN_TYPES, Look, look, walk
from adaptiverl.step.state import PRODUCT, STEP

NoneType = type(None)
GRADIENT, OF_STEP = operator.attrgetter("grad"), operator.itemgetter(STEP)


class GroupKey(NamedTuple):
    """What of a group decides which backend takes its tensors, and how.

    Attributes:
        params: The group's list.
        slots: Names of the state entries that a step walks.
        maximize: The group's option.
    """

    params: list[Tensor]
    slots: tuple[str, ...]
    maximize: bool


@dataclass(slots=True)
class Fingerprint:
    """One step's tensors as numbers.

    Attributes:
        options: Of every group, and its count of parameters: a parameter has its group's numbers.
        present: Of every parameter whether it has a gradient; empty where all have. What follows
            is of those that have.
        params: The parameters.
        slots: Their slots.
        steps: Where the `step` entries lie: those of the last step, where its table says
            (`step.counters`). No two parameters share one, so these tell the parameters' order,
            too, where some are empty.
        gradients: The gradients.
        alike: No gradient needs negation, and each is laid out over the ranks as its parameter is.
        tensors: The parameters themselves, or this rank's shards of them.
        dtensors: Where some are DTensors, the parameters as the groups have them.
    """

    options: list[tuple[int, tuple[str, ...], bool]]
    present: list[bool]
    params: Look
    slots: Look
    steps: bytes
    gradients: Look
    alike: bool
    tensors: list[Tensor]
    dtensors: list[Tensor]

    @classmethod
    def of(cls, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]) -> Fingerprint | None:
        """None where something is missing, has no address, or is to be taken in.

        Args:
            groups: The optimizer's groups.
            state: The optimizer's state.
        """
        try:
            return cls._usual(groups, state) or cls._any(groups, state)
        except (KeyError, TypeError, RuntimeError, BufferError):
            # No such state yet, a number for a tensor, a layout without an address.
            return None

    @classmethod
    def _usual(cls, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]) -> Fingerprint | None:
        """As `_any`, where every parameter has a gradient and all are plain tensors; else None."""
        params = groups[0].params if len(groups) == 1 else _in_one_list(groups)
        try:
            states = _states_of(params, state)
        except KeyError:
            return None
        parts, first = [], 0
        for group in groups:
            end = first + len(group.params)
            here = states if end - first == len(states) else states[first:end]
            parts.append((group.params, here, group.slots))
            first = end
        walked = walk(parts)
        if walked is None:
            return None
        return cls(_options(groups), [], *walked, alike=True, tensors=params, dtensors=[])

    @classmethod
    def _any(cls, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]) -> Fingerprint | None:
        params, grads, present = _with_gradients(groups)
        states = _states_of(params, state)
        if any(map(operator.contains, states, repeat(PRODUCT))):
            return None
        slots = _slots_of(groups, present, states)
        alike = True
        dtensors: list[Tensor] = []
        if any_dtensor(params):
            dtensors = params
            alike = placed_alike(params, grads)
            params, grads = local_tensors(params), local_tensors(grads)
            slots = local_tensors(slots)
        if not set(map(type, slots)) <= set(PLAIN_TYPES):
            slots = list(map(stored, slots))
        if not set(map(type, grads)) <= set(PLAIN_TYPES):
            return None
        return cls(
            _options(groups),
            present,
            look(params),
            look(slots),
            look(list(map(OF_STEP, states))).addresses,
            look(grads),
            alike and not any(map(Tensor.is_neg, grads)),
            params,
            dtensors,
        )

    def without_tensors(self) -> Fingerprint:
        """What may be kept until the next step."""
        return replace(self, tensors=[], dtensors=[])

    def is_followed_by(self, other: Fingerprint) -> bool:
        """Whether nothing but gradients' addresses differs."""
        return (
            other.alike
            and self._has_as_many_freed(other)
            and self.present == other.present
            and self.params == other.params
            and self.slots == other.slots
            and self.steps == other.steps
            and self.gradients.kinds == other.gradients.kinds
            and self.options == other.options
        )

    def _has_as_many_freed(self, other: Fingerprint) -> bool:
        """Only empty gradients lie nowhere; one whose memory was taken away does, too."""
        before, now = self.gradients.numbers(), other.gradients.numbers()
        return all(now) or before.count(0) == now.count(0)


class Watch:
    """Tells that one of a step's `step` entries is gone, so that another may seem to be it.

    Args:
        groups: The optimizer's groups.
        state: The optimizer's state; it has what the groups' parameters with a gradient need.
    """

    def __init__(self, groups: Sequence[GroupKey], state: Mapping[Tensor, Any]) -> None:
        params, _, _ = _with_gradients(groups)
        self._gone: list[Any] = []
        steps = map(OF_STEP, _states_of(params, state))
        self._references = [weakref.ref(step, self._gone.append) for step in steps]

    @property
    def is_whole(self) -> bool:
        """All are still there."""
        return not self._gone


def _options(groups: Sequence[GroupKey]) -> list[tuple[int, tuple[str, ...], bool]]:
    return [(len(group.params), group.slots, group.maximize) for group in groups]


def _states_of(params: Sequence[Tensor], state: Mapping[Tensor, Any]) -> list[Any]:
    """Each parameter's state.

    A lookup by tensor calls `Tensor.__hash__`, which is Python. Once all parameters have stepped,
    the state mostly has their order, and is walked instead.

    Raises:
        KeyError: One has none; torch's dictionary would make it when it is asked for.
    """
    if len(state) == len(params) and all(map(operator.is_, state, params)):
        return list(state.values())
    states = list(map(state.get, params))
    if None in states:
        raise KeyError(states.index(None))
    return states


def _with_gradients(groups: Sequence[GroupKey]) -> tuple[list[Any], list[Any], list[bool]]:
    """The parameters that have a gradient, the gradients, and which they are; [] where all have."""
    params = groups[0].params if len(groups) == 1 else _in_one_list(groups)
    grads: list[Any] = list(map(GRADIENT, params))
    if NoneType not in set(map(type, grads)):
        return params, grads, []
    present = [grad is not None for grad in grads]
    return list(compress(params, present)), list(compress(grads, present)), present


def _in_one_list(groups: Sequence[GroupKey]) -> list[Tensor]:
    return list(chain.from_iterable(group.params for group in groups))


def _slots_of(groups: Sequence[GroupKey], present: list[bool], states: list[Any]) -> list[Tensor]:
    """What a step walks of the parameters' state, parameter by parameter.

    Every state is visited once: with thousands of them, none is in the cache.
    """
    slots: list[Tensor] = []
    first = begin = 0
    for group in groups:
        end = first + len(group.params)
        count = sum(present[first:end]) if present else end - first
        here = states if count == len(states) else states[begin : begin + count]
        if group.slots:
            slots += chain.from_iterable(map(_getter(group.slots), here))
        first, begin = end, begin + count
    return slots


@cache
def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What takes the entries of these names from a state."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda state: (state[names[0]],)
