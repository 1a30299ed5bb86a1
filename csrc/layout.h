// Written by tests/layout_files.py from adaptiverl/layout.py, which explains it. Do not edit.
// clang-format off
#pragma once

#include <cmath>
#include <cstdint>

#include "both.h"

namespace adaptiverl {

constexpr double kLayoutVersion = 8;

constexpr int kArms = 8;

enum RewardSource { kRewardNone = 0, kRewardNegLoss = 1, kRewardGiven = 2 };

enum LawNumber { kLawLoss = 0, kLawAlignment = 1, kLawRangeTest = 2, kLawBandit = 3, kLawDistilled = 4 };

enum CooldownShape { kCooldownLinear = 0, kCooldown1Sqrt = 1 };

// The controller's whole state, packed in this order as float64, counters included.
struct State {
  double version = 8;                  // of the layout
  double step = 0;                     // t, optimizer steps taken
  double seed_low = 0;                 // the noise's key, 32 bits to a number
  double seed_high = 0;
  double log_lr = 0;                   // log α
  double logit_momentum = 0;           // logit μ
  double log_noise = -INFINITY;        // log σ
  double log_lr_start = 0;             // where the user put α
  double logit_momentum_start = 0;     // where the user put μ
  double lr = 1;                       // α in effect
  double momentum = 0;                 // μ in effect
  double noise = 0;                    // σ in effect: σ_min while log σ is at its floor
  double loss_count = 0;               // finite losses seen
  double loss_mean = 0;                // ℓ̄
  double loss_trend = 0;               // Δℓ
  double loss_scale = 0;               // S_ℓ
  double loss_direction = 0;           // Δ̃ℓ
  double variance = 0;                 // v
  double variance_scale = 0;           // S_v
  double plateau = 0;                  // P
  double reward_count = 0;             // finite rewards seen
  double reward_mean = 0;              // r̄
  double reward_trend = 0;             // Δr
  double reward_scale = 0;             // S_r
  double reward_direction = 0;         // Δ̃r
  double loss = NAN;                   // ℓ, the newest observation as it came
  double reward = NAN;                 // r, likewise
  double observed_pending = 0;         // 1: something was observed since the law acted
  double rewarded_pending = 0;         // 1: so was a reward
  double nonfinite_pending = 0;        // 1: and something that is not finite
  double nonfinite = 0;                // observations that were not finite, in all
  double updates = 0;                  // times the law acted
  double aligned_gu = 0;               // Σ g·u of the newest pass, u the last direction
  double aligned_gg = 0;               // Σ g²
  double aligned_uu = 0;               // Σ u²
  double aligned_pending = 0;          // 1: nobody has read those three yet
  double alignment = 0;                // h, their cosine
  double alignment_square = 0;         // S2, the average of h² that starts at 0
  double alignment_weight = 0;         // S2 over this starts at its first sample
  double alignment_direction = 0;      // x
  double alignment_mean = 0;           // e
  double overshoot = 0;                // Page's sum that the mean of h is below 0; never below 0
  double log_lr_downhill = -INFINITY;  // log α when updates last clearly pointed downhill
  double log_lr_doubted = -INFINITY;   // the same when updates were last sure to overshoot
  double log_lr_zero = -INFINITY;      // the ramp's mark: e was first ≤ 0
  double log_lr_risen = -INFINITY;     // the same when the loss had risen
  double log_lr_judged = -INFINITY;    // log α of the update that the newest sums judge
  double alignment_mean_weight = 0;    // what the weights in e add up to
  double alignment_peak = 0;           // the largest e of the ramp
  double undershoot = 0;               // Page's sum that the mean of h is above 0
  double ramp_losses = 0;              // losses that the ramp was told
  double losses_heard = 0;             // finite losses seen when it last heard one
  double ramp_loss = 0;                // the last of them
  double ramp_loss_mean = 0;           // their mean, which looks back over three steps
  double ramp_loss_square = 0;         // their variance, of successive differences
  double ramp_loss_least = 0;          // the least mean
  double ramp_loss_limit = 0;          // a mean above this is one that has risen
  double watches = 0;                  // windows of losses over; 3: a climb followed
  double watched = 0;                  // losses of the window in progress
  double watched_mean = 0;             // their mean
  double watched_square = 0;           // Σ of their squared deviations
  double watched_before = 0;           // the mean of the window before
  double watched_error = 0;            // its squared standard error
  double searching = 0;                // 1: on the ramp; the weights of its start are kept
  double climbing = 0;                 // 1: nothing confirmed the mark; the slow climb goes on
  double search_steps = 0;             // steps since the ramp began
  double held = 0;                     // 1: the rate is found
  double held_at = 0;                  // the step at which the ramp ended
  double anneal = 1;                   // what warm-up and cooldown multiply α by
  double arms_key = 0;                 // of the arms that the posterior is of; 0: none
  double arm = 0;                      // the one in force
  double arm_draws = 0;                // times that an arm was chosen
  double window_left = 0;              // losses until the window ends; 0: none has begun
  double window_start = 0;             // ℓ̄ when it began
  double window_path = 0;              // Σ|Δℓ| since
  double window_broken = 0;            // 1: a loss in it was not finite
  double window_scale = 0;             // m, the usual path of a window
  double window_reward = 0;            // of the last window
  double reward_square = 0;            // Σ of rewards' squared deviations, discounted
  double played_count = 0;             // of the arm in force, when it was chosen
  double played_mean = 0;              // likewise
  double arm_count[8] = {};            // windows of each arm, discounted
  double arm_mean[8] = {};             // mean of each arm's rewards, discounted
  double aligned_elements = 0;         // that the newest pass's sums are over
  double gradient_count = 0;           // passes whose gradient was sensed
  double gradient_rms = 0;             // of the newest of them; 0: none yet
  double gradient_rms_mean = 0;        // its average
  double gradient_variance = 0;        // of it around that
  double update_rms = 0;               // of the direction of the update before
  double moved_at = 0;                 // the step at which f_φ was last asked
  double move_lr = 0;                  // what it said: log-units of α in a whole run, at this pace
  double move_momentum = 0;            // logit-units of μ, likewise
  double move_noise = 0;               // log-units of σ, likewise
  double pulse = 0;                    // the newest held-out loss as it came
  double pulses = 0;                   // held-out losses that were told, in all
  double pulse_readings = 0;           // n, readings of them
  double pulses_waiting = 0;           // losses that the next reading is the mean of
  double pulse_waiting = 0;            // their mean so far
  double pulse_at = 0;                 // the step of the last reading
  double pulse_reading = 0;            // y, the last one
  double pulse_change = 0;             // its difference from the one before
  double pulse_roughness = 0;          // average size of second differences, from 0
  double pulse_roughness_weight = 0;   // it over this starts at its first sample
  double pulse_mean = 0;               // ȳ, which looks back over five readings
  double pulse_least = 0;              // the least ȳ
  double pulse_limit = 0;              // a ȳ above this is one that has worsened
  double pulse_training = 0;           // ℓ̄ at the least ȳ; NaN: none was told
  double pulse_rest = 0;               // readings before α may be cut again
  double pulse_cuts = 0;               // times that α was cut
  double log_lr_ceiling = -INFINITY;   // what the last cut left: nothing raises α above; −∞: none
  double active = 1;                   // 0: no tensor takes this step
  double rewind = 0;                   // 1: the weights go back to where the ramp began
};

// What an arm of the bandit puts in the place of the control's own.
struct ArmNumbers {
  double every;                 // K; 0: epoch-wise
  double gain_lr_reward;        // k_r
  double gain_lr_loss;          // k_ℓ
  double gain_momentum_reward;  // k_μr
  double gain_momentum_loss;    // k_μℓ
  double gain_noise_plateau;    // k_σP
  double gain_noise_reward;     // k_σr
  double log_lr_change_down;    // log c↓
  double log_lr_change_up;      // log c↑
};

// `Control` and its limits as the law reads them (`law/numbers.py`).
struct ControlNumbers {
  double every;                 // K; 0: epoch-wise
  double reward_source;         // a number of REWARD_SOURCES
  double beta_loss;             // β_ℓ
  double beta_reward;           // β_r
  double beta_variance;         // β_v
  double gain_lr_reward;        // k_r
  double gain_lr_loss;          // k_ℓ
  double gain_momentum_reward;  // k_μr
  double gain_momentum_loss;    // k_μℓ
  double gain_noise_plateau;    // k_σP
  double gain_noise_reward;     // k_σr
  double lr_min;                // α_min
  double lr_max;                // α_max
  double momentum_min;          // μ_min
  double momentum_max;          // μ_max
  double noise_min;             // σ_min
  double noise_max;             // σ_max; 0: no noise
  double log_lr_min;
  double log_lr_max;
  double logit_momentum_min;
  double logit_momentum_max;
  double log_noise_floor;       // stands in for log 0; −∞: no noise
  double log_noise_max;         // −∞: no noise
  double log_lr_change_down;    // log c↓
  double log_lr_change_up;      // log c↑
  double spike_clip;            // c
  double trend_center;          // ε_Δ
  double trend_slope;           // s_Δ
  double variance_center;       // ε_v
  double variance_slope;        // s_v
  double law;                   // a number of LAWS
  double log_lr_acquire;        // where α starts
  double horizon;               // T; 0: none
  double hold_by;               // the step of the cooldown; infinite: no horizon
  double annealed_over;         // steps of the cooldown; 0: the controller does not anneal
  double log_held_share;        // what is held of the rate that is found
  double log_ramp_share;        // what of the rate that a ramp marks, beside
  double log_ramp_floor;        // log α below which the ramp judges no update
  double search_within;         // steps that the ramp may take; 0: there is none
  double warm_up;               // steps over which α rises to the rate that is held; 0: none
  double log_warm_from;         // from what share of it
  double window;                // losses for which an arm is in force
  double discount;              // γ
  double arms_key;              // tells these arms, and this window, from others; 0: no bandit
  double cooldown_shape;        // a number of COOLDOWN_SHAPES
  double reused_for;            // updates that are made of the same samples; 0: of none twice
  double fresh_for;             // of them, those of samples that no other was made of before
  double weight_count;          // numbers of f_φ, which lie behind these; 0: none
  double hidden0;               // units of its first layer; 0: there is none
  double hidden1;               // of its second, likewise
  double pulse_spacing;         // steps between two readings of a held-out loss, at least
  double arm_count;             // arms that there are
  ArmNumbers arms[kArms];       // the first `arm_count` of them
};

// What was observed since the last step; sums, so that micro-batches average.
struct Inbox {
  double loss_sum;
  double loss_count;
  double reward_sum;
  double reward_count;
};

// A held-out loss, and ℓ̄ where one is told: sums over the ranks that decide together.
struct PulseSums {
  double held_out;
  double held_out_count;
  double training;
  double training_count;  // 0: none is told
};

// Of one tensor, of several or of all.
struct AlignmentSums {
  double gu;  // Σ g·u
  double gg;  // Σ g²
  double uu;  // Σ u²
};

// A parameter group's numbers as the user set them; hyper0 and hyper1 are the algorithm's.
struct Group {
  double lr;
  double momentum;      // where μ starts: AdamW's β₁, SGD's momentum
  double hyper0;        // AdamW: β₂; SGD: dampening
  double hyper1;        // AdamW: eps; SGD: its options
  double weight_decay;  // below 0: independent of the controller
};

// The same as this step uses them.
struct EffectiveGroup {
  double lr;
  double momentum;
};

// A parameter's product of momenta, and what its last step left it and `step` at.
struct Product {
  double product;       // of the momenta of its steps: `mu_product` in a checkpoint
  double left_product;
  double left_step;
};

// A row of the address table: where one parameter's tensors lie, int64.
struct TensorRow {
  int64_t param;
  int64_t grad;
  int64_t state0;         // AdamW: exp_avg; SGD: momentum_buffer; 0: none
  int64_t state1;         // AdamW: exp_avg_sq; 0: none
  int64_t state2;         // AdamW: max_exp_avg_sq; 0: none
  int64_t step;           // float32
  int64_t mu_product;     // a `Product`; 0: none
  int64_t numel;          // elements that lie here
  int64_t group;          // row of the group table
  int64_t index;          // the parameter's place in the optimizer: the noise's key
  int64_t offset;         // the first element's place in the whole logical tensor
  int64_t logical_numel;  // elements of the whole logical tensor
  int64_t maximize;
  int64_t error;          // int8, beside a bfloat16 parameter; 0: none
};

// A run of memory that goes back to what it was (`state.rewind`), int64.
struct Region {
  int64_t target;
  int64_t source;  // where the same bytes are kept; 0: it is filled with zeros
  int64_t bytes;
};

// One update of the knobs, as the trace keeps it.
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
  double arm;
  double played_count;
  double played_mean;
  double window_reward;
  double gradient_rms;
  double gradient_variance;
  double update_rms;
  double move_lr;
  double move_momentum;
  double move_noise;
  double pulse;
  double pulse_mean;
  double pulse_limit;
  double pulse_cuts;
};

ADAPTIVERL_BOTH TraceRow trace_row(const State& state) {
  return TraceRow{
      state.step,
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
      state.held,
      state.arm,
      state.played_count,
      state.played_mean,
      state.window_reward,
      state.gradient_rms,
      state.gradient_variance,
      state.update_rms,
      state.move_lr,
      state.move_momentum,
      state.move_noise,
      state.pulse,
      state.pulse_mean,
      state.pulse_limit,
      state.pulse_cuts};
}

}  // namespace adaptiverl
