"""Counter-based standard normals: Philox 4x32-10 and Box-Muller, every word used.

See method.md#random-numbers.

How exact the normals are. The uniforms are bit for bit those of the other backends. From there on
only two operations are approximate on a GPU: the square root (relative error 2^-23) and the
logarithm (absolute error 2^-22 in (0.5, 2), relative beyond; both from the PTX manual). An absolute
error is useless where u is nearly 1, so there the logarithm is a polynomial in 1 - u, which is
exact. Sine and cosine are one polynomial after a reduction to [-1/2, 1/2] half turns that is exact
in float32. So a normal is right to 4.1e-6 of itself, even beside a zero of the sine, where a
float32 angle is not; `tests/test_kernels.py` goes through every u and every angle with the
logarithm's worst case put on top.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Triton's interpreter knows no PTX: there the approximate operations are NumPy's"""

NEAR_ONE = tl.constexpr(2.0**-5)
"""Below this 1 - u, the logarithm is the polynomial"""

# Minimax for relative error: -2 ln(1 - d) = d (2 + d (1 + d LOG)) to 8.4e-7 on (0, 2^-5].
LOG = tl.constexpr(0.6809617884602654)

# Minimax for relative error: sin(πx) = x (S0 + x² (S1 + x² (S2 + x² S3))) to 9.4e-7, |x| <= 1/2.
S0 = tl.constexpr(3.1415897033211513)
S1 = tl.constexpr(-5.167367812000223)
S2 = tl.constexpr(2.5436049516808836)
S3 = tl.constexpr(-0.5583960299663239)


@triton.jit
def sqrt(x):
    """√x of float32, where x is 0 or no less than 2^-126, to a relative 2^-23."""
    if INTERPRETED:
        result = tl.sqrt(x)
    else:
        result = tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def reciprocal(x):
    """1/x of float32, where |x| is 0 or in [2^-126, 2^126], to one unit in the last place."""
    if INTERPRETED:
        result = 1.0 / x
    else:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def _log2(x):
    if INTERPRETED:
        result = tl.log2(x)
    else:
        result = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def _sin_half_turns(x):
    # sin(πx) for |x| <= 1/2
    square = x * x
    return x * (S0 + square * (S1 + square * (S2 + square * S3)))


@triton.jit
def _multiply(factor: tl.constexpr, word):
    # Lower and upper half of the 64-bit product. Written as `word.to(uint64) * factor` alone, LLVM
    # tears the products of some rounds into two instructions each.
    if INTERPRETED:
        product = word.to(tl.uint64) * factor
        low, high = product.to(tl.uint32), (product >> 32).to(tl.uint32)
    else:
        low, high = tl.inline_asm_elementwise(
            "{.reg .b64 product; mul.wide.u32 product, $2, $3; mov.b64 {$0, $1}, product;}",
            "=r,=r,r,n",
            [word, factor],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    return low, high


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr = 10):
    """Four random words of a counter: Philox 4x32 (Salmon et al., 2011).

    Args:
        c0: The counter's lowest word, uint32; this and the others broadcast.
        c1: Its second word.
        c2: Its third word.
        c3: Its highest word.
        k0: The key's low word, a uint32 scalar.
        k1: Its high word.
        ROUNDS: How many.

    Returns:
        Four uint32 values.
    """
    for _ in tl.static_range(ROUNDS):
        low0, high0 = _multiply(0xD2511F53, c0)
        low1, high1 = _multiply(0xCD9E8D57, c2)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def polar(radius_word, angle_word):
    """Box and Muller's radius, and the cosine and sine of its angle.

    Args:
        radius_word: uint32; u = ((word >> 8) + 1)·2^-24 in (0, 1], radius = √(-2 ln u).
        angle_word: uint32; s = (int32(word) >> 8)·2^-23 in [-1, 1), θ = πs.

    Returns:
        radius, cos θ, sin θ in float32.
    """
    u = ((radius_word >> 8) + 1).to(tl.int32, bitcast=True).to(tl.float32) * 5.9604644775390625e-08
    d = 1.0 - u
    near = d * (2.0 + d * (1.0 + d * LOG))
    far = _log2(u) * -1.3862943611198906
    radius = sqrt(tl.where(d < NEAR_ONE, near, far))

    s = (angle_word.to(tl.int32, bitcast=True) >> 8).to(tl.float32) * 1.1920928955078125e-07
    from_cosine_zero = 0.5 - tl.abs(s)
    from_sine_zero = 0.5 - tl.abs(from_cosine_zero)
    sign = angle_word & 0x80000000
    signed = (from_sine_zero.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return radius, _sin_half_turns(from_cosine_zero), _sin_half_turns(signed)


@triton.jit
def _two_pairs(quads, index, step, k0, k1):
    # Of each quad: radius · cosine of its first and second pair, radius · sine likewise.
    w0, w1, w2, w3 = philox4x32(
        quads.to(tl.uint32), (quads >> 32).to(tl.uint32), index, step, k0, k1
    )
    radius0, cosine0, sine0 = polar(w0, w1)
    radius1, cosine1, sine1 = polar(w2, w3)
    return radius0 * cosine0, radius1 * cosine1, radius0 * sine0, radius1 * sine1


@triton.jit
def quad_normals(quad, index, step, k0, k1, QUADS: tl.constexpr):
    """ξ of 4·QUADS neighbours in a logical tensor, the first of which opens a quad.

    Args:
        quad: Its place divided by 4, an int64 scalar.
        index: The parameter's place in the optimizer, a uint32 scalar.
        step: The step's low 32 bits, a uint32 scalar.
        k0: The seed's low word, a uint32 scalar.
        k1: Its high word.
        QUADS: How many Philox calls.

    Returns:
        float32 [4·QUADS].
    """
    quads = quad + tl.arange(0, QUADS)
    even0, even1, odd0, odd1 = _two_pairs(quads, index, step, k0, k1)
    # [quad, pair, cosine or sine], so that a thread's four normals are its four neighbours.
    return tl.join(tl.join(even0, even1), tl.join(odd0, odd1)).reshape(4 * QUADS)


@triton.jit
def octet_normals(quad, index, step, k0, k1, QUADS: tl.constexpr):
    """The same, for threads that hold eight neighbours: two quads each."""
    quads = quad + 2 * tl.arange(0, QUADS // 2)
    even00, even01, odd00, odd01 = _two_pairs(quads, index, step, k0, k1)
    even10, even11, odd10, odd11 = _two_pairs(quads + 1, index, step, k0, k1)
    # [two quads, which of them, pair, cosine or sine]
    even = tl.join(tl.join(even00, even10), tl.join(even01, even11))
    odd = tl.join(tl.join(odd00, odd10), tl.join(odd01, odd11))
    return tl.join(even, odd).reshape(4 * QUADS)


@triton.jit
def element_normals(elements, index, step, k0, k1):
    """ξ of any elements, one Philox call for each: what a shard that opens inside a quad needs.

    Args:
        elements: Places in the logical tensor, int64.
        index: As in `quad_normals`.
        step: Likewise.
        k0: Likewise.
        k1: Likewise.

    Returns:
        float32 of the shape of `elements`.
    """
    quads = elements >> 2
    w0, w1, w2, w3 = philox4x32(
        quads.to(tl.uint32), (quads >> 32).to(tl.uint32), index, step, k0, k1
    )
    second_pair = (elements & 2) != 0
    radius, cosine, sine = polar(tl.where(second_pair, w2, w0), tl.where(second_pair, w3, w1))
    return radius * tl.where((elements & 1) != 0, sine, cosine)
