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
#include "sweep.h"

namespace adaptiverl {
namespace {

struct AdamWLoops {
  void (*fill_words)(const NoiseKey&, uint64_t, int64_t, uint32_t*, uint32_t*, uint32_t*,
                     uint32_t*);
  FillNormals fill_normals;
  void (*update)(const AdamWScalars&, const AdamWRun&, int64_t, const float*, AlignmentLanes*);
};

#define ADAPTIVERL_LOOPS "adamw_loops.inc"
#include "each_isa.inc"

const AdamWLoops& loops() { return ADAPTIVERL_CHOSEN(kAdamWLoops); }

AdamWRun run_of(const TensorRow& row, int64_t begin, int64_t count) {
  float* max_exp_avg_sq = at<float>(row.state2);
  return AdamWRun{at<float>(row.param) + begin,
                  at<const float>(row.grad) + begin,
                  at<float>(row.state0) + begin,
                  at<float>(row.state1) + begin,
                  max_exp_avg_sq == nullptr ? nullptr : max_exp_avg_sq + begin,
                  count};
}

// The sums of one piece go to `sums`, null where nobody asked.
void step_piece(const TensorRow& row, const AdamWScalars& scalars, NoiseKey key, int64_t begin,
                int64_t elements, double* sums) {
  const AdamWLoops& loop = loops();
  AlignmentLanes lanes = {};
  AlignmentLanes* wanted = sums == nullptr ? nullptr : &lanes;
  if (scalars.noise_scale == 0) {
    loop.update(scalars, run_of(row, begin, elements), kAhead, nullptr, wanted);
  } else {
    key.index = static_cast<uint32_t>(row.index);
    alignas(64) float buffer[4 * kBlockQuads];
    for (int64_t i = 0; i < elements; i += kBlock) {
      const AdamWRun run = run_of(row, begin + i, std::min(kBlock, elements - i));
      const Upcoming upcoming = {run.grad, {run.exp_avg, run.exp_avg_sq, run.param}};
      const float* xi =
          draw(loop.fill_normals, key, row.offset + begin + i, run.count, upcoming, buffer);
      loop.update(scalars, run, 0, xi, wanted);
    }
  }
  if (sums != nullptr) {
    sums[0] = sum_of_lanes(lanes.gu);
    sums[1] = sum_of_lanes(lanes.gg);
    sums[2] = sum_of_lanes(lanes.uu);
  }
}

void adamw_step(Tensor rows_tensor, Tensor block, Tensor groups_tensor, Tensor effective_tensor,
                Tensor squares_tensor, std::optional<Tensor> gradient_scale_tensor,
                std::optional<Tensor> sums_tensor, bool noise_on_parameter) {
  const Home home(rows_tensor, "rows");
  home.check(block, "block");
  home.check(groups_tensor, "groups");
  home.check(effective_tensor, "effective");
  home.check(squares_tensor, "squares");
  home.check(gradient_scale_tensor, "gradient_scale");
  home.check(sums_tensor, "sums");
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
  check_rows(rows, count, group_count);
  if (state->active == 0) {
    return;
  }
  const NoiseKey key = key_of(*state);
  const Pieces pieces(rows, count);
  std::vector<double> partial(sums == nullptr ? 0 : 3 * pieces.size());
  pieces.for_each([&](int64_t piece, int64_t row, int64_t begin, int64_t elements) {
    const AdamWScalars scalars =
        adamw_scalars(rows[row], groups[rows[row].group], effective[rows[row].group], state->noise,
                      squares[row], gradient_scale, noise_on_parameter);
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
    const Upcoming nothing = {nullptr, {nullptr, nullptr, nullptr}};
    std::copy_n(draw(loops().fill_normals, key, offset + i, count, nothing, buffer), count,
                values + i);
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
    loops().fill_words(key, static_cast<uint64_t>(quad) + i, round_up(count, kQuadBatch), word[0],
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
