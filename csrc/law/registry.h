// Every law by its number, a line each. The twin of adaptiverl/law/registry.py.
#pragma once

#include "../layout.h"
#include "alignment.h"
#include "loss.h"
#include "range_test.h"

namespace adaptiverl {

// A law moves alpha, in two places of the loop:
//   needs_loss  without observations nothing is updated, nor traced
//   sense       once in every step, before the step's losses are sensed; whether alpha has moved
//   act         once in every update, from the reward's direction and the loss's worsening
// `visit` is called with the one that this control asks for.
template <typename Visit>
ADAPTIVERL_BOTH void with_law(const ControlNumbers& control, const Visit& visit) {
  switch (static_cast<int>(control.law)) {
    case kLawLoss:
      return visit(LossLaw{});
    case kLawAlignment:
      return visit(AlignmentLaw{});
    case kLawRangeTest:
      return visit(RangeTestLaw{});
  }
}

}  // namespace adaptiverl
