// AdamW: what it does with one element. Twins: `kernels/adamw.py` and `AdamW` in
// `kernels/elements.py`; the same names, the same statement order.
#include "pass.h"

namespace adaptiverl {
namespace {

struct AdamW {
  static constexpr const char* kName = "adamw";

  // Each has loops of its own, without branches.
  enum Variant { kPlain, kAmsgrad, kVariants };

  // What all elements of a tensor share: computed in float64, each cast once.
  struct Scalars {
    float one_minus_momentum;
    float beta2;
    float one_minus_beta2;
    float bias2_sqrt;
    float eps;
    float decay;
    float step_size;
  };

  static Scalars scalars_of(const TensorRow& row, const Group& group,
                            const EffectiveGroup& effective, double decay_share) {
    const double beta2 = group.hyper0;
    const double bias1 = 1 - *at<const double>(row.mu_product);
    const double bias2 = 1 - std::pow(beta2, static_cast<double>(*at<const float>(row.step)));
    Scalars scalars;
    scalars.one_minus_momentum = static_cast<float>(1 - effective.momentum);
    scalars.beta2 = static_cast<float>(beta2);
    scalars.one_minus_beta2 = static_cast<float>(1 - beta2);
    scalars.bias2_sqrt = static_cast<float>(std::sqrt(bias2));
    scalars.eps = static_cast<float>(group.hyper1);
    scalars.decay = static_cast<float>(1 - decay_share);
    scalars.step_size = static_cast<float>(effective.lr / bias1);
    return scalars;
  }

  static int variant_of(const TensorRow& row, const Scalars&) {
    return row.state2 == 0 ? kPlain : kAmsgrad;
  }

  static ADAPTIVERL_INLINE bool has_slot(int variant, int slot) {
    return slot < 2 || variant == kAmsgrad;
  }

  static ADAPTIVERL_INLINE float gradient(const Scalars&, int, float g, float) { return g; }

  static ADAPTIVERL_INLINE float direction(const Scalars& s, int, const float* exp_avg,
                                           const float* exp_avg_sq, const float*) {
    return *exp_avg / (__builtin_sqrtf(*exp_avg_sq) + s.eps);
  }

  static ADAPTIVERL_INLINE void update(const Scalars& s, int variant, float g, float& p,
                                       float* exp_avg, float* exp_avg_sq, float* max_exp_avg_sq) {
    const float m = *exp_avg + s.one_minus_momentum * (g - *exp_avg);
    const float v = *exp_avg_sq * s.beta2 + s.one_minus_beta2 * (g * g);
    float v_hat = v;
    if (variant == kAmsgrad) {
      v_hat = maximum(*max_exp_avg_sq, v);
      *max_exp_avg_sq = v_hat;
    }
    const float denominator = __builtin_sqrtf(v_hat) / s.bias2_sqrt + s.eps;
    p = p * s.decay - s.step_size * (m / denominator);
    *exp_avg = m;
    *exp_avg_sq = v;
  }

  // torch.maximum: a NaN in either wins.
  static ADAPTIVERL_INLINE float maximum(float a, float b) { return a >= b || a != a ? a : b; }
};

}  // namespace
}  // namespace adaptiverl

#define ADAPTIVERL_ALGORITHM AdamW
#include "pass.inc"
