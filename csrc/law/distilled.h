// The law that asks f_phi, fitted to schedules made in hindsight. The twin of
// adaptiverl/law/distilled.py, which has the equations.
#pragma once

#include <cmath>

#include "../layout.h"
#include "alignment.h"
#include "arithmetic.h"
#include "base.h"
#include "knobs.h"
#include "sensors.h"

namespace adaptiverl {

constexpr int kFeatures = 8;
constexpr int kOutputs = 3;
constexpr int kWidest = 32;

struct DistilledLaw : Law {
  static constexpr bool needs_loss = true;

  ADAPTIVERL_BOTH static void features(const State& state, const ControlNumbers& control,
                                       double* given) {
    const double variance_ratio = fmin(ratio(state.variance, state.variance_scale), kLargest);
    const double since = state.held != 0 ? (state.step - state.held_at) / control.horizon : 0.0;
    given[0] = state.loss_direction;
    given[1] = state.plateau;
    given[2] = variance_ratio / (1 + variance_ratio);
    given[3] = clip(state.alignment, -1.0, 1.0);
    given[4] = state.alignment_mean;
    given[5] = clip(state.step / control.horizon, 0.0, 1.0);
    given[6] = state.held;
    given[7] = clip(since, 0.0, 1.0);
  }

  ADAPTIVERL_BOTH static double bent(double x) { return x / (1 + fabs(x)); }

  // Leaves `weights` at the next layer's.
  ADAPTIVERL_BOTH static void layer(const double*& weights, const double* inputs, int count,
                                    double* sums, int units) {
    for (int unit = 0; unit < units; ++unit) {
      double total = weights[count];
      for (int i = 0; i < count; ++i) {
        total += weights[i] * inputs[i];
      }
      sums[unit] = total;
      weights += count + 1;
    }
  }

  // The weights lie behind the numbers: nobody copies them.
  ADAPTIVERL_BOTH static void answer(const ControlNumbers& control, const double* given,
                                     double* said) {
    const double* weights = reinterpret_cast<const double*>(&control + 1);
    double values[kWidest];
    double sums[kWidest];
    int count = kFeatures;
    for (int i = 0; i < count; ++i) {
      values[i] = given[i];
    }
    const int hidden[2] = {static_cast<int>(control.hidden0), static_cast<int>(control.hidden1)};
    for (const int units : hidden) {
      if (units > 0) {
        layer(weights, values, count, sums, units);
        count = units;
        for (int i = 0; i < count; ++i) {
          values[i] = bent(sums[i]);
        }
      }
    }
    layer(weights, values, count, said, kOutputs);
  }

  ADAPTIVERL_BOTH static bool sense(State& state, const ControlNumbers&) {
    double score = 0;
    const bool sensed = sense_alignment(state, score);
    if (state.held == 0 && sensed) {
      state.overshoot = next_overshoot(state.overshoot, score);
      if (state.overshoot > kOvershootEnough) {
        state.held = 1;
        state.held_at = state.step;
      }
    }
    if (state.anneal == 1) {
      return false;
    }
    state.anneal = 1;  // another law's
    return true;
  }

  ADAPTIVERL_BOTH static void act(State& state, const ControlNumbers& control, double, double) {
    const double steps = state.step - state.moved_at;
    state.moved_at = state.step;
    if (control.horizon == 0 || state.step > control.horizon) {
      return;
    }
    double given[kFeatures];
    double said[kOutputs];
    features(state, control, given);
    answer(control, given, said);
    if (state.nonfinite_pending != 0) {  // f_phi never saw any: as the loss law's reflex
      said[0] = control.log_lr_change_down * control.horizon / fmax(steps, 1.0);
      said[1] = 0;
      said[2] = 0;
    }
    state.move_lr = said[0];
    state.move_momentum = said[1];
    state.move_noise = said[2];
    const double share = steps / control.horizon;
    double moves[kOutputs];
    for (int i = 0; i < kOutputs; ++i) {
      moves[i] = clip(said[i] * share, control.log_lr_change_down, control.log_lr_change_up);
    }
    state.log_lr = bounded_log_lr(state.log_lr + moves[0], state.log_lr, control);
    state.logit_momentum = clip(state.logit_momentum + moves[1], control.logit_momentum_min,
                                control.logit_momentum_max);
    if (control.noise_max != 0) {
      state.log_noise =
          clip(state.log_noise + moves[2], control.log_noise_floor, control.log_noise_max);
    }
  }
};

}  // namespace adaptiverl
