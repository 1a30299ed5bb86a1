// How strong one tensor's noise is, and where it goes. The normals themselves are normals.h.
#pragma once

#include <cmath>

#include "tables.h"

namespace adaptiverl {

enum class Noise {
  kNone,
  kGradient,   // added to the gradient before the moments see it (method.md#noise)
  kParameter,  // added to the parameter after its update
};

// sigma times the RMS of what the noise is added to, from `square`, its sum of squares over the
// whole logical tensor, which is only read where there is noise. On the gradient the raw RMS still
// has to be scaled as the gradient is; on the parameter the learning rate is the unit of a move.
inline double noise_scale(const TensorRow& row, const EffectiveGroup& effective, double noise,
                          double square, double gradient_scale, bool on_parameter) {
  if (noise == 0) {
    return 0;
  }
  const double rms = std::sqrt(square / static_cast<double>(row.logical_numel));
  return noise * rms * (on_parameter ? effective.lr : gradient_scale);
}

}  // namespace adaptiverl
