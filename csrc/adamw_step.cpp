// The fused AdamW step on the CPU: one sweep over all tensors, and the noise on its own for tests.
#include "adamw_step.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "isa.h"
#include "lanes.h"
#include "philox.h"
#include "pieces.h"

namespace adaptiverl {
namespace {

// How far ahead of the sweep its arrays are fetched, in elements.
constexpr int64_t kAhead = 512;

// Elements of a cache line.
constexpr int64_t kLine = 16;

// Elements that are taken together where noise or sums need the data more than once: all of it
// stays in the first cache.
constexpr int64_t kBlock = 1024;

// A block may start and end inside a quad.
constexpr int64_t kBlockQuads = kBlock / 4 + kQuadBatch;

struct AlignmentLanes {
  double gu[kLanes];
  double gg[kLanes];
  double uu[kLanes];
};

struct AdamWLoops {
  void (*fill_words)(const NoiseKey&, uint64_t, int64_t, uint32_t*, uint32_t*, uint32_t*,
                     uint32_t*);
  void (*fill_normals)(const NoiseKey&, uint64_t, int64_t, const AdamWRun&, float*);
  void (*sum_alignment)(const AdamWScalars&, const AdamWRun&, AlignmentLanes*);
  void (*update)(const AdamWScalars&, const AdamWRun&, int64_t, const float*);
};

#define ADAPTIVERL_LOOPS "adamw_loops.inc"
#include "each_isa.inc"

const AdamWLoops& loops() { return ADAPTIVERL_CHOSEN(kAdamWLoops); }

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The normals of a run, at most a block, that lies at `offset` in its logical tensor: somewhere in
// `buffer`.
const float* draw(const NoiseKey& key, int64_t offset, const AdamWRun& run, float* buffer) {
  const int64_t skipped = offset & 3;
  const int64_t quads = round_up(skipped + run.count, 4 * kQuadBatch) / 4;
  loops().fill_normals(key, static_cast<uint64_t>(offset) >> 2, quads, run, buffer);
  return buffer + skipped;
}

AdamWRun run_of(const TensorRow& row, int64_t begin, int64_t count) {
  float* max_exp_avg_sq = at<float>(row.max_exp_avg_sq);
  return AdamWRun{at<float>(row.param) + begin,
                  at<const float>(row.grad) + begin,
                  at<float>(row.exp_avg) + begin,
                  at<float>(row.exp_avg_sq) + begin,
                  max_exp_avg_sq == nullptr ? nullptr : max_exp_avg_sq + begin,
                  count};
}

// The sums of one piece go to `sums`, null where nobody asked.
void step_piece(const TensorRow& row, const AdamWScalars& scalars, NoiseKey key, int64_t begin,
                int64_t elements, double* sums) {
  const AdamWLoops& loop = loops();
  const bool noisy = scalars.noise_scale != 0;
  if (!noisy && sums == nullptr) {
    loop.update(scalars, run_of(row, begin, elements), kAhead, nullptr);
    return;
  }
  key.index = static_cast<uint32_t>(row.index);
  alignas(64) float buffer[4 * kBlockQuads];
  AlignmentLanes lanes = {};
  for (int64_t i = 0; i < elements; i += kBlock) {
    const AdamWRun run = run_of(row, begin + i, std::min(kBlock, elements - i));
    const float* xi = nullptr;
    if (noisy) {
      xi = draw(key, row.offset + begin + i, run, buffer);
    }
    if (sums != nullptr) {
      loop.sum_alignment(scalars, run, &lanes);
    }
    loop.update(scalars, run, kBlock, xi);  // fetches the next block
  }
  if (sums != nullptr) {
    sums[0] = sum_of_lanes(lanes.gu);
    sums[1] = sum_of_lanes(lanes.gg);
    sums[2] = sum_of_lanes(lanes.uu);
  }
}

NoiseKey key_of(const State& state) {
  return NoiseKey{static_cast<uint32_t>(state.seed_low), static_cast<uint32_t>(state.seed_high), 0,
                  static_cast<uint32_t>(static_cast<uint64_t>(state.step))};
}

double scale_of_gradient(const std::optional<Tensor>& gradient_scale) {
  return gradient_scale.has_value() ? *records<double>(*gradient_scale, "gradient_scale", 1) : 1.0;
}

double* sums_of(const std::optional<Tensor>& sums, int64_t rows) {
  return sums.has_value() ? records<double>(*sums, "sums", 3 * rows) : nullptr;
}

void check_groups(const TensorRow* rows, int64_t count, int64_t groups) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(rows[i].group >= 0 && rows[i].group < groups, "row ", i, " names group ",
                    rows[i].group, ", but there are ", groups);
  }
}

