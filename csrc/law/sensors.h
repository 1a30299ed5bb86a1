// What losses and rewards become before a law reads them. The twin of
// adaptiverl/law/sensors.py, which has the equations.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"

namespace adaptiverl {

constexpr double kLargest = 1.0715086071862673e301;  // 2^1000

ADAPTIVERL_BOTH double innovation(double sample, double mean, double scale, double count,
                                  double beta, double spike_clip) {
  const double surprise = clip(sample - mean, -kLargest, kLargest);
  if (count >= 2 && scale > 0) {
    const double limit = spike_clip * scale / beta;
    return clip(surprise, -limit, limit);
  }
  return surprise;
}

ADAPTIVERL_BOTH double scale_of(double scale, double trend, double count, double beta) {
  return count == 1 ? fabs(trend) : ema(scale, fabs(trend), beta);
}

ADAPTIVERL_BOTH double direction(double trend, double scale) {
  return clip(ratio(trend, scale), -1.0, 1.0);
}

ADAPTIVERL_BOTH double plateau_score(double loss_direction, double variance_ratio,
                                     const ControlNumbers& control) {
  const double flat = sigmoid((control.trend_center - fabs(loss_direction)) / control.trend_slope);
  const double quiet = sigmoid((control.variance_center - variance_ratio) / control.variance_slope);
  return flat * quiet;
}

ADAPTIVERL_BOTH void sense_loss(State& state, const ControlNumbers& control, double loss) {
  if (state.loss_count == 0) {
    state.loss_mean = loss;
  } else {
    const double beta = control.beta_loss;
    const double surprise = innovation(loss, state.loss_mean, state.loss_scale, state.loss_count,
                                       beta, control.spike_clip);
    if (surprise != loss - state.loss_mean) {
      loss = state.loss_mean + surprise;
    }
    state.loss_trend = beta * surprise;
    state.loss_mean += state.loss_trend;
    const double deviation = loss - state.loss_mean;
    const double square = fmin(deviation * deviation, kLargest);
    if (state.loss_count == 1) {
      state.variance = square;
    } else {
      state.variance = ema(state.variance, square, control.beta_variance);
    }
    state.loss_scale = scale_of(state.loss_scale, state.loss_trend, state.loss_count, beta);
    state.variance_scale =
        scale_of(state.variance_scale, state.variance, state.loss_count, control.beta_variance);
  }
  state.loss_count += 1;
  state.loss_direction = direction(state.loss_trend, state.loss_scale);
  const double variance_ratio = ratio(state.variance, state.variance_scale);
  state.plateau = plateau_score(state.loss_direction, variance_ratio, control);
}

ADAPTIVERL_BOTH void sense_reward(State& state, const ControlNumbers& control, double reward) {
  if (state.reward_count == 0) {
    state.reward_mean = reward;
  } else {
    const double beta = control.beta_reward;
    const double surprise = innovation(reward, state.reward_mean, state.reward_scale,
                                       state.reward_count, beta, control.spike_clip);
    state.reward_trend = beta * surprise;
    state.reward_mean += state.reward_trend;
    state.reward_scale = scale_of(state.reward_scale, state.reward_trend, state.reward_count, beta);
  }
  state.reward_count += 1;
  state.reward_direction = direction(state.reward_trend, state.reward_scale);
}

ADAPTIVERL_BOTH void sense(State& state, const ControlNumbers& control, double loss, bool rewarded,
                           double reward) {
  if (control.reward_source == kRewardNegLoss) {
    reward = -loss;
    rewarded = true;
  }
  state.observed_pending = 1;
  state.loss = loss;
  bool finite = is_finite(loss);
  if (finite) {
    sense_loss(state, control, loss);
  }
  if (rewarded && control.reward_source != kRewardNone) {
    state.rewarded_pending = 1;
    state.reward = reward;
    finite = finite && is_finite(reward);
    if (is_finite(reward)) {
      sense_reward(state, control, reward);
    }
  }
  if (!finite) {
    state.nonfinite += 1;
    state.nonfinite_pending = 1;
  }
}

}  // namespace adaptiverl
