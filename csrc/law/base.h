// What a law may leave out. The twin of adaptiverl/law/base.py.
#pragma once

#include "../layout.h"

namespace adaptiverl {

// A law moves alpha, in a few places of the loop:
//   needs_loss  without observations nothing is updated, nor traced
//   sense       once in every step, before the step's losses are sensed; whether alpha has moved
//   act         once in every update, from the reward's direction and the loss's worsening
//   judge       behind every observation, once its sensors have been read
//   in_force    the numbers that an update goes by
struct Law {
  ADAPTIVERL_BOTH static void judge(State&, const ControlNumbers&) {}

  ADAPTIVERL_BOTH static const ControlNumbers& in_force(const State&,
                                                        const ControlNumbers& control) {
    return control;
  }
};

}  // namespace adaptiverl
