// The instruction set that the CPU's loops run on, chosen once. All of them give the same bits.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>

namespace adaptiverl {

enum class Isa { kBaseline, kAvx2, kAvx512 };

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

// ADAPTIVERL_CPU=baseline|avx2|avx512 asks for less than the best: to compare them, and to rule one
// out.
inline Isa choose_isa() {
  const Isa best = best_isa();
  const char* wish = std::getenv("ADAPTIVERL_CPU");
  if (wish == nullptr || *wish == '\0') {
    return best;
  }
  Isa wanted = Isa::kBaseline;
  if (std::strcmp(wish, "avx512") == 0) {
    wanted = Isa::kAvx512;
  } else if (std::strcmp(wish, "avx2") == 0) {
    wanted = Isa::kAvx2;
  } else {
    STD_TORCH_CHECK(std::strcmp(wish, "baseline") == 0,
                    "ADAPTIVERL_CPU must be baseline, avx2 or avx512, got ", wish);
  }
  STD_TORCH_CHECK(wanted <= best, "ADAPTIVERL_CPU asks for ", wish,
                  ", which this CPU does not have; unset it to use what it has");
  return wanted;
}

inline Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace adaptiverl

// The kernels of the chosen instruction set, out of the namespaces that each_isa.inc made.
#if defined(__x86_64__)
#define ADAPTIVERL_CHOSEN(kernels)                                     \
  (::adaptiverl::isa() == ::adaptiverl::Isa::kAvx512 ? avx512::kernels \
   : ::adaptiverl::isa() == ::adaptiverl::Isa::kAvx2 ? avx2::kernels   \
                                                     : baseline::kernels)
#else
#define ADAPTIVERL_CHOSEN(kernels) (baseline::kernels)
#endif
