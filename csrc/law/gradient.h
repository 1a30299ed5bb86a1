// What a pass's sums say of the gradient's size. The twin of adaptiverl/law/gradient.py.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"
#include "sensors.h"

namespace adaptiverl {

ADAPTIVERL_BOTH void sense_gradient(State& state, const ControlNumbers& control) {
  const double elements = state.aligned_elements;
  if (state.aligned_pending == 0 || elements == 0) {
    return;
  }
  const double direction = state.aligned_uu >= 0 ? sqrt(state.aligned_uu / elements) : NAN;
  if (is_finite(direction)) {
    state.update_rms = direction;
  }
  const double size = state.aligned_gg > 0 ? sqrt(state.aligned_gg / elements) : 0.0;
  if (size == 0 || !is_finite(size)) {
    return;
  }
  state.gradient_rms = size;
  if (state.gradient_count == 0) {
    state.gradient_rms_mean = size;
  } else {
    state.gradient_rms_mean = ema(state.gradient_rms_mean, size, control.beta_loss);
    const double deviation = size - state.gradient_rms_mean;
    const double square = fmin(deviation * deviation, kLargest);
    if (state.gradient_count == 1) {
      state.gradient_variance = square;
    } else {
      state.gradient_variance = ema(state.gradient_variance, square, control.beta_variance);
    }
  }
  state.gradient_count += 1;
}

}  // namespace adaptiverl