void adamw_step(Tensor rows_tensor, Tensor block, Tensor groups_tensor, Tensor effective_tensor,
                Tensor squares_tensor, std::optional<Tensor> gradient_scale_tensor,
                std::optional<Tensor> sums_tensor) {
  const TensorRow* rows = rows_of(rows_tensor);
  const int64_t count = rows_tensor.size(0);
  const State* state = state_of(block);
  const Group* groups = records<Group>(groups_tensor, "groups", 0);
  const int64_t group_count = count_of(groups_tensor);
  const EffectiveGroup* effective =
      records<EffectiveGroup>(effective_tensor, "effective", group_count);
  const double* squares = records<double>(squares_tensor, "squares", count);
  const double gradient_scale = scale_of_gradient(gradient_scale_tensor);
  double* sums = sums_of(sums_tensor, count);
  check_groups(rows, count, group_count);
  if (state->active == 0) {
    return;
  }
  const NoiseKey key = key_of(*state);
  const Pieces pieces(rows, count);
  std::vector<double> partial(sums == nullptr ? 0 : 3 * pieces.size());
  pieces.for_each([&](int64_t piece, int64_t row, int64_t begin, int64_t elements) {
    const AdamWScalars scalars =
        adamw_scalars(rows[row], groups[rows[row].group], effective[rows[row].group], state->noise,
                      squares[row], gradient_scale);
    double* piece_sums = sums == nullptr ? nullptr : &partial[3 * piece];
    step_piece(rows[row], scalars, key, begin, elements, piece_sums);
  });
  if (sums != nullptr) {
    add_up(pieces, count, partial, 3, sums);
  }
}

// The noise on its own

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
  float buffer[4 * kBlockQuads];
  for (int64_t i = 0; i < out.numel(); i += kBlock) {
    const int64_t count = std::min(kBlock, out.numel() - i);
    const AdamWRun nothing = {nullptr, nullptr, nullptr, nullptr, nullptr, count};
    std::copy_n(draw(key, offset + i, nothing, buffer), count, values + i);
  }
}

void philox_words(int64_t seed_low, int64_t seed_high, int64_t index, int64_t step, int64_t offset,
                  Tensor out) {
  check_dtype(out, "out", ScalarType::Int, "int32");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(1) == 4, "out must be of shape [quads, 4], got ",
                  out.numel(), " numbers in ", out.dim(), " dimensions");
  const NoiseKey key = key_from(seed_low, seed_high, index, step);
  uint32_t* words = static_cast<uint32_t*>(out.data_ptr());
  alignas(64) uint32_t word[4][kBlockQuads];
  for (int64_t i = 0; i < out.size(0); i += kBlockQuads) {
    const int64_t count = std::min(kBlockQuads, out.size(0) - i);
    loops().fill_words(key, static_cast<uint64_t>(offset) + i, round_up(count, kQuadBatch), word[0],
                       word[1], word[2], word[3]);
    for (int64_t q = 0; q < count; ++q) {
      for (int64_t k = 0; k < 4; ++k) {
        words[4 * (i + q) + k] = word[k][q];
      }
    }
  }
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("adamw_step_", TORCH_BOX(&adaptiverl::adamw_step));
  m.impl("normals_", TORCH_BOX(&adaptiverl::normals));
  m.impl("philox_words_", TORCH_BOX(&adaptiverl::philox_words));
}
