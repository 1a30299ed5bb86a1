// How the elements of an array are stored, and their way to float32 and back, a block at a time
// (method.md#storage). The twin of adaptiverl/codecs.py and kernels/codecs.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "normals.h"

namespace adaptiverl {

// By the numbers that an operator is given.
enum class Codec : int64_t { kFloat32, kBFloat16, kBlocks, kCodecs };

// What an element's 16 random bits are multiplied by, modulo 2^16, before they round the parameter,
// its first slot, and the others: no two of the products tell of each other. 0 rounds to nearest.
constexpr uint32_t kNearest = 0;
constexpr uint32_t kOfParam = 1;
constexpr uint32_t kOfFirstSlot = 7189;
constexpr uint32_t kOfOtherSlots = 17681;

// What the arrays of a launch's rows are stored in.
struct Codecs {
  Codec param = Codec::kFloat32;
  Codec grad = Codec::kFloat32;
  Codec slots = Codec::kFloat32;
  bool stochastic_rounding = false;  // of the parameter; slots of 16 bits always are

  bool all_float32() const {
    return param == Codec::kFloat32 && grad == Codec::kFloat32 && slots == Codec::kFloat32;
  }

  uint32_t factor_of_param() const {
    return stochastic_rounding && param != Codec::kFloat32 ? kOfParam : kNearest;
  }

  bool round_by_chance() const { return factor_of_param() != kNearest || slots != Codec::kFloat32; }
};

inline uint32_t factor_of_slot(int slot) { return slot == 0 ? kOfFirstSlot : kOfOtherSlots; }

// `count` of them are known there: slots alone are kept in blocks.
inline Codec codec_of(int64_t number, const char* name,
                      int64_t count = static_cast<int64_t>(Codec::kBlocks)) {
  STD_TORCH_CHECK(number >= 0 && number < count, name, " must be the number of a codec, 0 to ",
                  count - 1, ", got ", number);
  return static_cast<Codec>(number);
}

// Param, grad and slots, in this order; nothing is float32 throughout.
inline Codecs codecs_of(const std::vector<int64_t>& numbers, bool stochastic_rounding) {
  Codecs codecs;
  codecs.stochastic_rounding = stochastic_rounding;
  if (numbers.empty()) {
    return codecs;
  }
  STD_TORCH_CHECK(numbers.size() == 3,
                  "codecs must be those of parameters, gradients and slots, got ", numbers.size(),
                  " numbers");
  codecs.param = codec_of(numbers[0], "the parameters' codec");
  codecs.grad = codec_of(numbers[1], "the gradients' codec");
  codecs.slots = codec_of(numbers[2], "the slots' codec", static_cast<int64_t>(Codec::kCodecs));
  return codecs;
}

// A block's elements as float32; `count` is at most kBlock.
void decode_bfloat16(const uint16_t* stored, int64_t count, float* values);

// The other way. `bits` are 16 random bits for each element; not read where `factor` is kNearest.
void encode_bfloat16(const float* values, int64_t count, const uint16_t* bits, uint32_t factor,
                     uint16_t* stored);

// The same with the error terms beside (method.md#error-term).
void decode_with_errors(const uint16_t* stored, const int8_t* errors, int64_t count, float* values);
void encode_with_errors(const float* values, int64_t count, const uint16_t* bits, uint32_t factor,
                        uint16_t* stored, int8_t* errors);

// Elements that share a scale.
constexpr int64_t kCodeBlock = 128;

// Scales below are 0; those above stand for a block with something that is not finite.
constexpr float kSmallestScale = 0x1p-120f;
constexpr float kLargestScale = 0x1p100f;

// The scales of a tensor's codes, which lie behind them.
template <typename T>
uint16_t* scales_behind(T* codes, int64_t numel) {
  constexpr int64_t alignment = 16;
  return reinterpret_cast<uint16_t*>(codes + (numel + alignment - 1) / alignment * alignment);
}

// A run's codes as float32; it begins with a block of them, whose scale is the first. The first
// slot's are signed.
void decode_blocks(int slot, const uint8_t* codes, const uint16_t* scales, int64_t count,
                   float* values);

// The other way, with 16 random bits for each element.
void encode_blocks(int slot, const float* values, int64_t count, const uint16_t* bits,
                   uint8_t* codes, uint16_t* scales);

// Elements of 16 bits in a cache line.
constexpr int64_t kHalfLine = 32;

// Elements that share one block of the generator's words.
constexpr int64_t kOctet = 8;

// Which block's words round an element. They are drawn beside the noise: no tensor has as many
// elements as would set this bit of a quad's number (method.md#storage).
inline uint64_t octet_of(int64_t element) {
  return static_cast<uint64_t>(element / kOctet) | uint64_t{1} << 63;
}

// Room for a block's random bits: it may start and end inside an octet.
constexpr int64_t kRandomBits = kBlock + 2 * kOctet * kQuadBatch;

// The random bits of a run of `count` elements, at most a block, that lies at `offset` in its
// logical tensor: somewhere in `buffer`, which has room for kRandomBits.
const uint16_t* draw_bits(const NoiseKey& key, int64_t offset, int64_t count, uint16_t* buffer);

}  // namespace adaptiverl
