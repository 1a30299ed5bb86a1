// Sensors (specification §1), laws (§2, §9) and the loop (§10), for host and device alike.
// The twin of adaptiverl/laws.py: the same names, the same statement order.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define ADAPTIVERL_BOTH __host__ __device__ inline
#else
#define ADAPTIVERL_BOTH inline
#endif

namespace adaptiverl {

constexpr double kLayoutVersion = 3.0;
// 2^1000: innovations and squared deviations saturate here (laws.LARGEST).
constexpr double kLargest = 1.0715086071862673e301;

// The alignment law's constants, as laws.py explains them.
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

// The packed block: float64 throughout, in the order of laws.State.
struct State {
  double version;
  double step;
  double seed_low;
  double seed_high;
  double log_lr;
  double logit_momentum;
  double log_noise;
  double log_lr_start;
  double logit_momentum_start;
  double lr;
  double momentum;
  double noise;
  double loss_count;
  double loss_mean;
  double loss_trend;
  double loss_scale;
  double loss_direction;
  double variance;
  double variance_scale;
  double plateau;
  double reward_count;
  double reward_mean;
  double reward_trend;
  double reward_scale;
  double reward_direction;
  double loss;
  double reward;
  double observed_pending;
  double rewarded_pending;
  double nonfinite_pending;
  double nonfinite;
  double updates;
  double aligned_gu;
  double aligned_gg;
  double aligned_uu;
  double aligned_pending;
  double alignment;
  double alignment_square;
  double alignment_weight;
  double alignment_direction;
  double alignment_mean;
  double overshoot;
  double log_lr_downhill;
  double log_lr_doubted;
  double held;
  double anneal;
  double active;  // the last: of the step in progress, not of the memory that checkpoints keep
};

enum RewardSource { kRewardNone = 0, kRewardNegLoss = 1, kRewardGiven = 2 };
enum Law { kLawLoss = 0, kLawAlignment = 1 };

// Control and its limits, packed by controller.pack_parameters. Bounds come with their logarithms
// so that a knob pinned at a bound on one device is at the same bound, to the bit, on another.
struct Parameters {
  double every;  // 0: epoch-wise
  double reward_source;
  double beta_loss;
  double beta_reward;
  double beta_variance;
  double gain_lr_reward;
  double gain_lr_loss;
  double gain_momentum_reward;
  double gain_momentum_loss;
  double gain_noise_plateau;
  double gain_noise_reward;
  double lr_min;
  double lr_max;
  double momentum_min;
  double momentum_max;
  double noise_min;
  double noise_max;
  double log_lr_min;
  double log_lr_max;
  double logit_momentum_min;
  double logit_momentum_max;
  double log_noise_floor;
  double log_noise_max;
  double log_lr_change_down;
  double log_lr_change_up;
  double spike_clip;
  double trend_center;
  double trend_slope;
  double variance_center;
  double variance_slope;
  double law;
  double log_lr_acquire;
  double horizon;        // 0: none
  double hold_by;        // infinite: no horizon
  double annealed_over;  // 0: not by the controller
  double log_held_share;
};

// What `observe` has gathered since the last step; sums, so that micro-batches average.
struct Inbox {
  double loss_sum;
  double loss_count;
  double reward_sum;
  double reward_count;
};

// Of one tensor, of several or of all: g the gradient as the moments see it but for the noise, u
// the direction of the update before.
struct AlignmentSums {
  double gu;
  double gg;
  double uu;
};

ADAPTIVERL_BOTH void add(AlignmentSums& total, const AlignmentSums& sums) {
  total.gu += sums.gu;
  total.gg += sums.gg;
  total.uu += sums.uu;
}

// A group's numbers as the user set them, and as this step uses them.
struct Group {
  double lr;
  double momentum;
  double hyper0;  // the algorithm's own two
  double hyper1;
  double weight_decay;
};

struct EffectiveGroup {
  double lr;
  double momentum;
};

// One update of the knobs, as the trace keeps it. The ring's first row is its header: rows written
// in all.
struct TraceRow {
  double step;
  double loss;
  double reward;
  double loss_mean;
  double reward_mean;
  double loss_direction;
  double reward_direction;
  double variance;
  double plateau;
  double lr;
  double momentum;
  double noise;
  double alignment;
  double alignment_direction;
  double alignment_mean;
  double held;
};

// Arithmetic

ADAPTIVERL_BOTH double clip(double x, double low, double high) { return fmin(fmax(x, low), high); }

ADAPTIVERL_BOTH double sigmoid(double x) {
  if (x >= 0) {
    return 1 / (1 + exp(-x));
  }
  const double power = exp(x);
  return power / (1 + power);
}

ADAPTIVERL_BOTH double logit(double x) { return log(x / (1 - x)); }

ADAPTIVERL_BOTH double ema(double average, double sample, double beta) {
  return (1 - beta) * average + beta * sample;
}

ADAPTIVERL_BOTH double ratio(double x, double scale) { return scale > 0 ? x / scale : 0.0; }

// std::isfinite is not a device function under every host compiler.
ADAPTIVERL_BOTH bool is_finite(double x) { return x - x == 0; }

// Sensors (§1)

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
                                     const Parameters& control) {
  const double flat = sigmoid((control.trend_center - fabs(loss_direction)) / control.trend_slope);
  const double quiet = sigmoid((control.variance_center - variance_ratio) / control.variance_slope);
  return flat * quiet;
}

