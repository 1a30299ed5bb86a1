// Noise as a function of its place (method.md#random-numbers): the key. The generator is
// philox.inc, and box_muller.inc makes normals of its words. Only IEEE +, -, *, sqrt and integer
// arithmetic, so that every instruction set, vector width and position in a loop gives the same
// bits. Built without contraction into fused multiply-adds.
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

}  // namespace adaptiverl
