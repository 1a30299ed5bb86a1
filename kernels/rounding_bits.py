"""16 random bits for every element, for stochastic rounding: the twin of `rounding.random_bits`."""

from __future__ import annotations

import triton
import triton.language as tl
from adaptiverl.kernels import rounding
from adaptiverl.kernels.philox import philox4x32

STREAM = tl.constexpr(rounding.ROUNDING_STREAM)
ROUNDS = tl.constexpr(rounding.ROUNDS)


@triton.jit
def _words(octets, counter):
    index, step, k0, k1 = counter
    high = (octets >> 32).to(tl.uint32) | STREAM
    return philox4x32(octets.to(tl.uint32), high, index, step, k0, k1, ROUNDS)


@triton.jit
def _halves(words):
    # One more dimension: the lower half, which comes first in memory, and the upper one.
    return tl.join(words & 0xFFFF, words >> 16)


@triton.jit
def octet_bits(element, counter, COUNT: tl.constexpr):
    """Of the COUNT elements from `element` on, which opens an octet; uint32 [COUNT].

    A thread that holds eight neighbours draws one block of words for them.
    """
    octets = (element >> 3) + tl.arange(0, COUNT // 8)
    w0, w1, w2, w3 = _words(octets, counter)
    # [octet, second bit of the word's number, first bit, half]
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return _halves(words).reshape(COUNT)


@triton.jit
def quad_bits(element, counter, COUNT: tl.constexpr):
    """The same where a thread holds four neighbours: two threads draw the same block."""
    quads = (element >> 2) + tl.arange(0, COUNT // 4)
    w0, w1, w2, w3 = _words(quads >> 1, counter)
    second = (quads & 1) != 0
    words = tl.join(tl.where(second, w2, w0), tl.where(second, w3, w1))
    return _halves(words).reshape(COUNT)


@triton.jit
def element_bits(elements, counter):
    """Of any elements, a block for each: what a shard that opens inside an octet needs."""
    w0, w1, w2, w3 = _words(elements >> 3, counter)
    odd = (elements & 2) != 0
    first = tl.where(odd, w1, w0)
    second = tl.where(odd, w3, w2)
    word = tl.where((elements & 4) != 0, second, first)
    return tl.where((elements & 1) != 0, word >> 16, word & 0xFFFF)
