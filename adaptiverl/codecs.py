"""How the elements of a parameter, a gradient or a slot are stored, and who can walk them.

The kernels' side of a codec is kernels/codecs.py and csrc/codecs.h (method.md#storage). A way with
numbers beside the elements, as 8-bit blocks would have their scales, is a record of its own kind
here and one more case there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptiverl.kernels.rounding import HALVES


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
        Codec(torch.bfloat16, EVERYWHERE),
        Codec(torch.float64, IN_PLAIN_TORCH),
        Codec(torch.complex64, IN_PLAIN_TORCH),
        Codec(torch.complex128, IN_PLAIN_TORCH),
    )
}
"""Those of slots, by what they are stored in"""


STATE_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Storage:
    """How one optimizer stores its numbers (method.md#storage).

    Attributes:
        state_dtype: Of the state that has a parameter's shape, one of `STATE_DTYPES`.
        stochastic_rounding: Parameters of 16 bits are rounded by chance.

    Raises:
        ValueError: A dtype that state is not kept in.
        TypeError: Something that is no dtype, or neither True nor False.
    """

    state_dtype: torch.dtype = torch.float32
    stochastic_rounding: bool = True

    def __post_init__(self) -> None:
        known = " or ".join(map(str, STATE_DTYPES))
        if not isinstance(self.state_dtype, torch.dtype):
            raise TypeError(
                f"state_dtype must be {known}, got {self.state_dtype!r} of type "
                f"{type(self.state_dtype).__name__}"
            )
        if self.state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype must be {known}, got {self.state_dtype}")
        if not isinstance(self.stochastic_rounding, bool):
            raise TypeError(
                f"stochastic_rounding must be True or False, got {self.stochastic_rounding!r}"
            )

    def codec_of_slot(self, param: Tensor) -> Codec:
        """A parameter's slots': float64 and complex parameters keep state of their own dtype."""
        own = torch.promote_types(param.dtype, torch.float32)
        return CODECS[self.state_dtype if own == torch.float32 else own]

    def rounds_by_chance(self, param: Tensor) -> bool:
        """Whether a step rounds this parameter stochastically."""
        return self.stochastic_rounding and param.dtype in HALVES


def walks(backend: str, slots: Any) -> bool:
    """Whether a backend, by its name, walks all of these slots; None stands for one not kept."""
    return all(slot is None or backend in CODECS[slot.dtype].walkers for slot in slots)


def as_dtype(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor or a number as a tensor; the tensor itself where it is one of this dtype there."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    return torch.tensor(float(value), dtype=dtype, device=device)
