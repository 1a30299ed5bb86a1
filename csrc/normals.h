// Normals for a run of elements, drawn with the best instruction set of this CPU.
#pragma once

#include <cstdint>

#include "philox.h"

namespace adaptiverl {

// Elements of a cache line.
constexpr int64_t kLine = 16;

// Elements that are taken together where there is noise, which is drawn before it is added: all of
// it stays in the first cache.
constexpr int64_t kBlock = 1024;

// A block may start and end inside a quad.
constexpr int64_t kBlockQuads = kBlock / 4 + kQuadBatch;

// Room for a block's normals.
constexpr int64_t kNormals = 4 * kBlockQuads;

// The arrays of a run that the next loop goes through; an address may be null.
struct Upcoming {
  const float* read;
  const float* written[3];
};

// The normals of a run of `count` elements, at most a block, that lies at `offset` in its logical
// tensor: somewhere in `buffer`, which has room for kNormals. `upcoming`, the run that they are
// for, is fetched meanwhile.
const float* draw(const NoiseKey& key, int64_t offset, int64_t count, const Upcoming& upcoming,
                  float* buffer);

}  // namespace adaptiverl
