// One SGD step, per tensor and per element. The twin of kernels/reference.py and
// kernels/sgd_step.py: the same names, the same statement order.
#pragma once

#include <cmath>
#include <cstdint>

#include "layout.h"
#include "noise.h"
#include "philox.h"
#include "tables.h"

namespace adaptiverl {

// What `Group::hyper1` is a sum of; `hyper0` is the dampening.
constexpr int kOptionNesterov = 1;
constexpr int kOptionDecoupled = 2;

// What the buffer does to the gradient.
enum class Momentum { kNone, kHeavyBall, kNesterov };

// What all elements of a tensor share: computed in float64, each cast once.
struct SGDScalars {
  float gradient_scale;  // negative for maximize
  float noise_scale;     // 0: no noise is drawn
  float weight_decay;    // the coupled one; 0 where it is decoupled
  float momentum;
  float one_minus_dampening;
  float decay;
  float lr;
  bool nesterov;
  bool noise_on_parameter;
};

// `square` is only read where there is noise.
inline SGDScalars sgd_scalars(const TensorRow& row, const Group& group,
                              const EffectiveGroup& effective, double noise, double square,
                              double gradient_scale, bool noise_on_parameter) {
  const int options = static_cast<int>(group.hyper1);
  const bool decoupled = (options & kOptionDecoupled) != 0;
  // The first gradient goes undampened into a buffer of zeros: it is the buffer then, as in torch.
  const bool first = *at<const float>(row.step) <= 1;
  SGDScalars scalars;
  // -(grad * scale) and grad * -scale are the same bits.
  scalars.gradient_scale = static_cast<float>(row.maximize != 0 ? -gradient_scale : gradient_scale);
  scalars.noise_scale = static_cast<float>(
      noise_scale(row, effective, noise, square, gradient_scale, noise_on_parameter));
  scalars.weight_decay = static_cast<float>(decoupled ? 0 : group.weight_decay);
  scalars.momentum = static_cast<float>(effective.momentum);
  scalars.one_minus_dampening = static_cast<float>(first ? 1 : 1 - group.hyper0);
  scalars.decay = static_cast<float>(decoupled ? 1 - effective.lr * group.weight_decay : 1);
  scalars.lr = static_cast<float>(effective.lr);
  scalars.nesterov = (options & kOptionNesterov) != 0;
  scalars.noise_on_parameter = noise_on_parameter;
  return scalars;
}

// Where a run of elements lies. The arrays do not overlap.
struct SGDRun {
  float* param;
  const float* grad;
  float* momentum_buffer;  // null: no momentum
  int64_t count;
};

// The gradient as it enters the buffer, but for the noise.
ADAPTIVERL_INLINE float decayed_gradient(const SGDScalars& s, float gradient, float p,
                                         bool coupled) {
  const float g = gradient * s.gradient_scale;
  return coupled ? g + s.weight_decay * p : g;
}

ADAPTIVERL_INLINE void sgd_element(const SGDScalars& s, float gradient, float xi, Noise noise,
                                   Momentum momentum, bool coupled, float& p, float* buffer) {
  float g = decayed_gradient(s, gradient, p, coupled);
  if (noise == Noise::kGradient) {
    g = g + s.noise_scale * xi;
  }
  float d = g;
  if (momentum != Momentum::kNone) {
    const float b = *buffer * s.momentum + s.one_minus_dampening * g;
    *buffer = b;
    d = momentum == Momentum::kNesterov ? g + s.momentum * b : b;
  }
  p = p * s.decay - s.lr * d;
  if (noise == Noise::kParameter) {
    p = p + s.noise_scale * xi;
  }
}

}  // namespace adaptiverl
