"""The noise in plain torch: Philox's words, and normals made of them (method.md#random-numbers)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox4x32(
    counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = ROUNDS
) -> tuple[Tensor, ...]:
    """Philox 4x32 (Salmon et al., 2011).

    Args:
        counter: Four int64 tensors that broadcast, each holding 32 unsigned bits.
        key: Two such tensors.
        rounds: How many.

    Returns:
        Four int64 tensors of 32 unsigned bits.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # An int64 product wraps modulo 2^64; its upper half is right once the sign is masked off.
        product0, product1 = c0 * ROUND_MULTIPLIERS[0], c2 * ROUND_MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK, (product1 >> 32) & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK, high0 ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def words_of(
    blocks: Tensor,
    key: Sequence[Tensor],
    index: int,
    step: Tensor,
    stream: int = 0,
    rounds: int = ROUNDS,
) -> tuple[Tensor, ...]:
    """The words of one parameter's blocks of elements in a step (method.md#random-numbers).

    Args:
        blocks: The blocks' places in the whole logical tensor, int64 [blocks].
        key: The seed's lower and upper 32 bits, 0-d int64 tensors.
        index: The parameter's place in the optimizer.
        step: The optimizer's step count, 0-d int64.
        stream: A bit of the counter's second word, which no block's place has.
        rounds: Of Philox.

    Returns:
        Four int64 tensors [blocks] of 32 unsigned bits.
    """
    place = torch.full_like(step, index)
    counter = (blocks & MASK, (blocks >> 32) | stream, place, step & MASK)
    return philox4x32(counter, key, rounds)


def box_muller(
    radius_bits: Tensor, angle_bits: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Two standard normals from two words of 32 bits: u in (0, 1], θ in [−π, π)."""
    u = ((radius_bits >> 8) + 1).to(dtype) * 2.0**-24
    signed = torch.where(angle_bits >= 2**31, angle_bits - 2**32, angle_bits)
    theta = (signed >> 8).to(dtype) * (math.pi * 2.0**-23)
    radius = torch.sqrt(-2 * torch.log(u))
    return radius * torch.cos(theta), radius * torch.sin(theta)


def normals(
    key: Sequence[Tensor], index: int, step: Tensor, offset: int, numel: int, dtype: torch.dtype
) -> Tensor:
    """ξ for the elements offset … offset + numel − 1 of one parameter, shape [numel].

    Args:
        key: The seed's lower and upper 32 bits, 0-d int64 tensors.
        index: The parameter's place in the optimizer.
        step: The optimizer's step count, 0-d int64.
        offset: The first element's place in the whole logical tensor, in C order.
        numel: How many elements.
        dtype: float32 or float64, in which the normals are computed.
    """
    first, last = offset >> 2, (offset + numel + 3) >> 2
    quads = torch.arange(first, last, dtype=torch.int64, device=step.device)
    words = words_of(quads, key, index, step)
    pairs = box_muller(words[0], words[1], dtype) + box_muller(words[2], words[3], dtype)
    start = offset - 4 * first
    return torch.stack(pairs, dim=1).flatten()[start : start + numel]
