// The law of alpha that ramps it up, goes back, and holds what the ramp found, or climbs from
// there. The twin of adaptiverl/law/range_test.py, which has the equations and the constants'
// reasons.
#pragma once

#include <cmath>

#include "../layout.h"
#include "alignment.h"
#include "arithmetic.h"
#include "base.h"
#include "cooldown.h"
#include "knobs.h"
#include "sensors.h"

namespace adaptiverl {

constexpr double kSquareBeta = 0.1;
constexpr double kMeanBeta = 0.3;
constexpr double kRamp = 0.35;
constexpr double kLeastRamp = 0.3;
constexpr double kSure = 4.0;
constexpr double kSureWithin = 4.605170185988092;  // log 100
constexpr double kRisenBy = 9.0;
constexpr double kLossesEnough = 12.0;
constexpr double kRisenWithin = 3.4011973816621555;  // log 30
constexpr double kLostBelow = 2.302585092994046;     // log 10
constexpr double kClimbFrom = -1.2039728043259361;   // log 0.3
constexpr double kClimbRoom = 100.0;
constexpr double kWatchedLeast = 30.0;
constexpr double kWatchedShare = 0.3333333333333333;
constexpr double kWatchClimbs = 3.0;
constexpr double kUndershootEnough = 5.0;
constexpr double kCreep = 0.3;

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

ADAPTIVERL_BOTH void forget_cosines(State& state) {
  state.overshoot = 0;
  state.undershoot = 0;
  state.alignment_square = 0;
  state.alignment_weight = 0;
  state.alignment_mean = 0;
  state.alignment_mean_weight = 0;
  state.alignment_peak = 0;
}

ADAPTIVERL_BOTH void begin(State& state, const ControlNumbers& control) {
  state.searching = 1;
  state.log_lr = control.log_lr_acquire;
  state.log_lr_judged = control.log_lr_acquire;
  state.log_lr_zero = -INFINITY;
  state.log_lr_risen = -INFINITY;
  forget_cosines(state);
  state.ramp_losses = 0;
  state.losses_heard = state.loss_count;
}

ADAPTIVERL_BOTH bool hears_a_loss(State& state) {
  const bool told = state.loss_count != state.losses_heard;
  state.losses_heard = state.loss_count;
  return told && is_finite(state.loss);
}

ADAPTIVERL_BOTH void hear_loss(State& state) {
  if (!hears_a_loss(state)) {
    return;
  }
  state.ramp_losses += 1;
  const double last = state.ramp_loss;
  state.ramp_loss = state.loss;
  if (state.ramp_losses == 1) {
    state.ramp_loss_mean = state.loss;
    state.ramp_loss_square = 0;
    return;
  }
  const double difference = clip(state.loss - last, -kLargest, kLargest);
  const double square = fmin(difference * difference, kLargest) / 2;
  const bool first = state.ramp_losses == 2;
  state.ramp_loss_square = first ? square : ema(state.ramp_loss_square, square, kSquareBeta);
  const double surprise = clip(state.loss - state.ramp_loss_mean, -kLargest, kLargest);
  state.ramp_loss_mean += kMeanBeta * surprise;
  if (state.ramp_losses < kLossesEnough) {
    return;
  }
  if (state.ramp_losses == kLossesEnough || state.ramp_loss_mean < state.ramp_loss_least) {
    const double error = sqrt(state.ramp_loss_square * (kMeanBeta / (2 - kMeanBeta)));
    state.ramp_loss_least = state.ramp_loss_mean;
    state.ramp_loss_limit = state.ramp_loss_mean + kRisenBy * sqrt(2.0) * error;
  } else if (state.log_lr_risen == -INFINITY) {
    if (fmin(fmin(state.ramp_loss_mean, state.loss), last) > state.ramp_loss_limit) {
      state.log_lr_risen = state.log_lr_judged;
    }
  }
}

ADAPTIVERL_BOTH void go_back(State& state) {
  state.rewind = 1;
  state.active = 0;
}

ADAPTIVERL_BOTH void mark(State& state, const ControlNumbers& control, double score) {
  if (state.log_lr_judged < control.log_ramp_floor) {
    return;
  }
  state.overshoot = next_overshoot(state.overshoot, score);
  if (state.log_lr_zero == -INFINITY && state.alignment_mean <= 0) {
    state.log_lr_zero = state.log_lr_judged;
  }
}

ADAPTIVERL_BOTH void climb(State& state, const ControlNumbers& control) {
  state.alignment_peak = fmax(state.alignment_peak, state.alignment_mean);
  double share = 1;
  if (state.log_lr_judged >= control.log_ramp_floor) {
    share = clip(ratio(state.alignment_mean, state.alignment_peak), kLeastRamp, 1.0);
  }
  state.log_lr_judged = state.log_lr;
  state.log_lr = bounded_log_lr(state.log_lr + kRamp * share, state.log_lr, control);
}

ADAPTIVERL_BOTH double warming(double step, double held_at, const ControlNumbers& control) {
  if (control.warm_up == 0) {
    return 1.0;
  }
  const double risen = clip((step - held_at) / control.warm_up, 0.0, 1.0);
  return exp(control.log_warm_from * (1 - risen));
}

ADAPTIVERL_BOTH bool is_lost(const State& state) {
  return -INFINITY < state.log_lr_risen && state.log_lr_risen < state.log_lr_zero - kLostBelow;
}

ADAPTIVERL_BOTH bool is_confirmed_by_loss(const State& state) {
  return -INFINITY < state.log_lr_risen && state.log_lr_risen <= state.log_lr_zero + kRisenWithin;
}

ADAPTIVERL_BOTH bool is_confirmed(const State& state) {
  if (state.log_lr_zero == -INFINITY || is_lost(state)) {
    return false;
  }
  const bool sure =
      state.overshoot > kSure && state.log_lr_judged <= state.log_lr_zero + kSureWithin;
  return sure || is_confirmed_by_loss(state);
}

ADAPTIVERL_BOTH bool is_at_top(const State& state, const ControlNumbers& control) {
  return state.log_lr_judged >= control.log_lr_max;
}

ADAPTIVERL_BOTH bool is_over(const State& state, const ControlNumbers& control) {
  const bool beyond =
      -INFINITY < state.log_lr_zero && state.log_lr_zero < state.log_lr_judged - kSureWithin;
  return is_lost(state) || is_confirmed(state) || beyond || is_at_top(state, control);
}

ADAPTIVERL_BOTH void begin_climb(State& state, const ControlNumbers& control, double log_lr) {
  state.held = 0;
  state.climbing = 1;
  state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
  state.log_lr_downhill = -INFINITY;
  state.log_lr_doubted = -INFINITY;
  forget_cosines(state);
}

ADAPTIVERL_BOTH void end(State& state, const ControlNumbers& control, bool late) {
  state.searching = 0;
  state.held_at = state.step;
  const bool unmarked = state.log_lr_zero == -INFINITY;
  const bool lost = is_lost(state) || (unmarked && state.log_lr_risen > -INFINITY);
  const bool confirmed = is_confirmed(state);
  const bool judged = state.log_lr_judged >= control.log_ramp_floor;
  const bool downhill = unmarked && judged && state.alignment_mean > 0 && !lost;
  if (lost) {
    state.log_lr_zero = -INFINITY;
  }
  const double found = downhill ? state.log_lr_judged : state.log_lr_zero;
  double log_lr = found > -INFINITY ? found + control.log_ramp_share : state.log_lr_start;
  const bool topped = downhill && is_at_top(state, control);
  if (topped) {
    state.log_lr_zero = found;
  }
  const bool as_it_is = topped || (late && found > -INFINITY);
  forget_cosines(state);
  const bool holds = confirmed || as_it_is;
  if (holds || control.hold_by - state.step < kClimbRoom) {
    state.held = 1;
    log_lr += control.log_held_share;
    state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
  } else {
    begin_climb(state, control, lost ? control.log_ramp_floor : log_lr + kClimbFrom);
  }
}

ADAPTIVERL_BOTH void search(State& state, const ControlNumbers& control, bool sensed,
                            double score) {
  bool late = is_cooling(state, control);
  if (state.searching == 0) {
    if (control.search_within == 0 || late) {
      state.held = 1;
    } else {
      begin(state, control);
      state.search_steps = 0;
    }
    return;
  }
  state.search_steps += 1;
  late = late || state.search_steps >= control.search_within;
  const bool lost = sensed && !is_finite(score);
  hear_loss(state);
  if (sensed && !lost) {
    mark(state, control, score);
  }
  if (lost && !late && state.log_lr_judged < control.log_ramp_floor) {
    go_back(state);
    begin(state, control);
    return;
  }
  if (lost && state.log_lr_risen == -INFINITY) {
    state.log_lr_risen = state.log_lr_judged;
  }
  if (late || lost || is_over(state, control)) {
    go_back(state);
    end(state, control, late);
  } else if (sensed) {
    climb(state, control);
  }
}

ADAPTIVERL_BOTH void creep(State& state, const ControlNumbers& control, bool sensed, double score) {
  const bool ready = state.held_at + control.warm_up < state.step && state.step < control.hold_by;
  if (ready && sensed && is_finite(score)) {
    state.undershoot = next_overshoot(state.undershoot, -score);
  }
  double log_lr = state.log_lr;
  if (state.undershoot > kUndershootEnough) {
    state.undershoot = 0;
    const double mark = state.log_lr_zero > -INFINITY ? state.log_lr_zero : INFINITY;
    log_lr = fmax(log_lr, fmin(log_lr + kCreep, mark));
  }
  state.log_lr = bounded_log_lr(log_lr, state.log_lr, control);
}

ADAPTIVERL_BOTH double window(const ControlNumbers& control) {
  return fmax(kWatchedLeast, floor(kWatchedShare * control.warm_up));
}

ADAPTIVERL_BOTH bool is_watched(const State& state, const ControlNumbers& control) {
  const bool warm =
      state.held_at + control.warm_up < state.step && state.step < control.hold_by - kClimbRoom;
  const bool below = fmax(state.log_lr, state.log_lr_zero) < control.log_lr_max;
  return warm && below && state.watches < 2 && !is_confirmed_by_loss(state);
}

ADAPTIVERL_BOTH bool has_learned(const State& state) {
  if (state.ramp_losses < kLossesEnough) {
    return false;
  }
  const double rise = state.ramp_loss_limit - state.ramp_loss_least;
  return state.ramp_loss_least - state.watched_mean > rise;
}

ADAPTIVERL_BOTH void watch(State& state, const ControlNumbers& control) {
  if (!hears_a_loss(state) || !is_watched(state, control)) {
    return;
  }
  state.watched += 1;
  const double surprise = clip(state.loss - state.watched_mean, -kLargest, kLargest);
  state.watched_mean += surprise / state.watched;
  const double rest = clip(state.loss - state.watched_mean, -kLargest, kLargest);
  state.watched_square = fmin(state.watched_square + surprise * rest, kLargest);
  if (state.watched < window(control)) {
    return;
  }
  const double error = state.watched_square / (state.watched * state.watched);
  const double fallen = state.watched_before - state.watched_mean;
  const double of_both = sqrt(state.watched_error + error);
  const bool stays = fallen <= of_both && !has_learned(state);
  state.watches += 1;
  state.watched_before = state.watched_mean;
  state.watched_error = error;
  state.watched = 0;
  state.watched_mean = 0;
  state.watched_square = 0;
  if (state.watches == 2 && stays) {
    state.watches = kWatchClimbs;
    state.log_lr_judged = state.log_lr + (fallen < -of_both ? kClimbFrom : 0.0);
    state.log_lr_risen = -INFINITY;
    state.ramp_losses = 0;
    begin_climb(state, control, state.log_lr + kClimbFrom);
  }
}

ADAPTIVERL_BOTH void turn_back(State& state) {
  hear_loss(state);
  if (state.log_lr_risen > -INFINITY) {
    state.climbing = 0;
    state.held = 1;
    state.log_lr = state.log_lr_judged;
    forget_cosines(state);
  }
}

struct RangeTestLaw : Law {
  static constexpr bool needs_loss = false;

  ADAPTIVERL_BOTH static bool sense(State& state, const ControlNumbers& control) {
    if (state.climbing != 0) {
      AlignmentLaw::sense(state, control);
      if (state.held != 0) {
        watch(state, control);
      } else if (state.watches == kWatchClimbs) {
        turn_back(state);
      }
      return true;
    }
    double score = 0;
    const bool sensed = sense_cosine(state, score);
    if (state.held == 0) {
      search(state, control, sensed, score);
    } else {
      creep(state, control, sensed, score);
      watch(state, control);
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
