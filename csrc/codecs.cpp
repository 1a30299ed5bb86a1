// Codecs with the best instruction set of this CPU.
#include "codecs.h"

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"

namespace adaptiverl {
namespace {

static_assert(kBlock % kCodeBlock == 0, "a run that is stepped at once ends with a block of codes");

#define ADAPTIVERL_LOOPS "codecs.inc"
#include "each_isa.inc"

}  // namespace

void decode_bfloat16(const uint16_t* stored, int64_t count, float* values) {
  ADAPTIVERL_CHOSEN(decode)(stored, count, values);
}

void encode_bfloat16(const float* values, int64_t count, const uint16_t* bits, uint32_t factor,
                     uint16_t* stored) {
  ADAPTIVERL_CHOSEN(encode)(values, count, bits, factor, stored);
}

void decode_with_errors(const uint16_t* stored, const int8_t* errors, int64_t count,
                        float* values) {
  ADAPTIVERL_CHOSEN(decode_joined)(stored, errors, count, values);
}

void encode_with_errors(const float* values, int64_t count, const uint16_t* bits, uint32_t factor,
                        uint16_t* stored, int8_t* errors) {
  ADAPTIVERL_CHOSEN(encode_parted)(values, count, bits, factor, stored, errors);
}

void decode_blocks(int slot, const uint8_t* codes, const uint16_t* scales, int64_t count,
                   float* values) {
  ADAPTIVERL_CHOSEN(decode_codes)(slot == 0, codes, scales, count, values);
}

void encode_blocks(int slot, const float* values, int64_t count, const uint16_t* bits,
                   uint8_t* codes, uint16_t* scales) {
  ADAPTIVERL_CHOSEN(encode_codes)(slot == 0, values, count, bits, factor_of_slot(slot), codes,
                                  scales);
}

const uint16_t* draw_bits(const NoiseKey& key, int64_t offset, int64_t count, uint16_t* buffer) {
  constexpr int64_t batch = kOctet * kQuadBatch;
  const int64_t skipped = offset % kOctet;
  const int64_t batches = (skipped + count + batch - 1) / batch;
  const uint64_t first = octet_of(offset);
  ADAPTIVERL_CHOSEN(fill_bits)(key, first, batches * kQuadBatch, buffer);
  return buffer + skipped;
}

}  // namespace adaptiverl
