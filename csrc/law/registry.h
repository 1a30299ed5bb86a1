// Every law by its number, a line each. The twin of adaptiverl/law/registry.py.
#pragma once

#include "../layout.h"
#include "alignment.h"
#include "bandit.h"
#include "distilled.h"
#include "loss.h"
#include "range_test.h"

namespace adaptiverl {

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
    case kLawBandit:
      return visit(BanditLaw{});
    case kLawDistilled:
      return visit(DistilledLaw{});
  }
}

}  // namespace adaptiverl
