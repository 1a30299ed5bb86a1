// A row of the address table: where one parameter's tensors lie. The twin of step/entries.py.
#pragma once

#include <cstdint>

#include "layout.h"

namespace adaptiverl {

// A row is addresses as integers, so that the table is one int64 tensor of shape [tensors,
// kColumns]. Nobody can check an address, and no host a row that lies on a device:
// step/entries.py makes the rows from the tensors' own sizes and from the groups' own numbers.
// On the CPU the operators check what can be checked (checks.h).
constexpr int64_t kColumns = sizeof(TensorRow) / sizeof(int64_t);

template <typename T>
ADAPTIVERL_BOTH T* at(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// One more step of this parameter: its count, and the product of its momenta
// (method.md#bias-correction), which only AdamW keeps. It starts anew with the count, which who
// resets a parameter sets to 0.
ADAPTIVERL_BOTH void count_step(const TensorRow& row, const EffectiveGroup* groups) {
  const bool first = *at<float>(row.step) == 0;
  *at<float>(row.step) += 1;
  if (row.mu_product != 0) {
    const double product = first ? 1 : *at<double>(row.mu_product);
    *at<double>(row.mu_product) = product * groups[row.group].momentum;
  }
}

}  // namespace adaptiverl
