// The order of one step and of one update. The twin of adaptiverl/law/loop.py; the inbox, the trace
// and skipped steps are here alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "../layout.h"
#include "../sums.h"
#include "gradient.h"
#include "knobs.h"
#include "pulse.h"
#include "registry.h"
#include "sensors.h"

namespace adaptiverl {

ADAPTIVERL_BOTH void act(State& state, const ControlNumbers& control) {
  double loss_direction = state.loss_direction;
  double reward_direction = state.reward_direction;
  // A resumed memory may bring the direction of a reward that this control does not have.
  const bool unrewarded = control.reward_source == kRewardGiven && state.rewarded_pending == 0;
  if (unrewarded || control.reward_source == kRewardNone) {
    reward_direction = 0;
  }
  if (state.nonfinite_pending != 0) {
    loss_direction = 1;
    reward_direction = control.reward_source == kRewardNone ? 0 : -1;
  }
  const double worsening = fmax(loss_direction, 0.0);
  const double improving = fmax(reward_direction, 0.0);
  with_law(control, [&](auto law) { law.act(state, control, reward_direction, worsening); });
  below_ceiling(state);
  state.logit_momentum =
      next_logit_momentum(state.logit_momentum, reward_direction, worsening, control);
  state.log_noise = next_log_noise(state.log_noise, state.plateau, improving, control);
  state.observed_pending = 0;
  state.rewarded_pending = 0;
  state.nonfinite_pending = 0;
  state.updates += 1;
}

// One observation more, which is averaged with those of this step that came before.
ADAPTIVERL_BOTH void put(Inbox& inbox, double loss, bool rewarded, double reward) {
  inbox.loss_sum += loss;
  inbox.loss_count += 1;
  if (rewarded) {
    inbox.reward_sum += reward;
    inbox.reward_count += 1;
  }
}

// Empties the inbox into the sensors. Returns whether there was an observation.
ADAPTIVERL_BOTH bool sense_inbox(State& state, const ControlNumbers& control, Inbox& inbox) {
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
  // The ring's first row is its header: how many were written in all.
  const int64_t written = static_cast<int64_t>(ring[0].step);
  ring[1 + written % capacity] = trace_row(state);
  ring[0].step = static_cast<double>(written + 1);
}

ADAPTIVERL_BOTH void act_and_trace(State& state, const ControlNumbers& control, TraceRow* ring,
                                   int64_t capacity) {
  act(state, control);
  read_knobs(state, control);
  write_trace(state, ring, capacity);
}

// Epoch-wise control: what was observed, if anything was, and one update.
ADAPTIVERL_BOTH void update(State& state, const ControlNumbers& control, Inbox& inbox,
                            TraceRow* ring, int64_t capacity) {
  if (!sense_inbox(state, control, inbox)) {
    return;
  }
  with_law(control, [&](auto law) {
    law.judge(state, control);
    act_and_trace(state, law.in_force(state, control), ring, capacity);
  });
}

// A held-out loss, of all ranks that decide together: the means of what they brought.
ADAPTIVERL_BOTH void pulse(State& state, const ControlNumbers& control, const PulseSums& sums) {
  const bool told = sums.training_count > 0;
  pulse(state, control, sums.held_out / sums.held_out_count,
        told ? sums.training / sums.training_count : NAN);
}

// One optimizer step. A step that the gradient scaler skips changes nothing, and takes its
// observation with it (method.md#skipped-steps). One that nothing was observed for, at a rate of
// zero, is no step of training either: this is how a checkpoint library makes an optimizer's state.
ADAPTIVERL_BOTH void advance(State& state, const ControlNumbers& control, Inbox& inbox,
                             bool skipped, bool any_lr, TraceRow* ring, int64_t capacity) {
  state.active = skipped ? 0 : 1;
  state.rewind = 0;
  if (skipped) {
    inbox = Inbox{0, 0, 0, 0};
    return;
  }
  if (inbox.loss_count == 0 && !any_lr) {
    return;
  }
  state.step += 1;
  sense_gradient(state, control);
  with_law(control, [&](auto law) {
    if (law.sense(state, control)) {
      below_ceiling(state);
      read_knobs(state, control);
    }
    if (sense_inbox(state, control, inbox)) {
      law.judge(state, control);
    }
    const auto& in_force = law.in_force(state, control);
    const bool due = in_force.every != 0 && fmod(state.step, in_force.every) == 0;
    if (due && state.observed_pending != 0) {
      act_and_trace(state, in_force, ring, capacity);
    } else if (due && !law.needs_loss) {
      write_trace(state, ring, capacity);
    }
  });
}

// The sums of a step's passes over all tensors, of so many elements, wait in the state for the next
// step, unless nothing took this one.
ADAPTIVERL_BOTH void keep_alignment(State& state, const AlignmentSums& total, double elements) {
  if (state.active == 0) {
    return;
  }
  state.aligned_gu = total.gu;
  state.aligned_gg = total.gg;
  state.aligned_uu = total.uu;
  state.aligned_elements = elements;
  state.aligned_pending = 1;
}

}  // namespace adaptiverl
