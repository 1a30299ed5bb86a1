// One AdamW step, per tensor and per element. The twin of kernels/reference.py and
// kernels/adamw_step.py: the same names, the same statement order.
#pragma once

#include <cmath>
#include <cstdint>

#include "layout.h"
#include "noise.h"
#include "philox.h"
#include "tables.h"

namespace adaptiverl {

// What all elements of a tensor share: computed in float64, each cast once.
struct AdamWScalars {
  float gradient_scale;  // negative for maximize
  float noise_scale;     // 0: no noise is drawn
  float one_minus_momentum;
  float beta2;
  float one_minus_beta2;
  float bias2_sqrt;
  float eps;
  float decay;
  float step_size;
  bool noise_on_parameter;
};

// `square` is only read where there is noise.
inline AdamWScalars adamw_scalars(const TensorRow& row, const Group& group,
                                  const EffectiveGroup& effective, double noise, double square,
                                  double gradient_scale, bool noise_on_parameter) {
  const double bias1 = 1 - *at<const double>(row.mu_product);
  const double bias2_sqrt =
      std::sqrt(1 - std::pow(group.hyper0, static_cast<double>(*at<const float>(row.step))));
  AdamWScalars scalars;
  // -(grad * scale) and grad * -scale are the same bits.
  scalars.gradient_scale = static_cast<float>(row.maximize != 0 ? -gradient_scale : gradient_scale);
  scalars.noise_scale = static_cast<float>(
      noise_scale(row, effective, noise, square, gradient_scale, noise_on_parameter));
  scalars.one_minus_momentum = static_cast<float>(1 - effective.momentum);
  scalars.beta2 = static_cast<float>(group.hyper0);
  scalars.one_minus_beta2 = static_cast<float>(1 - group.hyper0);
  scalars.bias2_sqrt = static_cast<float>(bias2_sqrt);
  scalars.eps = static_cast<float>(group.hyper1);
  scalars.decay = static_cast<float>(1 - effective.lr * group.weight_decay);
  scalars.step_size = static_cast<float>(effective.lr / bias1);
  scalars.noise_on_parameter = noise_on_parameter;
  return scalars;
}

// Where a run of elements lies. The arrays do not overlap.
struct AdamWRun {
  float* param;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* max_exp_avg_sq;  // null: no amsgrad
  int64_t count;
};

// The direction of the last update, before this one: what the gradient is compared with.
ADAPTIVERL_INLINE float last_direction(float m, float v, float eps) {
  return m / (__builtin_sqrtf(v) + eps);
}

// torch.maximum: a NaN in either wins.
ADAPTIVERL_INLINE float maximum(float a, float b) { return a >= b || a != a ? a : b; }

ADAPTIVERL_INLINE void adamw_element(const AdamWScalars& s, float gradient, float xi, Noise noise,
                                     bool amsgrad, float& p, float& m, float& v, float* v_max) {
  float g = gradient * s.gradient_scale;
  if (noise == Noise::kGradient) {
    g = g + s.noise_scale * xi;
  }
  m = m + s.one_minus_momentum * (g - m);
  v = v * s.beta2 + s.one_minus_beta2 * (g * g);
  float v_hat = v;
  if (amsgrad) {
    v_hat = maximum(*v_max, v);
    *v_max = v_hat;
  }
  const float denominator = __builtin_sqrtf(v_hat) / s.bias2_sqrt + s.eps;
  p = p * s.decay - s.step_size * (m / denominator);
  if (noise == Noise::kParameter) {
    p = p + s.noise_scale * xi;
  }
}

}  // namespace adaptiverl
