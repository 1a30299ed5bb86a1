// What an operator may assume of its tensors, checked once at its door.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>

#include "control_law.h"
#include "tables.h"

namespace adaptiverl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType expected,
                        const char* expected_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, name, " must be ", expected_name,
                  ", got scalar type ", static_cast<int>(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// The tensor's float64 elements read as records of doubles.
template <typename Record>
Record* records(const Tensor& tensor, const char* name, int64_t at_least) {
  constexpr int64_t width = sizeof(Record) / sizeof(double);
  check_dtype(tensor, name, ScalarType::Double, "float64");
  STD_TORCH_CHECK(tensor.numel() % width == 0 && tensor.numel() >= at_least * width, name,
                  " must hold at least ", at_least, " records of ", width, " numbers, got ",
                  tensor.numel(), " numbers");
  return static_cast<Record*>(tensor.data_ptr());
}

inline State* state_of(const Tensor& block) {
  constexpr int64_t width = sizeof(State) / sizeof(double);
  STD_TORCH_CHECK(block.numel() == width, "the controller's block must hold ", width,
                  " numbers, got ", block.numel());
  return records<State>(block, "block", 1);
}

inline const TensorRow* rows_of(const Tensor& rows) {
  check_dtype(rows, "rows", ScalarType::Long, "int64");
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == kColumns, "rows must be of shape [tensors, ",
                  kColumns, "], got ", rows.numel(), " numbers in ", rows.dim(), " dimensions");
  return static_cast<const TensorRow*>(rows.data_ptr());
}

// On the CPU only, where the rows can be read.
inline void check_groups(const TensorRow* rows, int64_t count, int64_t groups) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(rows[i].group >= 0 && rows[i].group < groups, "row ", i, " names group ",
                    rows[i].group, ", but there are ", groups);
  }
}

// The gradient scaler's flag (float32, one element), or null where there is none.
inline const float* flag_of(const std::optional<Tensor>& found_inf) {
  if (!found_inf.has_value()) {
    return nullptr;
  }
  check_dtype(*found_inf, "found_inf", ScalarType::Float, "float32");
  return static_cast<const float*>(found_inf->data_ptr());
}

// Rows that the trace ring holds; the first record is its header.
inline int64_t capacity_of(const Tensor& trace) {
  constexpr int64_t width = sizeof(TraceRow) / sizeof(double);
  return trace.numel() / width - 1;
}

inline int64_t rows_in(const Tensor& sums) {
  constexpr int64_t width = sizeof(AlignmentSums) / sizeof(double);
  return sums.numel() / width;
}

inline int64_t count_of(const Tensor& groups) {
  constexpr int64_t width = sizeof(Group) / sizeof(double);
  return groups.numel() / width;
}

}  // namespace adaptiverl
