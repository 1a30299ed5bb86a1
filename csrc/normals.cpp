// The noise on its own: for the pass, and as operators for tests.
#include "normals.h"

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "isa.h"

namespace adaptiverl {
namespace {

#define ADAPTIVERL_LOOPS "normals.inc"
#include "each_isa.inc"

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

NoiseKey key_from(int64_t seed_low, int64_t seed_high, int64_t index, int64_t step) {
  return NoiseKey{static_cast<uint32_t>(seed_low), static_cast<uint32_t>(seed_high),
                  static_cast<uint32_t>(index), static_cast<uint32_t>(step)};
}

void normals(int64_t seed_low, int64_t seed_high, int64_t index, int64_t step, int64_t offset,
             Tensor out) {
  check_dtype(out, "out", ScalarType::Float, "float32");
  STD_TORCH_CHECK(offset >= 0, "offset must not be negative, got ", offset);
  const NoiseKey key = key_from(seed_low, seed_high, index, step);
  float* values = static_cast<float*>(out.data_ptr());
  float buffer[kNormals];
  for (int64_t i = 0; i < out.numel(); i += kBlock) {
    const int64_t count = std::min(kBlock, out.numel() - i);
    const Upcoming nothing = {nullptr, {nullptr, nullptr, nullptr}};
    std::copy_n(draw(key, offset + i, count, nothing, buffer), count, values + i);
  }
}

// `quad` is half of Philox's counter: any 64 bits are one, those of a negative number too.
void philox_words(int64_t seed_low, int64_t seed_high, int64_t index, int64_t step, int64_t quad,
                  Tensor out) {
  check_dtype(out, "out", ScalarType::Int, "int32");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(1) == 4, "out must be of shape [quads, 4], got ",
                  out.numel(), " numbers in ", out.dim(), " dimensions");
  const NoiseKey key = key_from(seed_low, seed_high, index, step);
  uint32_t* words = static_cast<uint32_t*>(out.data_ptr());
  alignas(64) uint32_t word[4][kBlockQuads];
  for (int64_t i = 0; i < out.size(0); i += kBlockQuads) {
    const int64_t count = std::min(kBlockQuads, out.size(0) - i);
    ADAPTIVERL_CHOSEN(fill_words)
    (key, static_cast<uint64_t>(quad) + i, round_up(count, kQuadBatch), word[0], word[1], word[2],
     word[3]);
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t k = 0; k < 4; ++k) {
        words[4 * (i + q) + k] = word[k][q];
      }
    }
  }
}

}  // namespace

const float* draw(const NoiseKey& key, int64_t offset, int64_t count, const Upcoming& upcoming,
                  float* buffer) {
  const int64_t skipped = offset & 3;
  const int64_t quads = round_up(skipped + count, 4 * kQuadBatch) / 4;
  ADAPTIVERL_CHOSEN(fill_normals)
  (key, static_cast<uint64_t>(offset) >> 2, quads, upcoming, buffer);
  return buffer + skipped;
}

}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("normals_", TORCH_BOX(&adaptiverl::normals));
  m.impl("philox_words_", TORCH_BOX(&adaptiverl::philox_words));
}
