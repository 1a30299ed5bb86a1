// What the fused steps share: how a tensor is walked in blocks, and what a door hands them.
#pragma once

#include <cstdint>
#include <optional>

#include "checks.h"
#include "philox.h"
#include "tables.h"

namespace adaptiverl {

// How far ahead of the sweep its arrays are fetched, in elements.
constexpr int64_t kAhead = 512;

// Elements of a cache line.
constexpr int64_t kLine = 16;

// Elements that are taken together where there is noise, which is drawn before it is added: all of
// it stays in the first cache.
constexpr int64_t kBlock = 1024;

// A block may start and end inside a quad.
constexpr int64_t kBlockQuads = kBlock / 4 + kQuadBatch;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The arrays of a run that the next loop goes through; an address may be null or stand here twice.
struct Upcoming {
  const float* read;
  const float* written[3];
};

using FillNormals = void (*)(const NoiseKey&, uint64_t, int64_t, const Upcoming&, float*);

// The normals of a run of `count` elements, at most a block, that lies at `offset` in its logical
// tensor: somewhere in `buffer`.
inline const float* draw(FillNormals fill_normals, const NoiseKey& key, int64_t offset,
                         int64_t count, const Upcoming& upcoming, float* buffer) {
  const int64_t skipped = offset & 3;
  const int64_t quads = round_up(skipped + count, 4 * kQuadBatch) / 4;
  fill_normals(key, static_cast<uint64_t>(offset) >> 2, quads, upcoming, buffer);
  return buffer + skipped;
}

inline NoiseKey key_of(const State& state) {
  return NoiseKey{static_cast<uint32_t>(state.seed_low), static_cast<uint32_t>(state.seed_high), 0,
                  static_cast<uint32_t>(static_cast<uint64_t>(state.step))};
}

inline double scale_of_gradient(const std::optional<Tensor>& gradient_scale) {
  return gradient_scale.has_value() ? *records<double>(*gradient_scale, "gradient_scale", 1) : 1.0;
}

inline double* sums_of(const std::optional<Tensor>& sums, int64_t rows) {
  return sums.has_value() ? records<double>(*sums, "sums", 3 * rows) : nullptr;
}

}  // namespace adaptiverl
