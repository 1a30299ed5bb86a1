"""Where many tensors lie and what they are: all that an address table relies on, in one call."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaptiverl.backends.operators import COMPILED

DTYPE = operator.attrgetter("dtype")
PLAIN_TYPES = (Tensor, torch.nn.Parameter)
"""Of tensors that lie where `data_ptr` says; a subclass may have no memory of its own"""


class Look(NamedTuple):
    """Tensors as numbers.

    Attributes:
        addresses: int64 each.
        kinds: Equal where all have as many elements, of the same dtype, and are contiguous or not
            alike.
    """

    addresses: bytes
    kinds: Hashable

    def numbers(self) -> array[int]:
        """The addresses."""
        return array("q", self.addresses)


def look(tensors: list[Any]) -> Look:
    """What these are now.

    Raises:
        RuntimeError, TypeError, BufferError: One has no address: a number, a fake tensor.
    """
    if EXCHANGE is None:
        return _look_one_by_one(tensors)
    return Look(*COMPILED.look(EXCHANGE, tensors))


class Walk(NamedTuple):
    """Parameters and what belongs to them, as numbers.

    Attributes:
        params: The parameters.
        slots: Entries of their state, parameter by parameter.
        steps: int64 each: where their `step` entries lie.
        gradients: Their gradients.
    """

    params: Look
    slots: Look
    steps: bytes
    gradients: Look


def walk(parts: Sequence[tuple[list[Any], list[Any], tuple[str, ...]]]) -> Walk | None:
    """What the groups' parameters are now, each visited once: in a cache, that is what counts.

    Args:
        parts: Of every group: its parameters, their states, and the names of the slots.

    Returns:
        None where something is unusual: who asks looks closer then. A gradient or an entry is
        missing or of another type, a product is to be taken in, a gradient is to be negated.

    Raises:
        RuntimeError, BufferError: A tensor has no address.
    """
    if EXCHANGE is None:
        return None
    walked = []
    for part in parts:
        numbers = COMPILED.walk(EXCHANGE, *part, PLAIN_TYPES)
        if numbers is None:
            return None
        walked.append(numbers)
    if len(walked) != 1:
        walked = [tuple(map(b"".join, zip(*walked, strict=True)))]
    ((p_addresses, p_kinds, s_addresses, s_kinds, steps, g_addresses, g_kinds),) = walked
    return Walk(
        Look(p_addresses, p_kinds),
        Look(s_addresses, s_kinds),
        steps,
        Look(g_addresses, g_kinds),
    )


def _look_one_by_one(tensors: list[Any]) -> Look:
    """Where torch has no exchange API, or nothing is compiled; the twin of csrc/look.cpp."""
    kinds = zip(
        map(Tensor.numel, tensors),
        map(DTYPE, tensors),
        map(Tensor.is_contiguous, tensors),
        strict=True,
    )
    return Look(array("q", map(Tensor.data_ptr, tensors)).tobytes(), tuple(kinds))


def _exchange() -> Any:
    """torch's DLPack exchange API, version 1; None where it has none, or nobody to use it."""
    if COMPILED is None:
        return None
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        COMPILED.look(capsule, [])
    except (TypeError, ValueError, NotImplementedError):
        return None
    return capsule


EXCHANGE = _exchange()
