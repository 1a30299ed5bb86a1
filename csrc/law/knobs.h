// The spaces that alpha, mu and sigma live in, the laws of mu and sigma, and what a group sees of
// them. The twin of adaptiverl/law/knobs.py, which has the equations.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"

namespace adaptiverl {

ADAPTIVERL_BOTH double bounded_log_lr(double wanted, double log_lr, const ControlNumbers& control) {
  const double low = fmin(control.log_lr_min, log_lr + control.log_lr_change_up);
  const double high = fmax(control.log_lr_max, log_lr + control.log_lr_change_down);
  return clip(wanted, low, high);
}

ADAPTIVERL_BOTH double next_logit_momentum(double logit_momentum, double reward_direction,
                                           double worsening, const ControlNumbers& control) {
  const double step =
      control.gain_momentum_reward * reward_direction - control.gain_momentum_loss * worsening;
  return clip(logit_momentum + step, control.logit_momentum_min, control.logit_momentum_max);
}

ADAPTIVERL_BOTH double next_log_noise(double log_noise, double plateau, double improving,
                                      const ControlNumbers& control) {
  if (control.noise_max == 0) {
    return log_noise;
  }
  const double step = control.gain_noise_plateau * plateau - control.gain_noise_reward * improving;
  return clip(log_noise + step, control.log_noise_floor, control.log_noise_max);
}

ADAPTIVERL_BOTH void read_knobs(State& state, const ControlNumbers& control) {
  double lr = exp(state.log_lr);
  if (control.log_lr_min <= state.log_lr && state.log_lr <= control.log_lr_max) {
    lr = clip(lr, control.lr_min, control.lr_max);
  }
  state.lr = lr * state.anneal;
  state.momentum = clip(sigmoid(state.logit_momentum), control.momentum_min, control.momentum_max);
  const bool floored = control.noise_max == 0 || state.log_noise <= control.log_noise_floor;
  const double lifted = clip(exp(state.log_noise), control.noise_min, control.noise_max);
  state.noise = floored ? control.noise_min : lifted;
}

ADAPTIVERL_BOTH State start(const ControlNumbers& control, double lr, double momentum,
                            double seed_low, double seed_high) {
  State state;
  state.seed_low = seed_low;
  state.seed_high = seed_high;
  state.log_lr = control.log_lr_acquire;
  state.log_lr_start = log(lr);
  state.logit_momentum = logit(clip(momentum, control.momentum_min, control.momentum_max));
  state.logit_momentum_start = state.logit_momentum;
  state.log_noise = control.log_noise_floor;
  read_knobs(state, control);
  return state;
}

// How a group sees the knobs (method.md#modes)

ADAPTIVERL_BOTH double group_lr(double lr, const State& state) {
  return lr * exp(state.log_lr - state.log_lr_start) * state.anneal;
}

ADAPTIVERL_BOTH double group_momentum(double momentum, const State& state) {
  if (state.logit_momentum == state.logit_momentum_start) {
    return momentum;
  }
  return sigmoid(logit(momentum) + state.logit_momentum - state.logit_momentum_start);
}

ADAPTIVERL_BOTH EffectiveGroup effective_group(const Group& group, const State& state) {
  return EffectiveGroup{group_lr(group.lr, state), group_momentum(group.momentum, state)};
}

}  // namespace adaptiverl
