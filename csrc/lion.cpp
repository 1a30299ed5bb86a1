// Lion: what it does with one element. Twins: `kernels/lion.py` and `Lion` in
// `kernels/elements.py`; the same names, the same statement order.
#include "pass.h"

namespace adaptiverl {
namespace {

struct Lion {
  static constexpr const char* kName = "lion";

  enum Variant { kPlain, kVariants };

  // What all elements of a tensor share: computed in float64, each cast once.
  struct Scalars {
    float momentum;
    float one_minus_momentum;
    float beta2;
    float one_minus_beta2;
    float decay;
    float lr;
  };

  static Scalars scalars_of(const TensorRow&, const Group& group, const EffectiveGroup& effective,
                            double decay_share) {
    Scalars scalars;
    scalars.momentum = static_cast<float>(effective.momentum);
    scalars.one_minus_momentum = static_cast<float>(1 - effective.momentum);
    scalars.beta2 = static_cast<float>(group.hyper0);
    scalars.one_minus_beta2 = static_cast<float>(1 - group.hyper0);
    scalars.decay = static_cast<float>(1 - decay_share);
    scalars.lr = static_cast<float>(effective.lr);
    return scalars;
  }

  static int variant_of(const TensorRow&, const Scalars&) { return kPlain; }

  static ADAPTIVERL_INLINE bool has_slot(int, int slot) { return slot == 0; }

  static ADAPTIVERL_INLINE float gradient(const Scalars&, int, float g, float) { return g; }

  static ADAPTIVERL_INLINE float direction(const Scalars&, int, const float* exp_avg, const float*,
                                           const float*) {
    return *exp_avg;
  }

  static ADAPTIVERL_INLINE void update(const Scalars& s, int, float g, float& p, float* exp_avg,
                                       float*, float*) {
    const float c = s.momentum * *exp_avg + s.one_minus_momentum * g;
    // A NaN is its own sign: the parameter shows it.
    const float sign = c > 0 ? 1.0f : c < 0 ? -1.0f : c;
    p = p * s.decay - s.lr * sign;
    *exp_avg = s.beta2 * *exp_avg + s.one_minus_beta2 * g;
  }
};

}  // namespace
}  // namespace adaptiverl

#define ADAPTIVERL_ALGORITHM Lion
#include "pass.inc"
