// Codecs with the best instruction set of this CPU.
#include "codecs.h"

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"

namespace adaptiverl {
namespace {

// Elements of 16 bits in a cache line.
constexpr int64_t kHalfLine = 32;

// The words that round are drawn beside those of the noise: no tensor has as many quads as would
// set this bit of a quad's number (method.md#storage).
constexpr uint64_t kRoundingStream = uint64_t{1} << 63;

#define ADAPTIVERL_LOOPS "codecs.inc"
#include "each_isa.inc"

}  // namespace

void decode_bfloat16(const uint16_t* stored, int64_t count, float* values) {
  ADAPTIVERL_CHOSEN(decode)(stored, count, values);
}

void encode_bfloat16(const float* values, int64_t count, const uint32_t* words, Bits bits,
                     uint16_t* stored) {
  ADAPTIVERL_CHOSEN(encode)(values, count, words, bits, stored);
}

const uint32_t* draw_words(const NoiseKey& key, int64_t offset, int64_t count, uint32_t* buffer) {
  const int64_t skipped = offset & 3;
  const int64_t batches = (skipped + count + 4 * kQuadBatch - 1) / (4 * kQuadBatch);
  const uint64_t first = (static_cast<uint64_t>(offset) >> 2) | kRoundingStream;
  ADAPTIVERL_CHOSEN(fill_element_words)(key, first, batches * kQuadBatch, buffer);
  return buffer + skipped;
}

}  // namespace adaptiverl
