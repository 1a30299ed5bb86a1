// SGD: what it does with one element. Twins: `kernels/sgd.py` and `SGD` in `kernels/elements.py`;
// the same names, the same statement order.
#include "pass.h"

namespace adaptiverl {
namespace {

struct SGD {
  static constexpr const char* kName = "sgd";

  // What `Group::hyper1` is a sum of; `hyper0` is the dampening.
  static constexpr int kOptionNesterov = 1;
  static constexpr int kOptionDecoupled = 2;

  // What all elements of a tensor share: computed in float64, each cast once.
  struct Scalars {
    float weight_decay;  // the coupled one; 0 where it is decoupled
    float momentum;
    float one_minus_dampening;
    float decay;
    float lr;
    bool nesterov;
  };

  // Each has loops of its own, without branches: what the buffer does to the gradient, and whether
  // weight decay is added to that (the odd ones).
  enum Variant {
    kBare,
    kBareCoupled,
    kHeavyBall,
    kHeavyBallCoupled,
    kNesterov,
    kNesterovCoupled,
    kVariants
  };

  static Scalars scalars_of(const TensorRow& row, const Group& group,
                            const EffectiveGroup& effective, double decay_share) {
    const int options = static_cast<int>(group.hyper1);
    const bool decoupled = (options & kOptionDecoupled) != 0;
    // The first gradient goes undampened into a buffer of zeros: it is the buffer then, as in
    // torch.
    const bool first = *at<const float>(row.step) <= 1;
    Scalars scalars;
    scalars.weight_decay = static_cast<float>(decoupled ? 0 : group.weight_decay);
    scalars.momentum = static_cast<float>(effective.momentum);
    scalars.one_minus_dampening = static_cast<float>(first ? 1 : 1 - group.hyper0);
    scalars.decay = static_cast<float>(decoupled ? 1 - decay_share : 1);
    scalars.lr = static_cast<float>(effective.lr);
    scalars.nesterov = (options & kOptionNesterov) != 0;
    return scalars;
  }

  static int variant_of(const TensorRow& row, const Scalars& scalars) {
    const int momentum = row.state0 == 0 ? kBare : scalars.nesterov ? kNesterov : kHeavyBall;
    return scalars.weight_decay == 0 ? momentum : momentum + 1;
  }

  static ADAPTIVERL_INLINE bool has_slot(int variant, int slot) {
    return slot == 0 && variant >= kHeavyBall;
  }

  static ADAPTIVERL_INLINE float gradient(const Scalars& s, int variant, float g, float p) {
    return variant % 2 == 1 ? g + s.weight_decay * p : g;
  }

  static ADAPTIVERL_INLINE float direction(const Scalars&, int variant,
                                           const float* momentum_buffer, const float*,
                                           const float*) {
    return has_slot(variant, 0) ? *momentum_buffer : 0.0f;
  }

  static ADAPTIVERL_INLINE void update(const Scalars& s, int variant, float g, float& p,
                                       float* momentum_buffer, float*, float*) {
    float d = g;
    if (has_slot(variant, 0)) {
      const float b = *momentum_buffer * s.momentum + s.one_minus_dampening * g;
      *momentum_buffer = b;
      d = variant >= kNesterov ? g + s.momentum * b : b;
    }
    p = p * s.decay - s.lr * d;
  }
};

}  // namespace
}  // namespace adaptiverl

#define ADAPTIVERL_ALGORITHM SGD
#include "pass.inc"
