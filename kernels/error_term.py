"""A bfloat16 parameter and its error term of 8 bits, in plain torch (method.md#error-term).

Together they are 24 of float32's 32 bits: the parameter is the upper 16, rounded to nearest, and
the error term is the next 8 as a signed number. The twins are csrc/rounding.inc and
`codecs.store_master`.
"""

from __future__ import annotations

import torch
from torch import Tensor

DROPPED = 8
"""Bits of float32 that are not kept"""
INFINITY, MAGNITUDE = 0x7F800000, 0x7FFFFFFF
"""As float32 has them"""


def decode(param: Tensor, error: Tensor) -> Tensor:
    """The 24-bit numbers, float32.

    Args:
        param: bfloat16; 0 and what is not finite stay what they are, whatever the error term says.
        error: int8, of the parameter's shape.
    """
    whole = param.float().contiguous().view(torch.int32)
    term = error.contiguous().to(torch.int32) << DROPPED
    return torch.where(_stands_alone(whole), whole, whole + term).view(torch.float32)


def encode(values: Tensor, bits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16, and the error term beside it.

    Args:
        values: float32; rounded to 24 bits.
        bits: 16 random bits each, the upper 8 of which round, int64 of the values' shape; None
            rounds to nearest, ties to even.

    Returns:
        bfloat16 and int8, of the values' shape.
    """
    whole = values.contiguous().view(torch.int32)
    if bits is None:
        addend = (whole >> DROPPED & 1) + ((1 << (DROPPED - 1)) - 1)
    else:
        addend = (bits >> (16 - DROPPED)).to(torch.int32)
    kept = (whole + addend) >> DROPPED
    # Half of an error term's range more, and cut off: so the 8 bits below are its signed number.
    nearest = (kept + 128) >> 8 << 16
    error = ((kept + 128 & 0xFF) - 128).masked_fill(_stands_alone(nearest), 0)
    nan = values.isnan()
    param = nearest.view(torch.float32).masked_fill(nan, torch.nan)
    return param.to(torch.bfloat16), error.masked_fill(nan, 0).to(torch.int8)


def _stands_alone(whole: Tensor) -> Tensor:
    """0 and what is not finite, by float32's bits: these have no error term."""
    magnitude = whole & MAGNITUDE
    return (magnitude == 0) | (magnitude >= INFINITY)
