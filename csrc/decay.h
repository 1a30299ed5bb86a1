// What decoupled weight decay takes off a parameter (method.md#weight-decay). Twins: decay_share of
// kernels/decay.py and kernels/elements.py.
#pragma once

#include "layout.h"

namespace adaptiverl {

// Below 0 the weight decay is independent of the controller: it goes by the rate that the user or a
// scheduler set, and by what the cooldown leaves.
inline double decay_share(const Group& group, const EffectiveGroup& effective, double anneal) {
  if (group.weight_decay < 0) {
    return group.lr * anneal * -group.weight_decay;
  }
  return effective.lr * group.weight_decay;
}

}  // namespace adaptiverl
