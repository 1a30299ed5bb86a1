// How the elements of an array are stored, and their way to float32 and back, a block at a time
// (method.md#storage). The twin of adaptiverl/codecs.py and kernels/codecs.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "normals.h"

namespace adaptiverl {

// By the numbers that an operator is given.
enum class Codec : int64_t { kFloat32, kBFloat16, kCodecs };

// Which 16 of an element's 32 random bits decide how a number is rounded: the parameter's, the
// first slot's, and those of the other slots, which are the exclusive or of the two.
enum class Bits { kNearest, kLow, kHigh, kBoth };

// What the arrays of a launch's rows are stored in.
struct Codecs {
  Codec param = Codec::kFloat32;
  Codec grad = Codec::kFloat32;
  Codec slots = Codec::kFloat32;
  bool stochastic_rounding = false;  // of the parameter; slots of 16 bits always are

  bool all_float32() const {
    return param == Codec::kFloat32 && grad == Codec::kFloat32 && slots == Codec::kFloat32;
  }

  Bits bits_of_param() const {
    return stochastic_rounding && param != Codec::kFloat32 ? Bits::kLow : Bits::kNearest;
  }

  bool draw_words() const { return bits_of_param() != Bits::kNearest || slots != Codec::kFloat32; }
};

inline Bits bits_of_slot(int slot) { return slot == 0 ? Bits::kHigh : Bits::kBoth; }

inline Codec codec_of(int64_t number, const char* name) {
  constexpr int64_t count = static_cast<int64_t>(Codec::kCodecs);
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
  codecs.slots = codec_of(numbers[2], "the slots' codec");
  return codecs;
}

// A block's elements as float32; `count` is at most kBlock.
void decode_bfloat16(const uint16_t* stored, int64_t count, float* values);

// The other way. `words` has one word for each element; null where `bits` is kNearest.
void encode_bfloat16(const float* values, int64_t count, const uint32_t* words, Bits bits,
                     uint16_t* stored);

// The random words of a run of `count` elements, at most a block, that lies at `offset` in its
// logical tensor: somewhere in `buffer`, which has room for kNormals.
const uint32_t* draw_words(const NoiseKey& key, int64_t offset, int64_t count, uint32_t* buffer);

}  // namespace adaptiverl
