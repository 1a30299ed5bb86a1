// The law that chooses whose gains are in force: discounted Thompson sampling. The twin of
// adaptiverl/law/bandit.py, which has the equations and the constants' reasons.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"
#include "draws.h"
#include "loss.h"
#include "sensors.h"

namespace adaptiverl {

constexpr double kPriorSpread = 0.5;
constexpr double kSpread = 0.25;
constexpr double kSpreadCount = 2.0;
constexpr double kWorst = -1.0;

struct BanditLaw : LossLaw {
  static constexpr bool needs_loss = true;

  ADAPTIVERL_BOTH static void begin(State& state, const ControlNumbers& control) {
    state.arms_key = control.arms_key;
    state.arm = 0;
    state.window_left = 0;
    state.window_scale = 0;
    state.window_reward = 0;
    state.reward_square = 0;
    state.played_count = 0;
    state.played_mean = 0;
    for (int arm = 0; arm < kArms; ++arm) {
      state.arm_count[arm] = 0;
      state.arm_mean[arm] = 0;
    }
  }

  ADAPTIVERL_BOTH static void count(State& state) {
    state.window_left -= 1;
    if (is_finite(state.loss)) {
      state.window_path = fmin(state.window_path + fabs(state.loss_trend), kLargest);
    } else {
      state.window_broken = 1;
    }
  }

  ADAPTIVERL_BOTH static double discounted(State& state, const ControlNumbers& control) {
    state.reward_square *= control.discount;
    double total = 0;
    for (int arm = 0; arm < control.arm_count; ++arm) {
      double windows = control.discount * state.arm_count[arm];
      if (arm == state.arm) {
        windows += 1;
      }
      state.arm_count[arm] = windows;
      total += windows;
    }
    return total;
  }

  ADAPTIVERL_BOTH static double reward_of(State& state, double windows) {
    if (state.window_broken != 0) {
      return kWorst;
    }
    const double share = state.window_scale > 0 ? 1 / windows : 1.0;
    state.window_scale += share * (state.window_path - state.window_scale);
    const double drop = clip(state.window_start - state.loss_mean, -kLargest, kLargest);
    return ratio(drop, fabs(drop) + state.window_scale);
  }

  ADAPTIVERL_BOTH static void learn(State& state, double reward) {
    const int arm = static_cast<int>(state.arm);
    const double before = state.arm_mean[arm];
    const double windows = state.arm_count[arm];
    const double mean = clip(before + (reward - before) / windows, -1.0, 1.0);
    state.arm_mean[arm] = mean;
    state.reward_square += fmax((reward - before) * (reward - mean), 0.0);
    state.window_reward = reward;
  }

  ADAPTIVERL_BOTH static double spread_square(const State& state, const ControlNumbers& control) {
    double total = kSpreadCount;
    for (int arm = 0; arm < control.arm_count; ++arm) {
      total += state.arm_count[arm];
    }
    return (kSpreadCount * kSpread * kSpread + state.reward_square) / total;
  }

  ADAPTIVERL_BOTH static double drawn_mean(const State& state, int arm, double square) {
    const double windows = state.arm_count[arm];
    const double known = windows + square / (kPriorSpread * kPriorSpread);
    const double chance = normal(state.seed_low, state.seed_high, state.arm_draws, arm);
    return windows * state.arm_mean[arm] / known + sqrt(square / known) * chance;
  }

  ADAPTIVERL_BOTH static void choose(State& state, const ControlNumbers& control) {
    double largest = -INFINITY;
    const double square = spread_square(state, control);
    for (int arm = 0; arm < control.arm_count; ++arm) {
      const double mean = drawn_mean(state, arm, square);
      if (mean > largest) {
        largest = mean;
        state.arm = arm;
      }
    }
    state.arm_draws += 1;
    state.played_count = state.arm_count[static_cast<int>(state.arm)];
    state.played_mean = state.arm_mean[static_cast<int>(state.arm)];
    state.window_left = control.window;
    state.window_start = state.loss_mean;
    state.window_path = 0;
    state.window_broken = 0;
  }

  ADAPTIVERL_BOTH static void judge(State& state, const ControlNumbers& control) {
    if (state.arms_key != control.arms_key) {
      begin(state, control);
    }
    if (state.window_left > 0) {
      count(state);
      if (state.window_left > 0) {
        return;
      }
      learn(state, reward_of(state, discounted(state, control)));
    }
    if (state.loss_count > 0) {
      choose(state, control);
    }
  }

  ADAPTIVERL_BOTH static ControlNumbers in_force(const State& state,
                                                 const ControlNumbers& control) {
    ControlNumbers numbers = control;
    const ArmNumbers& arm = control.arms[static_cast<int>(fmin(state.arm, control.arm_count - 1))];
    numbers.every = arm.every;
    numbers.gain_lr_reward = arm.gain_lr_reward;
    numbers.gain_lr_loss = arm.gain_lr_loss;
    numbers.gain_momentum_reward = arm.gain_momentum_reward;
    numbers.gain_momentum_loss = arm.gain_momentum_loss;
    numbers.gain_noise_plateau = arm.gain_noise_plateau;
    numbers.gain_noise_reward = arm.gain_noise_reward;
    numbers.log_lr_change_down = arm.log_lr_change_down;
    numbers.log_lr_change_up = arm.log_lr_change_up;
    return numbers;
  }
};

}  // namespace adaptiverl
