// The fused SGD step on the CPU: one sweep over all tensors.
#include "sgd_step.h"

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

struct SGDLoops {
  FillNormals fill_normals;
  void (*update)(const SGDScalars&, const SGDRun&, int64_t, const float*, AlignmentLanes*);
};

#define ADAPTIVERL_LOOPS "sgd_loops.inc"
#include "each_isa.inc"

const SGDLoops& loops() { return ADAPTIVERL_CHOSEN(kSGDLoops); }

SGDRun run_of(const TensorRow& row, int64_t begin, int64_t count) {
  float* momentum_buffer = at<float>(row.state0);
  return SGDRun{at<float>(row.param) + begin, at<const float>(row.grad) + begin,
                momentum_buffer == nullptr ? nullptr : momentum_buffer + begin, count};
}

// The sums of one piece go to `sums`, null where nobody asked.
void step_piece(const TensorRow& row, const SGDScalars& scalars, NoiseKey key, int64_t begin,
                int64_t elements, double* sums) {
  const SGDLoops& loop = loops();
  AlignmentLanes lanes = {};
  AlignmentLanes* wanted = sums == nullptr ? nullptr : &lanes;
  if (scalars.noise_scale == 0) {
    loop.update(scalars, run_of(row, begin, elements), kAhead, nullptr, wanted);
  } else {
    key.index = static_cast<uint32_t>(row.index);
    alignas(64) float buffer[4 * kBlockQuads];
    for (int64_t i = 0; i < elements; i += kBlock) {
      const SGDRun run = run_of(row, begin + i, std::min(kBlock, elements - i));
      const Upcoming upcoming = {run.grad, {run.param, run.momentum_buffer, nullptr}};
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

void sgd_step(Tensor rows_tensor, Tensor block, Tensor groups_tensor, Tensor effective_tensor,
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
    const SGDScalars scalars =
        sgd_scalars(rows[row], groups[rows[row].group], effective[rows[row].group], state->noise,
                    squares[row], gradient_scale, noise_on_parameter);
    double* piece_sums = sums == nullptr ? nullptr : &partial[3 * piece];
    step_piece(rows[row], scalars, key, begin, elements, piece_sums);
  });
  if (sums != nullptr) {
    add_up(pieces, count, partial, 3, sums);
  }
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("sgd_step_", TORCH_BOX(&adaptiverl::sgd_step));
}
