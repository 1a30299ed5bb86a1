// The parameter pass, for every algorithm: which tensors an operator was given, what it computes
// once per tensor, and how it goes through a tensor's elements. An algorithm is a struct with
//
//   kName                                 its operator is kName + "_step_"
//   Variant, variant_of(row, scalars)     the forms of its loop, at most 6, and a tensor's
//   Scalars, scalars_of(row, group, effective, decay_share)
//   has_slot(variant, slot)               whether that form keeps state0, state1, state2
//   gradient(scalars, variant, g, p)      the gradient that enters the state, but for the noise
//   direction(scalars, variant, state0, state1, state2)
//                                         what the alignment law compares it with (method.md)
//   update(scalars, variant, g, p, state0, state1, state2)
//                                         one element's step
//
// and its file ends with `#include "pass.inc"`, which compiles the loops and registers the
// operator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "codecs.h"
#include "decay.h"
#include "isa.h"
#include "lanes.h"
#include "noise.h"
#include "normals.h"
#include "pieces.h"
#include "stored.h"
#include "tables.h"

namespace adaptiverl {

// How far ahead of the loop its arrays are fetched, in elements.
constexpr int64_t kAhead = 512;

// What every algorithm does alike with all elements of a tensor.
struct Common {
  float gradient_scale;  // negative for maximize
  float noise_scale;     // 0: no noise is drawn
  Noise noise;           // where it goes
};

// Where a run of elements lies. The arrays do not overlap; a slot that is not kept is null.
struct Run {
  float* param;
  const float* grad;
  float* slot[kSlots];
  int64_t count;
};

inline Run run_of(const TensorRow& row, int64_t begin, int64_t count) {
  const auto slot = [begin](int64_t address) {
    return address == 0 ? nullptr : at<float>(address) + begin;
  };
  return Run{at<float>(row.param) + begin,
             at<const float>(row.grad) + begin,
             {slot(row.state0), slot(row.state1), slot(row.state2)},
             count};
}

// Where a block of every array is while it is float32.
struct Room {
  alignas(64) float param[kBlock];
  alignas(64) float grad[kBlock];
  alignas(64) float slot[kSlots][kBlock];
};

// A block of an array as float32: in its own memory if it is stored so, in `room` otherwise.
inline float* decoded(int64_t address, Codec codec, int64_t begin, int64_t count, float* room) {
  if (address == 0) {
    return nullptr;
  }
  if (codec == Codec::kFloat32) {
    return at<float>(address) + begin;
  }
  decode_bfloat16(at<const uint16_t>(address) + begin, count, room);
  return room;
}

// The same of a slot, whose codes and scales lie one behind the other in blocks.
inline float* decoded_slot(const TensorRow& row, int slot, int64_t address, Codec codec,
                           int64_t begin, int64_t count, float* room) {
  if (address == 0 || codec != Codec::kBlocks) {
    return decoded(address, codec, begin, count, room);
  }
  const auto* codes = at<const uint8_t>(address);
  decode_blocks(slot, codes + begin,
                scales_behind(at<uint8_t>(address), row.numel) + begin / kCodeBlock, count, room);
  return room;
}

// The same of a parameter, which may have error terms beside it.
inline float* decoded_param(const TensorRow& row, Codec codec, int64_t begin, int64_t count,
                            float* room) {
  if (row.error == 0) {
    return decoded(row.param, codec, begin, count, room);
  }
  decode_with_errors(at<const uint16_t>(row.param) + begin, at<const int8_t>(row.error) + begin,
                     count, room);
  return room;
}

inline void encode(int64_t address, Codec codec, int64_t begin, int64_t count, const float* values,
                   const uint16_t* bits, uint32_t factor) {
  if (address != 0 && codec != Codec::kFloat32) {
    encode_bfloat16(values, count, bits, factor, at<uint16_t>(address) + begin);
  }
}

inline void encode_param(const TensorRow& row, const Codecs& codecs, int64_t begin, int64_t count,
                         const float* values, const uint16_t* bits) {
  const uint32_t factor = codecs.factor_of_param();
  if (row.error == 0) {
    encode(row.param, codecs.param, begin, count, values, bits, factor);
    return;
  }
  encode_with_errors(values, count, bits, factor, at<uint16_t>(row.param) + begin,
                     at<int8_t>(row.error) + begin);
}

inline void encode_slot(const TensorRow& row, int slot, int64_t address, Codec codec, int64_t begin,
                        int64_t count, const float* values, const uint16_t* bits) {
  if (address == 0 || codec != Codec::kBlocks) {
    encode(address, codec, begin, count, values, bits, factor_of_slot(slot));
    return;
  }
  auto* codes = at<uint8_t>(address);
  encode_blocks(slot, values, count, bits, codes + begin,
                scales_behind(codes, row.numel) + begin / kCodeBlock);
}

inline Run decoded_run(const TensorRow& row, const Codecs& codecs, int64_t begin, int64_t count,
                       Room& room) {
  const auto slot = [&](int64_t address, int i) {
    return decoded_slot(row, i, address, codecs.slots, begin, count, room.slot[i]);
  };
  return Run{decoded_param(row, codecs.param, begin, count, room.param),
             decoded(row.grad, codecs.grad, begin, count, room.grad),
             {slot(row.state0, 0), slot(row.state1, 1), slot(row.state2, 2)},
             count};
}

inline void encode_run(const TensorRow& row, const Codecs& codecs, int64_t begin, const Run& run,
                       const uint16_t* bits) {
  const int64_t states[kSlots] = {row.state0, row.state1, row.state2};
  for (int i = 0; i < kSlots; ++i) {
    encode_slot(row, i, states[i], codecs.slots, begin, run.count, run.slot[i], bits);
  }
  encode_param(row, codecs, begin, run.count, run.param, bits);
}

// `square` is only read where there is noise.
inline Common common_of(const TensorRow& row, const EffectiveGroup& effective, double noise,
                        double square, double gradient_scale, bool noise_on_parameter) {
  Common common;
  // -(grad * scale) and grad * -scale are the same bits.
  common.gradient_scale = static_cast<float>(row.maximize != 0 ? -gradient_scale : gradient_scale);
  common.noise_scale = static_cast<float>(
      noise_scale(row, effective, noise, square, gradient_scale, noise_on_parameter));
  common.noise = common.noise_scale == 0 ? Noise::kNone
                 : noise_on_parameter    ? Noise::kParameter
                                         : Noise::kGradient;
  return common;
}

// The loop of one algorithm: all elements of a run. `xi` is null where there is no noise; then the
// arrays are fetched `ahead` elements early (with noise, drawing it does that). `sums` is null
// where nobody wants them.
template <typename Algorithm>
using Update = void (*)(const Common&, const typename Algorithm::Scalars&, int variant, const Run&,
                        int64_t ahead, const float* xi, SumLanes* sums);

// The same where there is no noise, of a run that is stored so.
template <typename Algorithm>
using UpdateStored = void (*)(Stored, const Common&, const typename Algorithm::Scalars&,
                              int variant, const StoredRun&, SumLanes* sums);

// One piece of a tensor that is float32 throughout. Its sums go to `sums`, null where nobody asked.
template <typename Algorithm>
void step_float32(Update<Algorithm> update, const TensorRow& row, const Common& common,
                  const typename Algorithm::Scalars& scalars, NoiseKey key, int64_t begin,
                  int64_t elements, SumLanes* sums) {
  const int variant = Algorithm::variant_of(row, scalars);
  if (common.noise == Noise::kNone) {
    update(common, scalars, variant, run_of(row, begin, elements), kAhead, nullptr, sums);
    return;
  }
  alignas(64) float buffer[kNormals];
  for (int64_t i = 0; i < elements; i += kBlock) {
    const Run run = run_of(row, begin + i, std::min(kBlock, elements - i));
    const Upcoming upcoming = {run.grad, {run.param, run.slot[0], run.slot[1]}};
    const float* xi = draw(key, row.offset + begin + i, run.count, upcoming, buffer);
    update(common, scalars, variant, run, 0, xi, sums);
  }
}

// Of a piece that is stored as in `Stored` the whole lines, or the whole blocks of codes, where its
// bits begin with a block of words and there is no noise. Returns how many elements these are.
template <typename Algorithm>
int64_t step_stored(UpdateStored<Algorithm> update, const TensorRow& row, const Codecs& codecs,
                    const Common& common, const typename Algorithm::Scalars& scalars, NoiseKey key,
                    int64_t begin, int64_t elements, SumLanes* sums) {
  const Stored stored = stored_as(codecs);
  const int variant = Algorithm::variant_of(row, scalars);
  if (in_blocks(stored) && (!Algorithm::has_slot(variant, 0) || Algorithm::has_slot(variant, 2))) {
    return 0;
  }
  const int64_t whole = in_blocks(stored) ? kCodeBlock : kHalfLine;
  const int64_t count = elements / whole * whole;
  if (stored == Stored::kOther || row.error != 0 || common.noise != Noise::kNone ||
      (row.offset + begin) % kOctet != 0) {
    return 0;
  }
  const StoredRun run = stored_run(row, stored, key, begin, count);
  update(stored, common, scalars, variant, run, sums);
  return count;
}

// The same of a tensor that is stored otherwise: a block at a time, float32 in the first cache.
template <typename Algorithm>
void step_coded(Update<Algorithm> update, const TensorRow& row, const Codecs& codecs,
                const Common& common, const typename Algorithm::Scalars& scalars, NoiseKey key,
                int64_t begin, int64_t elements, SumLanes* sums) {
  const int variant = Algorithm::variant_of(row, scalars);
  Room room;
  alignas(64) float normals[kNormals];
  alignas(64) uint16_t buffer[kRandomBits];
  for (int64_t i = begin; i < begin + elements; i += kBlock) {
    const int64_t count = std::min(kBlock, begin + elements - i);
    const uint16_t* bits =
        codecs.round_by_chance() ? draw_bits(key, row.offset + i, count, buffer) : nullptr;
    const Run run = decoded_run(row, codecs, i, count, room);
    const float* xi = nullptr;
    if (common.noise != Noise::kNone) {
      xi = draw(key, row.offset + i, count, Upcoming{}, normals);
    }
    update(common, scalars, variant, run, 0, xi, sums);
    encode_run(row, codecs, i, run, bits);
  }
}

inline NoiseKey key_of(const State& state) {
  return NoiseKey{static_cast<uint32_t>(state.seed_low), static_cast<uint32_t>(state.seed_high), 0,
                  static_cast<uint32_t>(static_cast<uint64_t>(state.step))};
}

// What an operator was given, checked. All of it lies on one device and outlives the pass.
struct Arguments {
  const TensorRow* rows;
  int64_t count;
  const State* state;
  const Group* groups;
  const EffectiveGroup* effective;
  const double* squares;
  double gradient_scale;
  AlignmentSums* sums;  // null: nobody asked
  Codecs codecs;

