// How alpha comes down to zero at the end of a run. The twin of adaptiverl/law/cooldown.py.
#pragma once

#include <cmath>

#include "../layout.h"
#include "arithmetic.h"

namespace adaptiverl {

ADAPTIVERL_BOTH bool is_cooling(const State& state, const ControlNumbers& control) {
  return state.step >= control.hold_by;
}

ADAPTIVERL_BOTH double annealing(double step, const ControlNumbers& control) {
  if (control.annealed_over == 0) {
    return 1.0;
  }
  const double left = clip((control.horizon - step) / control.annealed_over, 0.0, 1.0);
  if (control.cooldown_shape == kCooldown1Sqrt) {
    return 1 - sqrt(1 - left);
  }
  return left;
}

}  // namespace adaptiverl