ADAPTIVERL_BOTH void sense_loss(State& state, const Parameters& control, double loss) {
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

ADAPTIVERL_BOTH void sense_reward(State& state, const Parameters& control, double reward) {
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

ADAPTIVERL_BOTH void sense(State& state, const Parameters& control, double loss, bool rewarded,
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

// The alignment law (§9, decisions.md 22 to 25)

// The newest sweep's sums, read once. Returns whether there was something to read; `score` is then
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

ADAPTIVERL_BOTH void hold(State& state, const Parameters& control) {
  state.held = 1;
  if (state.log_lr_downhill > -INFINITY) {
    state.log_lr = state.log_lr_downhill;
  }
  const double log_lr = state.log_lr + control.log_held_share;
  state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
}

ADAPTIVERL_BOTH void look_again_or_hold(State& state, const Parameters& control) {
  if (state.log_lr_downhill <= state.log_lr_doubted + kSameRate) {
    state.log_lr_downhill = fmin(state.log_lr_downhill, state.log_lr_doubted);
    hold(state, control);
    return;
  }
  state.log_lr_doubted = state.log_lr_downhill;
  state.log_lr = clip(state.log_lr_downhill, control.log_lr_min, control.log_lr_max);
  state.overshoot = 0;
}

ADAPTIVERL_BOTH void acquire(State& state, const Parameters& control, double score) {
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
  state.log_lr = clip(log_lr, control.log_lr_min, control.log_lr_max);
}

ADAPTIVERL_BOTH double annealing(double step, const Parameters& control) {
  if (control.annealed_over == 0) {
    return 1.0;
  }
  const double left = (control.horizon - step) / control.annealed_over;
  return clip(left, 0.0, 1.0);
}

ADAPTIVERL_BOTH void steer_by_alignment(State& state, const Parameters& control) {
  double score = 0;
  const bool sensed = sense_alignment(state, score);
  if (state.held == 0 && sensed) {
    acquire(state, control, score);
  }
  if (state.held == 0 && state.step >= control.hold_by) {
    hold(state, control);
  }
  state.anneal = annealing(state.step, control);
}

// Laws (§2)

ADAPTIVERL_BOTH double next_log_lr(double log_lr, double reward_direction, double worsening,
                                   const Parameters& control) {
  double step = control.gain_lr_reward * reward_direction - control.gain_lr_loss * worsening;
  step = clip(step, control.log_lr_change_down, control.log_lr_change_up);
  return clip(log_lr + step, control.log_lr_min, control.log_lr_max);
}

ADAPTIVERL_BOTH double next_logit_momentum(double logit_momentum, double reward_direction,
                                           double worsening, const Parameters& control) {
  const double step =
      control.gain_momentum_reward * reward_direction - control.gain_momentum_loss * worsening;
  return clip(logit_momentum + step, control.logit_momentum_min, control.logit_momentum_max);
}

ADAPTIVERL_BOTH double next_log_noise(double log_noise, double plateau, double improving,
                                      const Parameters& control) {
  if (control.noise_max == 0) {
    return log_noise;
  }
  const double step = control.gain_noise_plateau * plateau - control.gain_noise_reward * improving;
  return clip(log_noise + step, control.log_noise_floor, control.log_noise_max);
}

ADAPTIVERL_BOTH void act(State& state, const Parameters& control) {
  double loss_direction = state.loss_direction;
  double reward_direction = state.reward_direction;
  if (control.reward_source == kRewardGiven && state.rewarded_pending == 0) {
    reward_direction = 0;
  }
  if (state.nonfinite_pending != 0) {
    loss_direction = 1;
    reward_direction = control.reward_source == kRewardNone ? 0 : -1;
  }
  const double worsening = fmax(loss_direction, 0.0);
  const double improving = fmax(reward_direction, 0.0);
  if (control.law == kLawLoss) {
    state.log_lr = next_log_lr(state.log_lr, reward_direction, worsening, control);
  }
  state.logit_momentum =
      next_logit_momentum(state.logit_momentum, reward_direction, worsening, control);
  state.log_noise = next_log_noise(state.log_noise, state.plateau, improving, control);
  state.observed_pending = 0;
  state.rewarded_pending = 0;
  state.nonfinite_pending = 0;
  state.updates += 1;
}

ADAPTIVERL_BOTH void read_knobs(State& state, const Parameters& control) {
  state.lr = clip(exp(state.log_lr), control.lr_min, control.lr_max) * state.anneal;
  state.momentum = clip(sigmoid(state.logit_momentum), control.momentum_min, control.momentum_max);
  const bool floored = control.noise_max == 0 || state.log_noise <= control.log_noise_floor;
  const double lifted = clip(exp(state.log_noise), control.noise_min, control.noise_max);
  state.noise = floored ? control.noise_min : lifted;
}

// The state before the first step: α and μ where the user put them, σ at its floor.
ADAPTIVERL_BOTH State start(const Parameters& control, double lr, double momentum, double seed_low,
                            double seed_high) {
  State state{};
  state.version = kLayoutVersion;
  state.seed_low = seed_low;
  state.seed_high = seed_high;
  state.active = 1;
  state.log_lr = control.log_lr_acquire;
  state.log_lr_start = log(lr);
  state.logit_momentum = logit(clip(momentum, control.momentum_min, control.momentum_max));
  state.logit_momentum_start = state.logit_momentum;
  state.log_noise = control.log_noise_floor;
  state.loss = NAN;
  state.reward = NAN;
  state.log_lr_downhill = -INFINITY;
  state.log_lr_doubted = -INFINITY;
  state.anneal = 1;
  read_knobs(state, control);
  return state;
}

// How a group sees the knobs (decisions.md 20)

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

// The loop (§10)

// Empties the inbox into the sensors. Returns whether there was an observation.
ADAPTIVERL_BOTH bool sense_inbox(State& state, const Parameters& control, Inbox& inbox) {
  const bool observed = inbox.loss_count > 0;
  if (observed) {
    const bool rewarded = inbox.reward_count > 0;
    const double reward = rewarded ? inbox.reward_sum / inbox.reward_count : 0.0;
    sense(state, control, inbox.loss_sum / inbox.loss_count, rewarded, reward);
  }
  inbox = Inbox{0, 0, 0, 0};
  return observed;
}

ADAPTIVERL_BOTH void write_trace(const State& state, TraceRow* ring, int64_t capacity) {
  const int64_t written = static_cast<int64_t>(ring[0].step);
  ring[1 + written % capacity] = TraceRow{state.step,
                                          state.loss,
                                          state.reward,
                                          state.loss_mean,
                                          state.reward_mean,
                                          state.loss_direction,
                                          state.reward_direction,
                                          state.variance,
                                          state.plateau,
                                          state.lr,
                                          state.momentum,
                                          state.noise,
                                          state.alignment,
                                          state.alignment_direction,
                                          state.alignment_mean,
                                          state.held};
  ring[0].step = static_cast<double>(written + 1);
}

ADAPTIVERL_BOTH void act_and_trace(State& state, const Parameters& control, TraceRow* ring,
                                   int64_t capacity) {
  act(state, control);
  read_knobs(state, control);
  write_trace(state, ring, capacity);
}

// One optimizer step. A step that the gradient scaler skips changes nothing, and takes its
// observation with it (decisions.md 13). One that nothing was observed for, at a rate of zero, is
// no step of training either: this is how a checkpoint library makes an optimizer's state.
ADAPTIVERL_BOTH void advance(State& state, const Parameters& control, Inbox& inbox, bool skipped,
                             bool any_lr, TraceRow* ring, int64_t capacity) {
  state.active = skipped ? 0 : 1;
  if (skipped) {
    inbox = Inbox{0, 0, 0, 0};
    return;
  }
  if (inbox.loss_count == 0 && !any_lr) {
    return;
  }
  state.step += 1;
  const bool aligned = control.law == kLawAlignment;
  if (aligned) {
    steer_by_alignment(state, control);
    read_knobs(state, control);
  } else if (state.anneal != 1) {  // left over from a run that the other law annealed
    state.anneal = 1;
    read_knobs(state, control);
  }
  sense_inbox(state, control, inbox);
  const bool due = control.every != 0 && fmod(state.step, control.every) == 0;
  if (due && state.observed_pending != 0) {
    act_and_trace(state, control, ring, capacity);
  } else if (due && aligned) {
    write_trace(state, ring, capacity);
  }
}

// The sums of a step's sweeps over all tensors wait in the block for the next step, unless this one
// was skipped.
ADAPTIVERL_BOTH void keep_alignment(State& state, const AlignmentSums& total) {
  if (state.active == 0) {
    return;
  }
  state.aligned_gu = total.gu;
  state.aligned_gg = total.gg;
  state.aligned_uu = total.uu;
  state.aligned_pending = 1;
}

}  // namespace adaptiverl