  Arguments(const Tensor& rows_tensor, const Tensor& state_tensor, const Tensor& groups_tensor,
            const Tensor& effective_tensor, const Tensor& squares_tensor,
            const std::optional<Tensor>& scale_tensor, const std::optional<Tensor>& sums_tensor,
            const Codecs& codecs)
      : codecs(codecs) {
    const Home home(rows_tensor, "rows");
    home.check(state_tensor, "state");
    home.check(groups_tensor, "groups");
    home.check(effective_tensor, "effective");
    home.check(squares_tensor, "squares");
    home.check(scale_tensor, "gradient_scale");
    home.check(sums_tensor, "sums");
    rows = rows_of(rows_tensor);
    count = rows_tensor.size(0);
    state = state_of(state_tensor);
    groups = records<Group>(groups_tensor, "groups", 0);
    const int64_t group_count = count_of(groups_tensor);
    effective = records<EffectiveGroup>(effective_tensor, "effective", group_count);
    squares = records<double>(squares_tensor, "squares", count);
    gradient_scale =
        scale_tensor.has_value() ? *records<double>(*scale_tensor, "gradient_scale", 1) : 1.0;
    sums = sums_tensor.has_value() ? records<AlignmentSums>(*sums_tensor, "sums", count) : nullptr;
    check_rows(rows, count, group_count);
    for (int64_t i = 0; i < count; ++i) {
      STD_TORCH_CHECK(rows[i].error == 0 || codecs.param == Codec::kBFloat16, "row ", i,
                      " has error terms, which only parameters in bfloat16 may have");
    }
  }
};

// One step of every tensor of the table, in place; nothing where the step is skipped.
template <typename Algorithm>
void step(const Arguments& given, bool noise_on_parameter, Update<Algorithm> update,
          UpdateStored<Algorithm> update_stored) {
  if (given.state->active == 0) {
    return;
  }
  const NoiseKey key = key_of(*given.state);
  const Pieces pieces(given.rows, given.count);
  std::vector<AlignmentSums> partial(given.sums == nullptr ? 0 : pieces.size());
  pieces.for_each([&](int64_t piece, int64_t i, int64_t begin, int64_t elements) {
    const TensorRow& row = given.rows[i];
    const EffectiveGroup& effective = given.effective[row.group];
    const Common common = common_of(row, effective, given.state->noise, given.squares[i],
                                    given.gradient_scale, noise_on_parameter);
    const Group& group = given.groups[row.group];
    const auto scalars = Algorithm::scalars_of(row, group, effective,
                                               decay_share(group, effective, given.state->anneal));
    SumLanes lanes = {};
    SumLanes* sums = given.sums == nullptr ? nullptr : &lanes;
    NoiseKey keyed = key;
    keyed.index = static_cast<uint32_t>(row.index);
    if (given.codecs.all_float32()) {
      step_float32<Algorithm>(update, row, common, scalars, keyed, begin, elements, sums);
    } else {
      const int64_t done = step_stored<Algorithm>(update_stored, row, given.codecs, common, scalars,
                                                  keyed, begin, elements, sums);
      step_coded<Algorithm>(update, row, given.codecs, common, scalars, keyed, begin + done,
                            elements - done, sums);
    }
    if (sums != nullptr) {
      partial[piece] = sums_of_lanes(lanes);
    }
  });
  if (given.sums != nullptr) {
    add_up(pieces, given.count, partial, given.sums);
  }
}

}  // namespace adaptiverl
