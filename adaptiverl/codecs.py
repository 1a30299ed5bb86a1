"""How the elements of a parameter, a gradient or a slot are stored, and who can walk them.

The kernels' side of a codec is kernels/codecs.py. There is one way so far, exact: a dtype. A way
with numbers beside the elements, as 8-bit blocks have their scales, is a record of its own kind
here and one more case there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """One way to store a tensor's elements.

    Attributes:
        dtype: What they are stored in.
        walkers: Names of the backends that walk slots stored so.
    """

    dtype: torch.dtype
    walkers: frozenset[str]

    def zeros_beside(self, param: Tensor) -> Tensor:
        """A slot of a parameter's shape and layout, before the first step."""
        return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)

    def adopt(self, param: Tensor, value: Any) -> Tensor:
        """A loaded entry as it is stored; the tensor itself where it is already.

        Args:
            param: Whose slot it is; on its device.
            value: A tensor, or the number that a checkpoint made of a 0-d one.
        """
        return as_dtype(value, self.dtype, param.device)


EVERYWHERE, IN_PLAIN_TORCH = frozenset({"cpu", "triton", "reference"}), frozenset({"reference"})

CODECS = {
    codec.dtype: codec
    for codec in (
        Codec(torch.float32, EVERYWHERE),
        Codec(torch.float64, IN_PLAIN_TORCH),
        Codec(torch.complex64, IN_PLAIN_TORCH),
        Codec(torch.complex128, IN_PLAIN_TORCH),
    )
}
"""Those of slots, by what they are stored in"""


def codec_of_slot(param: Tensor) -> Codec:
    """A parameter's slots': float32 beside half precision, the parameter's own dtype otherwise."""
    return CODECS[torch.promote_types(param.dtype, torch.float32)]


def walks(backend: str, slots: Any) -> bool:
    """Whether a backend, by its name, walks all of these slots; None stands for one not kept."""
    return all(slot is None or backend in CODECS[slot.dtype].walkers for slot in slots)


def as_dtype(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor or a number as a tensor; the tensor itself where it is one of this dtype there."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.tensor(float(value), dtype=dtype, device=device)
