// The law of alpha that searches by the alignment of gradient and last update. The twin of
// adaptiverl/law/alignment.py, which has the equations and the constants' reasons.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"
#include "base.h"
#include "cooldown.h"

namespace adaptiverl {

constexpr double kAlignmentBeta = 0.05;
constexpr double kDirectionBeta = 0.2;
constexpr double kClearlyDownhill = 0.2;
constexpr double kGrowth = 0.2;
constexpr double kOvershootSize = 0.3;
constexpr double kOvershootClip = 2.0;
constexpr double kOvershootNone = 1.0;
constexpr double kOvershootEnough = 5.0;
constexpr double kReach = 0.3;
constexpr double kSameRate = 1.5;

// The newest pass's sums, read once. Returns whether there was something to read; `score` is then
// h in units of its RMS, limited to what one step can say.
ADAPTIVERL_BOTH bool sense_alignment(State& state, double& score) {
  const bool pending = state.aligned_pending != 0;
  state.aligned_pending = 0;
  if (!pending || state.aligned_gg == 0 || state.aligned_uu == 0) {
    return false;
  }
  const double cosine = state.aligned_gu / (sqrt(state.aligned_gg) * sqrt(state.aligned_uu));
  score = -1.0;
  if (is_finite(cosine)) {
    state.alignment = cosine;
    state.alignment_square = ema(state.alignment_square, cosine * cosine, kAlignmentBeta);
    state.alignment_weight = ema(state.alignment_weight, 1.0, kAlignmentBeta);
    const double rms = sqrt(state.alignment_square / state.alignment_weight);
    score = clip(ratio(cosine, rms), -kOvershootClip, kOvershootClip);
  }
  state.alignment_direction = clip(score, -1.0, 1.0);
  state.alignment_mean = ema(state.alignment_mean, state.alignment_direction, kDirectionBeta);
  return true;
}

ADAPTIVERL_BOTH double beyond_noise(double mean) {
  const double square = mean * mean;
  const double error = (1 - square) * kDirectionBeta / (2 - kDirectionBeta);
  return square > error ? mean * (1 - error / square) : 0.0;
}

ADAPTIVERL_BOTH double next_overshoot(double overshoot, double score) {
  const double evidence = -kOvershootSize * score - kOvershootSize * kOvershootSize / 2;
  return fmax(overshoot + evidence, 0.0);
}

ADAPTIVERL_BOTH void hold(State& state, const ControlNumbers& control) {
  state.held = 1;
  if (state.log_lr_downhill > -INFINITY) {
    state.log_lr = state.log_lr_downhill;
  }
  const double log_lr = state.log_lr + control.log_held_share;
  state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
}

ADAPTIVERL_BOTH void look_again_or_hold(State& state, const ControlNumbers& control) {
  if (state.log_lr_downhill <= state.log_lr_doubted + kSameRate) {
    state.log_lr_downhill = fmin(state.log_lr_downhill, state.log_lr_doubted);
    hold(state, control);
    return;
  }
  state.log_lr_doubted = state.log_lr_downhill;
  state.log_lr = clip(state.log_lr_downhill, control.log_lr_min, control.log_lr_max);
  state.overshoot = 0;
}

ADAPTIVERL_BOTH void acquire(State& state, const ControlNumbers& control, double score) {
  const bool higher = state.log_lr >= state.log_lr_downhill;
  if (state.alignment_mean > kClearlyDownhill && (higher || state.overshoot < kOvershootNone)) {
    state.log_lr_downhill = state.log_lr;
  }
  if (state.log_lr_downhill > -INFINITY) {
    state.overshoot = next_overshoot(state.overshoot, score);
  }
  if (state.overshoot > kOvershootEnough) {
    look_again_or_hold(state, control);
    return;
  }
  const double growth = kGrowth * (1 - state.overshoot / kOvershootEnough);
  const double step = (1 - state.momentum) * (beyond_noise(state.alignment_mean) + growth);
  double log_lr = state.log_lr + step;
  if (state.log_lr_downhill > -INFINITY) {
    log_lr = fmin(log_lr, state.log_lr_downhill + kReach);
  }
  state.log_lr = bounded_log_lr(log_lr, state.log_lr, control);
}

ADAPTIVERL_BOTH void skip_reused(State& state, const ControlNumbers& control) {
  if (control.reused_for > 0) {
    const double made = fmod(state.step - 2, control.reused_for);
    if (made >= control.fresh_for) {
      state.aligned_pending = 0;
    }
  }
}

struct AlignmentLaw : Law {
  static constexpr bool needs_loss = false;

  ADAPTIVERL_BOTH static bool sense(State& state, const ControlNumbers& control) {
    skip_reused(state, control);
    double score = 0;
    const bool sensed = sense_alignment(state, score);
    if (state.held == 0 && sensed) {
      acquire(state, control, score);
    } else {
      state.log_lr = bounded_log_lr(state.log_lr, state.log_lr, control);
    }
    if (state.held == 0 && is_cooling(state, control)) {
      hold(state, control);
    }
    state.anneal = annealing(state.step, control);
    return true;
  }

  ADAPTIVERL_BOTH static void act(State&, const ControlNumbers&, double, double) {}
};

}  // namespace adaptiverl
