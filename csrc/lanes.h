// Sums in a fixed order: element i is added to lane i % kLanes, and the lanes are added pairwise at
// the end. So a sum has the same bits whatever the width of the CPU's vectors.
#pragma once

#include "philox.h"

namespace adaptiverl {

constexpr int kLanes = 16;

// Σ g·u, Σ g² and Σ u²: the gradient against the direction of the last update.
struct AlignmentLanes {
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

}  // namespace adaptiverl
