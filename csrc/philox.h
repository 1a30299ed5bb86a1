// Noise as a function of its place (method.md#random-numbers): the key, and Box-Muller from the
// generator's words to normals. The generator itself is philox.inc. Only IEEE +, -, *, sqrt and
// integer arithmetic, so that every instruction set, vector width and position in a loop gives the
// same bits. Built without contraction into fused multiply-adds.
#pragma once

#include <cstdint>

// Inlined by force: each caller is compiled for an instruction set of its own, and a shared
// out-of-line copy would be compiled for only one of them.
#define ADAPTIVERL_INLINE inline __attribute__((always_inline))

namespace adaptiverl {

// Quads are drawn in batches of this many; what the last batch draws too much is not used.
constexpr int64_t kQuadBatch = 16;

// What all elements of one parameter share at one step.
struct NoiseKey {
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t index;
  uint32_t step;
};

ADAPTIVERL_INLINE float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

ADAPTIVERL_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// ln(n * 2^-24) for n in [1, 2^24], to 1.2e-7 relative, at n = 2^24 exactly 0. The mantissa is
// taken in [sqrt(1/2), sqrt(2)), so that close to 1 there is no exponent's ln 2 to cancel against.
ADAPTIVERL_INLINE float log_of_uniform(uint32_t n) {
  constexpr uint32_t kHalfRoot = 0x3F3504F3u;  // sqrt(1/2)
  constexpr uint32_t kOne = 0x3F800000u;
  const uint32_t shifted =
      as_bits(static_cast<float>(static_cast<int32_t>(n))) + (kOne - kHalfRoot);
  const int32_t exponent = static_cast<int32_t>(shifted >> 23) - (127 + 24);
  const float mantissa = as_float((shifted & 0x007FFFFFu) + kHalfRoot);
  const float x = mantissa - 1.0f;
  const float k = static_cast<float>(exponent);

  // ln(1 + x) = x - x^2 / 2 + x^3 P(x), P minimax in relative error (3e-8).
  float poly = 0.08700440f;
  poly = poly * x - 0.14267486f;
  poly = poly * x + 0.14914767f;
  poly = poly * x - 0.16577585f;
  poly = poly * x + 0.19963063f;
  poly = poly * x - 0.25001338f;
  poly = poly * x + 0.33333910f;
  const float square = x * x;
  const float tail = square * x * poly + k * -2.12194440e-4f - 0.5f * square;
  return k * 0.693359375f +
         (x + tail);  // ln 2 in two parts, the first of few enough bits to be exact here
}

struct SinCos {
  float sin;
  float cos;
};

// sin and cos of pi * s, s = fraction * 2^-23, fraction in [-2^23, 2^23). The quadrant is taken off
// in integers: exactly.
ADAPTIVERL_INLINE SinCos sincos_of_half_turns(int32_t fraction) {
  constexpr int32_t kQuadrant = 1 << 22;
  const int32_t quadrant = (fraction + kQuadrant / 2) >> 22;
  const int32_t rest = fraction - quadrant * kQuadrant;
  const float x = static_cast<float>(rest) * 0x1p-23f;  // [-1/4, 1/4)
  const float square = x * x;

  float sin_poly = -0.58901221f;
  sin_poly = sin_poly * square + 2.54976106f;
  sin_poly = sin_poly * square - 5.16770791f;
  sin_poly = sin_poly * square + 3.14159274f;
  float cos_poly = -1.30670611f;
  cos_poly = cos_poly * square + 4.05765138f;
  cos_poly = cos_poly * square - 4.93479083f;
  const uint32_t sin_x = as_bits(sin_poly * x);
  const uint32_t cos_x = as_bits(cos_poly * square + 1.0f);

  const uint32_t turn = static_cast<uint32_t>(quadrant);
  const bool odd = (turn & 1) != 0;
  const uint32_t sin_sign = (turn & 2) << 30;
  const uint32_t cos_sign = ((turn + 1) & 2) << 30;
  return SinCos{as_float((odd ? cos_x : sin_x) ^ sin_sign),
                as_float((odd ? sin_x : cos_x) ^ cos_sign)};
}

// Box-Muller: two words become two independent normals, radius * cos and radius * sin.
ADAPTIVERL_INLINE void box_muller(uint32_t radial, uint32_t angular, float& even, float& odd) {
  const float radius = __builtin_sqrtf(-2.0f * log_of_uniform((radial >> 8) + 1));
  const SinCos direction = sincos_of_half_turns(static_cast<int32_t>(angular) >> 8);
  even = radius * direction.cos;
  odd = radius * direction.sin;
}

}  // namespace adaptiverl
