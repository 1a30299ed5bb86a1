// The generalisation pulse: alpha comes down where a held-out loss worsens. The twin of
// adaptiverl/law/pulse.py, which has the equations and the constants' reasons.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"
#include "knobs.h"
#include "sensors.h"

namespace adaptiverl {

constexpr double kReadingBeta = 0.2;
constexpr double kRoughnessBeta = 0.1;
constexpr double kRoughnessOfOne = 1.9544100476116797;  // sqrt(12 / pi)
constexpr double kWorseBy = 3.0;
constexpr double kReadingsEnough = 4.0;
constexpr double kCut = -2.3025850929940455;  // log 0.1
constexpr double kRest = 5.0;

ADAPTIVERL_BOTH void forget_readings(State& state) {
  state.pulse_readings = 0;
  state.pulses_waiting = 0;
  state.pulse_waiting = 0;
}

ADAPTIVERL_BOTH double error_of_mean(const State& state) {
  if (state.pulse_roughness_weight == 0) {
    return 0.0;
  }
  const double roughness = state.pulse_roughness / state.pulse_roughness_weight;
  return roughness / kRoughnessOfOne * sqrt(kReadingBeta / (2 - kReadingBeta));
}

ADAPTIVERL_BOTH void read_pulses(State& state, double training) {
  const double reading = state.pulse_waiting;
  const double change = clip(reading - state.pulse_reading, -kLargest, kLargest);
  state.pulse_readings += 1;
  state.pulses_waiting = 0;
  state.pulse_waiting = 0;
  state.pulse_at = state.step;
  state.pulse_reading = reading;
  state.pulse_rest = fmax(state.pulse_rest - 1, 0.0);
  if (state.pulse_readings == 1) {
    state.pulse_mean = reading;
    state.pulse_roughness = 0;
    state.pulse_roughness_weight = 0;
  } else {
    const double surprise = clip(reading - state.pulse_mean, -kLargest, kLargest);
    state.pulse_mean += kReadingBeta * surprise;
  }
  if (state.pulse_readings > 2) {
    const double size = fabs(change - state.pulse_change);
    state.pulse_roughness = ema(state.pulse_roughness, size, kRoughnessBeta);
    state.pulse_roughness_weight = ema(state.pulse_roughness_weight, 1.0, kRoughnessBeta);
  }
  state.pulse_change = change;
  if (state.pulse_readings <= kReadingsEnough || state.pulse_mean < state.pulse_least) {
    state.pulse_least = state.pulse_mean;
    state.pulse_training = training;
  }
  state.pulse_limit = state.pulse_least + kWorseBy * sqrt(2.0) * error_of_mean(state);
}

ADAPTIVERL_BOTH bool overfits(const State& state, double training) {
  if (state.pulse_readings <= kReadingsEnough || state.pulse_rest > 0) {
    return false;
  }
  return state.pulse_mean > state.pulse_limit && !(training >= state.pulse_training);
}

ADAPTIVERL_BOTH void cut(State& state, const ControlNumbers& control) {
  const double lowered = fmax(state.log_lr + kCut, control.log_lr_min);
  state.log_lr_ceiling = fmin(lowered, state.log_lr);
  state.log_lr = state.log_lr_ceiling;
  state.pulse_cuts += 1;
  state.pulse_rest = kRest;
}

ADAPTIVERL_BOTH void pulse(State& state, const ControlNumbers& control, double held_out,
                           double training) {
  state.pulse = held_out;
  state.pulses += 1;
  if (state.searching != 0 || state.step == 0) {
    forget_readings(state);
    return;
  }
  if (!is_finite(held_out)) {
    return;
  }
  state.pulses_waiting += 1;
  const double surprise = clip(held_out - state.pulse_waiting, -kLargest, kLargest);
  state.pulse_waiting += surprise / state.pulses_waiting;
  if (state.pulse_readings > 0 && state.step - state.pulse_at < control.pulse_spacing) {
    return;
  }
  read_pulses(state, training);
  if (overfits(state, training)) {
    cut(state, control);
    read_knobs(state, control);
  }
}

ADAPTIVERL_BOTH void below_ceiling(State& state) {
  if (state.log_lr_ceiling > -INFINITY) {
    state.log_lr = fmin(state.log_lr, state.log_lr_ceiling);
  }
}

}  // namespace adaptiverl
