// What every equation is made of. The twin of adaptiverl/law/arithmetic.py.
#pragma once

#include <cmath>

#include "../both.h"

namespace adaptiverl {

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

}  // namespace adaptiverl
