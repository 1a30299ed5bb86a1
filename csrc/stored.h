// Ways to store a tensor that have loops of their own, and where a run of its elements lies then.
#pragma once

#include <cstdint>

#include "codecs.h"
#include "normals.h"
#include "tables.h"

namespace adaptiverl {

// Columns of the address table for an algorithm's own state.
constexpr int kSlots = 3;

// Elements whose random bits are drawn at once where they are stored as in `Stored`, but in blocks:
// what the generator begins with is the same for all of them.
constexpr int64_t kDrawn = 4 * kOctet * kQuadBatch;

// Ways to store a tensor, all rounded by chance, that have loops of their own: parameter and
// gradient in float32, or all in bfloat16 but for the state where that is named.
enum class Stored { kHalves, kHalfWeights, kHalfState, kBlockState, kHalvesAndBlocks, kOther };

inline Stored stored_as(const Codecs& codecs) {
  const bool halves = codecs.param == Codec::kBFloat16 && codecs.grad == Codec::kBFloat16 &&
                      codecs.stochastic_rounding;
  const bool plain = codecs.param == Codec::kFloat32 && codecs.grad == Codec::kFloat32;
  if (!halves && !plain) {
    return Stored::kOther;
  }
  if (codecs.slots == Codec::kBFloat16) {
    return halves ? Stored::kHalves : Stored::kHalfState;
  }
  if (codecs.slots == Codec::kBlocks) {
    return halves ? Stored::kHalvesAndBlocks : Stored::kBlockState;
  }
  return halves ? Stored::kHalfWeights : Stored::kOther;
}

inline bool in_blocks(Stored stored) {
  return stored == Stored::kBlockState || stored == Stored::kHalvesAndBlocks;
}

// Where a run of whole lines, or of whole blocks, lies as it is stored; the block `octet` of words
// rounds the first.
struct StoredRun {
  void* param;
  const void* grad;
  void* slot[kSlots];
  uint16_t* scales[kSlots];  // null where slots are not in blocks
  int64_t count;
  NoiseKey key;
  uint64_t octet;
};

inline StoredRun stored_run(const TensorRow& row, Stored stored, NoiseKey key, int64_t begin,
                            int64_t count) {
  const bool plain = stored == Stored::kHalfState || stored == Stored::kBlockState;
  const int64_t weight = plain ? sizeof(float) : sizeof(uint16_t);
  const int64_t entry = in_blocks(stored)                ? sizeof(uint8_t)
                        : stored == Stored::kHalfWeights ? sizeof(float)
                                                         : sizeof(uint16_t);
  StoredRun run = {};
  run.param = at<void>(row.param + begin * weight);
  run.grad = at<const void>(row.grad + begin * weight);
  const int64_t states[kSlots] = {row.state0, row.state1, row.state2};
  for (int i = 0; i < kSlots; ++i) {
    if (states[i] != 0) {
      run.slot[i] = at<void>(states[i] + begin * entry);
      run.scales[i] = in_blocks(stored)
                          ? scales_behind(at<uint8_t>(states[i]), row.numel) + begin / kCodeBlock
                          : nullptr;
    }
  }
  run.count = count;
  run.key = key;
  run.octet = octet_of(row.offset + begin);
  return run;
}

}  // namespace adaptiverl
