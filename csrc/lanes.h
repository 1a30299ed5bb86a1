// Sums in a fixed order: element i is added to lane i % kLanes, and the lanes are added pairwise at
// the end. So a sum has the same bits whatever the width of the CPU's vectors.
#pragma once

#include "philox.h"
#include "tables.h"

namespace adaptiverl {

constexpr int kLanes = 16;

// `AlignmentSums`, each in lanes.
struct SumLanes {
  double gu[kLanes];
  double gg[kLanes];
  double uu[kLanes];
};

ADAPTIVERL_INLINE double sum_of_lanes(const double* lane) {
  double sum[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    sum[j] = lane[j];
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) {
      sum[j] += sum[j + half];
    }
  }
  return sum[0];
}

inline AlignmentSums sums_of_lanes(const SumLanes& lanes) {
  return AlignmentSums{sum_of_lanes(lanes.gu), sum_of_lanes(lanes.gg), sum_of_lanes(lanes.uu)};
}

}  // namespace adaptiverl
