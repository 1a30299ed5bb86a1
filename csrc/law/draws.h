// Normal numbers that a law draws, as a function of their place. The twin of
// adaptiverl/law/draws.py. The noise has a generator of its own, philox.inc, which takes many
// counters at a time and cannot run on a device; the words are the same.
#pragma once

#include <cmath>
#include <cstdint>

#include "../both.h"

namespace adaptiverl {

struct PhiloxWords {
  uint32_t w0;
  uint32_t w1;
  uint32_t w2;
  uint32_t w3;
};

constexpr uint32_t kStream = 1u << 30;  // the counter's second word

ADAPTIVERL_BOTH PhiloxWords philox4x32(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  constexpr uint64_t kMultipliers[2] = {0xD2511F53u, 0xCD9E8D57u};
  constexpr uint32_t kKeySteps[2] = {0x9E3779B9u, 0xBB67AE85u};
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultipliers[0] * counter.w0;
    const uint64_t product1 = kMultipliers[1] * counter.w2;
    counter = PhiloxWords{static_cast<uint32_t>(product1 >> 32) ^ counter.w1 ^ key_low,
                          static_cast<uint32_t>(product1),
                          static_cast<uint32_t>(product0 >> 32) ^ counter.w3 ^ key_high,
                          static_cast<uint32_t>(product0)};
    key_low += kKeySteps[0];
    key_high += kKeySteps[1];
  }
  return counter;
}

ADAPTIVERL_BOTH double normal(double seed_low, double seed_high, double draw, int place) {
  const double word = 4294967296.0;       // 2^32
  const double turn = 6.283185307179586;  // 2 pi
  const uint64_t count = static_cast<uint64_t>(draw);
  const PhiloxWords words =
      philox4x32(PhiloxWords{static_cast<uint32_t>(place), kStream, static_cast<uint32_t>(count),
                             static_cast<uint32_t>(count >> 32)},
                 static_cast<uint32_t>(seed_low), static_cast<uint32_t>(seed_high));
  const double radius = sqrt(-2 * log((words.w0 + 1.0) / word));
  return radius * cos(turn * (words.w1 / word));
}

}  // namespace adaptiverl
