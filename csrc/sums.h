// How the sums of a pass are added: of pieces to those of a tensor, of tensors to a total.
#pragma once

#include "layout.h"

namespace adaptiverl {

ADAPTIVERL_BOTH void add(double& total, double sum) { total += sum; }

ADAPTIVERL_BOTH void add(AlignmentSums& total, const AlignmentSums& sums) {
  total.gu += sums.gu;
  total.gg += sums.gg;
  total.uu += sums.uu;
}

}  // namespace adaptiverl
