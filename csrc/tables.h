// A row of the address table: where one parameter's tensors lie. The twin of step/entries.py.
#pragma once

#include <cmath>
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

// The product of the momenta of so many steps. Who edits a count in place may not know of it: then
// it is a power of the group's momentum.
ADAPTIVERL_BOTH double product_of(const Product& kept, double steps, double momentum) {
  if (steps == 0) {
    return 1;
  }
  const bool edited = steps != kept.left_step && kept.product == kept.left_product;
  return edited ? pow(momentum, steps) : kept.product;
}

// One more step of this parameter: its count, and the product of its momenta
// (method.md#bias-correction), which only AdamW keeps.
ADAPTIVERL_BOTH void count_step(const TensorRow& row, const Group* groups,
                                const EffectiveGroup* effective) {
  const float before = *at<float>(row.step);
  const float step = before + 1;
  *at<float>(row.step) = step;
  if (row.mu_product != 0) {
    Product& kept = *at<Product>(row.mu_product);
    double product = product_of(kept, before, groups[row.group].momentum);
    product *= effective[row.group].momentum;
    kept = Product{product, product, step};
  }
}

}  // namespace adaptiverl
