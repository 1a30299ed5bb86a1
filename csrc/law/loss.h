// The law of alpha that follows losses and rewards. The twin of adaptiverl/law/loss.py.
#pragma once

#include "../layout.h"
#include "alignment.h"
#include "arithmetic.h"
#include "base.h"
#include "cooldown.h"
#include "knobs.h"

namespace adaptiverl {

ADAPTIVERL_BOTH double next_log_lr(double log_lr, double reward_direction, double worsening,
                                   const ControlNumbers& control) {
  double step = control.gain_lr_reward * reward_direction - control.gain_lr_loss * worsening;
  step = clip(step, control.log_lr_change_down, control.log_lr_change_up);
  return bounded_log_lr(log_lr + step, log_lr, control);
}

struct LossLaw : Law {
  static constexpr bool needs_loss = true;

  ADAPTIVERL_BOTH static bool sense(State& state, const ControlNumbers& control) {
    double score = 0;
    sense_alignment(state, score);
    const double anneal = annealing(state.step, control);
    const bool moved = anneal != state.anneal;
    state.anneal = anneal;
    return moved;
  }

  ADAPTIVERL_BOTH static void act(State& state, const ControlNumbers& control,
                                  double reward_direction, double worsening) {
    if (is_cooling(state, control) && state.nonfinite_pending == 0) {
      reward_direction = 0;
      worsening = 0;
    }
    state.log_lr = next_log_lr(state.log_lr, reward_direction, worsening, control);
  }
};

}  // namespace adaptiverl
