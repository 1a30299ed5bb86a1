"""Where many tensors lie and what they are: all that an address table relies on, in one call."""

from __future__ import annotations

import importlib
import operator
from array import array
from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor

from adaptiverl.backends import operators  # noqa: F401 (the compiled module is there)

DTYPE = operator.attrgetter("dtype")


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
    return Look(*_compiled(EXCHANGE, tensors))


def _look_one_by_one(tensors: list[Any]) -> Look:
    """Where torch has no exchange API; the twin of csrc/look.cpp."""
    kinds = zip(
        map(Tensor.numel, tensors),
        map(DTYPE, tensors),
        map(Tensor.is_contiguous, tensors),
        strict=True,
    )
    return Look(array("q", map(Tensor.data_ptr, tensors)).tobytes(), tuple(kinds))


_compiled = importlib.import_module("adaptiverl._C").look


def _exchange() -> Any:
    """torch's DLPack exchange API, version 1; None where it has none."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        _compiled(capsule, [])
    except (TypeError, ValueError, NotImplementedError):
        return None
    return capsule


EXCHANGE = _exchange()
