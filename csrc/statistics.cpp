// Σ grad² (or Σ param²) of every tensor, in float64: what the noise's RMS and the clip's norm need
// before the pass.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "checks.h"
#include "codecs.h"
#include "isa.h"
#include "lanes.h"
#include "pieces.h"

namespace adaptiverl {
namespace {

// How far ahead of the sum the gradient is fetched, in elements.
constexpr int64_t kAhead = 1024;

// Elements between two rounds of fetching: a fetch in the inner loop would force the sums out of
// their registers.
constexpr int64_t kStretch = 256;

#define ADAPTIVERL_LOOPS "statistics_loops.inc"
#include "each_isa.inc"

// Of elements that are stored in 16 bits: a block at a time, float32 in the first cache.
double sum_squares_bfloat16(const uint16_t* stored, int64_t count) {
  alignas(64) float values[kBlock];
  double total = 0;
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t elements = std::min(kBlock, count - i);
    decode_bfloat16(stored + i, elements, values);
    total += ADAPTIVERL_CHOSEN(sum_squares)(values, elements);
  }
  return total;
}

void sum_squares_op(Tensor rows_tensor, Tensor state_tensor, Tensor squares, bool always,
                    bool of_parameters, int64_t codec_number) {
  const Home home(rows_tensor, "rows");
  home.check(state_tensor, "state");
  home.check(squares, "squares");
  const TensorRow* rows = rows_of(rows_tensor);
  const int64_t count = rows_tensor.size(0);
  const State* state = state_of(state_tensor);
  double* totals = records<double>(squares, "squares", count);
  check_sizes(rows, count);
  const Codec codec = codec_of(codec_number, "codec");
  if (state->active == 0 || (!always && state->noise == 0)) {
    return;
  }
  const Pieces pieces(rows, count);
  std::vector<double> partial(pieces.size());
  const auto sum_squares = ADAPTIVERL_CHOSEN(sum_squares);
  pieces.for_each([&](int64_t piece, int64_t row, int64_t begin, int64_t elements) {
    const int64_t address = of_parameters ? rows[row].param : rows[row].grad;
    partial[piece] = codec == Codec::kFloat32
                         ? sum_squares(at<const float>(address) + begin, elements)
                         : sum_squares_bfloat16(at<const uint16_t>(address) + begin, elements);
  });
  add_up(pieces, count, partial, totals);
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("sum_squares_", TORCH_BOX(&adaptiverl::sum_squares_op));
}
