"""Stochastic rounding in plain torch: the bits that decide, and how (method.md#storage).

A number between two neighbours becomes the upper one with the probability of its distance from the
lower one, so that what is lost in one step is made up for in others. The twins are
csrc/rounding.inc and `codecs.store`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from adaptiverl.kernels.normals import words_of
from torch import Tensor

HALVES = frozenset({torch.bfloat16, torch.float16})
"""What can be rounded by chance"""

ROUNDING_STREAM = 1 << 31
"""In the counter's second word, where the noise's quads never get to"""

ROUNDS = 7
"""Of Philox: as few as pass every test of BigCrush (Salmon et al., 2011)"""

OF_PARAM, OF_SLOTS = 1, (7189, 17681, 17681)
"""What an element's 16 random bits are multiplied by, modulo 2^16, before they round it"""


def random_bits(key: Sequence[Tensor], index: int, step: Tensor, offset: int, numel: int) -> Tensor:
    """16 random bits for each of the elements offset … offset + numel − 1, int64 [numel].

    Args:
        key: The seed's lower and upper 32 bits, 0-d int64 tensors.
        index: The parameter's place in the optimizer.
        step: The optimizer's step count, 0-d int64.
        offset: The first element's place in the whole logical tensor, in C order.
        numel: How many elements.
    """
    first, last = offset >> 3, (offset + numel + 7) >> 3
    octets = torch.arange(first, last, dtype=torch.int64, device=step.device)
    words = torch.stack(words_of(octets, key, index, step, ROUNDING_STREAM, ROUNDS), dim=1)
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=2)
    start = offset - 8 * first
    return halves.flatten()[start : start + numel]


def round_stochastically(values: Tensor, dtype: torch.dtype, bits: Tensor, factor: int) -> Tensor:
    """Numbers that `dtype` holds, as float32, their mean over all `bits` being the values.

    Args:
        values: float32.
        dtype: torch.bfloat16 or torch.float16.
        bits: 16 random bits each, int64 of the values' shape.
        factor: `OF_PARAM` or one of `OF_SLOTS`: no two of the products tell of each other.
    """
    bits = bits * factor & 0xFFFF
    if dtype == torch.bfloat16:
        return _cut(values, 16, bits)
    # float16 has 13 bits less, and below 2^-14 steps of 2^-24: those that float32 has 13 bits
    # above once 2^-14 is added.
    lift = ((values.abs() < 2.0**-14) * 2.0**-14).copysign(values)
    return _cut(values + lift, 13, bits >> 3) - lift


def _cut(values: Tensor, count: int, bits: Tensor) -> Tensor:
    """So many bits of float32 replaced by zeros, after `bits` were added there."""
    whole = values.contiguous().view(torch.int32)
    cut = ((whole + bits.to(torch.int32)) >> count << count).view(torch.float32)
    return cut.masked_fill(values.isnan(), torch.nan)
