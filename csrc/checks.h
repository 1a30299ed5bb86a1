// What an operator may assume of its tensors, checked once at its door.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layout.h"
#include "tables.h"

namespace adaptiverl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As torch names it: Float, BFloat16.
inline const char* name_of(ScalarType type) {
#define ADAPTIVERL_NAME_OF(_, name) \
  case ScalarType::name:            \
    return #name;
  switch (type) {
    AT_FORALL_SCALAR_TYPES_WITH_COMPLEX_AND_QINTS(ADAPTIVERL_NAME_OF)
    default:
      return "Undefined";
  }
#undef ADAPTIVERL_NAME_OF
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType expected,
                        const char* expected_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, name, " must be ", expected_name,
                  ", got scalar type ", name_of(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

// The device of an operator's first tensor, which all of them must be on. torch chooses the
// operator by any one of them, and this code would read the others' memory by address all the same.
class Home {
 public:
  Home(const Tensor& tensor, const char* name) : name_(name), device_(tensor.device()) {}

  void check(const Tensor& tensor, const char* name) const {
    const auto device = tensor.device();
    // The CPU is one device, whatever index it is given.
    STD_TORCH_CHECK(device.type() == device_.type() && (device.is_cpu() || device == device_), name,
                    " must be on the device of ", name_, ", ", describe(device_), ", got ",
                    describe(device));
  }

  void check(const std::optional<Tensor>& tensor, const char* name) const {
    if (tensor.has_value()) {
      check(*tensor, name);
    }
  }

  void check(const std::vector<Tensor>& tensors, const char* name) const {
    for (const Tensor& tensor : tensors) {
      check(tensor, name);
    }
  }

 private:
  static std::string describe(const torch::stable::Device& device) {
    using torch::headeronly::DeviceType;
    switch (device.type()) {
      case DeviceType::CPU:
        return "cpu";
      case DeviceType::CUDA:
        return "cuda:" + std::to_string(device.index());
      case DeviceType::Meta:
        return "meta";
      default:
        return "device type " + std::to_string(static_cast<int>(device.type()));
    }
  }

  const char* name_;
  const torch::stable::Device device_;
};

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

inline State* state_of(const Tensor& state) {
  constexpr int64_t width = sizeof(State) / sizeof(double);
  STD_TORCH_CHECK(state.numel() == width, "the controller's state must hold ", width,
                  " numbers, got ", state.numel());
  return records<State>(state, "state", 1);
}

inline const TensorRow* rows_of(const Tensor& rows) {
  check_dtype(rows, "rows", ScalarType::Long, "int64");
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == kColumns, "rows must be of shape [tensors, ",
                  kColumns, "], got ", rows.numel(), " numbers in ", rows.dim(), " dimensions");
  return static_cast<const TensorRow*>(rows.data_ptr());
}

// On the CPU only, where the rows can be read; on another device they are taken at their word
// (tables.h).
inline void check_sizes(const TensorRow* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const TensorRow& row = rows[i];
    STD_TORCH_CHECK((row.numel | row.offset | row.logical_numel) >= 0, "row ", i,
                    " must have no negative size, got numel = ", row.numel,
                    ", offset = ", row.offset, ", logical_numel = ", row.logical_numel);
  }
}

inline void check_rows(const TensorRow* rows, int64_t count, int64_t groups) {
  check_sizes(rows, count);
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
  STD_TORCH_CHECK(found_inf->numel() == 1, "found_inf must have one element, got ",
                  found_inf->numel());
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
