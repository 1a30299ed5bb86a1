// The law of alpha that ramps it up, goes back, and holds what the ramp found. The twin of
// adaptiverl/law/range_test.py, which has the equations and the constants' reasons.
#pragma once

#include <cmath>

#include "../layout.h"
#include "alignment.h"
#include "arithmetic.h"
#include "base.h"
#include "knobs.h"

namespace adaptiverl {

constexpr double kSquareBeta = 0.1;
constexpr double kMeanBeta = 0.3;
constexpr double kRamp = 0.35;
constexpr double kLeastRamp = 0.3;
constexpr double kSure = 3.0;

// The newest pass's sums, read once. Returns whether there was something to read; `score` is then
// h in units of its RMS, limited to what one step can say, and NaN where h is not finite.
ADAPTIVERL_BOTH bool sense_cosine(State& state, double& score) {
  const bool pending = state.aligned_pending != 0;
  state.aligned_pending = 0;
  if (!pending || state.aligned_gg == 0 || state.aligned_uu == 0) {
    return false;
  }
  const double cosine = state.aligned_gu / (sqrt(state.aligned_gg) * sqrt(state.aligned_uu));
  score = NAN;
  if (!is_finite(cosine)) {
    return true;
  }
  state.alignment = cosine;
  state.alignment_square = ema(state.alignment_square, cosine * cosine, kSquareBeta);
  state.alignment_weight = ema(state.alignment_weight, 1.0, kSquareBeta);
  const double rms = sqrt(state.alignment_square / state.alignment_weight);
  score = clip(ratio(cosine, rms), -kOvershootClip, kOvershootClip);
  state.alignment_direction = clip(score, -1.0, 1.0);
  state.alignment_mean_weight = ema(state.alignment_mean_weight, 1.0, kMeanBeta);
  const double change = kMeanBeta / state.alignment_mean_weight * (cosine - state.alignment_mean);
  state.alignment_mean = clip(state.alignment_mean + change, -1.0, 1.0);
  return true;
}

ADAPTIVERL_BOTH void begin(State& state, const ControlNumbers& control) {
  state.searching = 1;
  state.log_lr = control.log_lr_acquire;
  state.log_lr_judged = control.log_lr_acquire;
  state.log_lr_downhill = -INFINITY;
  state.log_lr_clear = -INFINITY;
  state.overshoot = 0;
  state.alignment_square = 0;
  state.alignment_weight = 0;
  state.alignment_mean = 0;
  state.alignment_mean_weight = 0;
  state.alignment_peak = 0;
}

ADAPTIVERL_BOTH void go_back(State& state) {
  state.rewind = 1;
  state.active = 0;
}

ADAPTIVERL_BOTH void mark(State& state, const ControlNumbers& control, double score) {
  if (state.alignment_mean > 0) {
    state.log_lr_downhill = state.log_lr_judged;
  }
  if (state.log_lr_judged >= control.log_ramp_floor) {
    state.overshoot = next_overshoot(state.overshoot, score);
  }
  if (state.overshoot == 0) {
    state.log_lr_clear = state.log_lr_judged;
  }
}

ADAPTIVERL_BOTH void climb(State& state, const ControlNumbers& control) {
  state.alignment_peak = fmax(state.alignment_peak, state.alignment_mean);
  double share = 1;
  if (state.log_lr_judged >= control.log_ramp_floor) {
    share = clip(ratio(state.alignment_mean, state.alignment_peak), kLeastRamp, 1.0);
  }
  state.log_lr_judged = state.log_lr;
  const double log_lr = state.log_lr + kRamp * share;
  state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
}

ADAPTIVERL_BOTH double warming(double step, double held_at, const ControlNumbers& control) {
  if (control.warm_up == 0) {
    return 1.0;
  }
  return clip((step - held_at) / control.warm_up, 0.0, 1.0);
}

struct RangeTestLaw : Law {
  static constexpr bool needs_loss = false;

  ADAPTIVERL_BOTH static void hold(State& state, const ControlNumbers& control) {
    state.held = 1;
    state.held_at = state.step;
    state.searching = 0;
    const double found = fmin(state.log_lr_downhill, state.log_lr_clear);
    const double log_lr = found > -INFINITY ? found + control.log_held_share : state.log_lr_start;
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
  }

  ADAPTIVERL_BOTH static void search(State& state, const ControlNumbers& control, bool sensed,
                                     double score) {
    bool over = state.step >= control.hold_by;
    if (state.searching == 0) {
      if (control.search_within == 0 || over) {
        state.held = 1;
      } else {
        begin(state, control);
        state.search_steps = 0;
      }
      return;
    }
    state.search_steps += 1;
    over = over || state.search_steps >= control.search_within;
    const bool lost = sensed && !is_finite(score);
    if (sensed && !lost) {
      mark(state, control, score);
    }
    if (over || state.overshoot > kSure || lost) {
      go_back(state);
      if (lost && !over && state.log_lr_judged < control.log_ramp_floor) {
        begin(state, control);
      } else {
        hold(state, control);
      }
    } else if (sensed) {
      climb(state, control);
    }
  }

  ADAPTIVERL_BOTH static bool sense(State& state, const ControlNumbers& control) {
    double score = 0;
    const bool sensed = sense_cosine(state, score);
    if (state.held == 0) {
      search(state, control, sensed, score);
    } else {
      state.log_lr = bounded_log_lr(state.log_lr, state.log_lr, control);
    }
    state.anneal = 1;
    if (state.held != 0) {
      const double risen = warming(state.step, state.held_at, control);
      state.anneal = risen * annealing(state.step, control);
    }
    return true;
  }

  ADAPTIVERL_BOTH static void act(State&, const ControlNumbers&, double, double) {}
};

}  // namespace adaptiverl
