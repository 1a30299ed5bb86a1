// The controller on a CUDA device: one launch a step, the same law, no word to the host.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "law/loop.h"

// The same binary loads where torch has no CUDA; these three are then absent, and never called.
#pragma weak aoti_torch_get_current_cuda_stream
#pragma weak torch_c10_cuda_check_msg
#pragma weak torch_c10_cuda_free_error_msg

namespace adaptiverl {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxTables = 32;

struct Tables {
  const TensorRow* rows[kMaxTables];
  int64_t sizes[kMaxTables];
  int count;
};

// A scalar of either floating type; the host can't look at it, so the kernel does.
struct DeviceNumber {
  const float* single;
  const double* precise;

  __device__ double read() const { return single != nullptr ? *single : *precise; }
};

DeviceNumber number_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must have one element, got ", tensor.numel());
  if (tensor.scalar_type() == ScalarType::Float) {
    return DeviceNumber{static_cast<const float*>(tensor.data_ptr()), nullptr};
  }
  check_dtype(tensor, name, ScalarType::Double, "float32 or float64");
  return DeviceNumber{nullptr, static_cast<const double*>(tensor.data_ptr())};
}

__global__ void observe_kernel(Inbox* inbox, DeviceNumber loss, bool rewarded,
                               DeviceNumber reward) {
  put(*inbox, loss.read(), rewarded, rewarded ? reward.read() : 0);
}

__global__ void observe_numbers_kernel(Inbox* inbox, double loss, bool rewarded, double reward) {
  put(*inbox, loss, rewarded, reward);
}

__global__ void advance_kernel(State* state, const ControlNumbers* control, Inbox* inbox,
                               TraceRow* ring, int64_t capacity, const Group* groups,
                               EffectiveGroup* effective, int64_t group_count, Tables tables,
                               const float* found_inf) {
  if (threadIdx.x == 0) {
    bool any_lr = false;
    for (int64_t g = 0; g < group_count; ++g) {
      any_lr = any_lr || groups[g].lr != 0;
    }
    advance(*state, *control, *inbox, found_inf != nullptr && *found_inf != 0, any_lr, ring,
            capacity);
  }
  __syncthreads();
  if (state->active == 0) {
    return;
  }
  for (int64_t g = threadIdx.x; g < group_count; g += kThreads) {
    effective[g] = effective_group(groups[g], *state);
  }
  __syncthreads();
  for (int t = 0; t < tables.count; ++t) {
    for (int64_t i = threadIdx.x; i < tables.sizes[t]; i += kThreads) {
      count_step(tables.rows[t][i], groups, effective);
    }
  }
}

__global__ void update_kernel(State* state, const ControlNumbers* control, Inbox* inbox,
                              TraceRow* ring, int64_t capacity) {
  update(*state, *control, *inbox, ring, capacity);
}

__global__ void pulse_kernel(State* state, const ControlNumbers* control, const PulseSums* sums) {
  pulse(*state, *control, *sums);
}

struct SumTables {
  const AlignmentSums* rows[kMaxTables];
  int64_t sizes[kMaxTables];
  int count;
};

// Each thread adds up every kThreads-th row, then halves are added to halves: always in one order.
__global__ void reduce_alignment_kernel(State* state, SumTables tables, double elements) {
  __shared__ AlignmentSums totals[kThreads];
  AlignmentSums own{0, 0, 0};
  for (int t = 0; t < tables.count; ++t) {
    for (int64_t i = threadIdx.x; i < tables.sizes[t]; i += kThreads) {
      add(own, tables.rows[t][i]);
    }
  }
  totals[threadIdx.x] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      add(totals[threadIdx.x], totals[threadIdx.x + half]);
    }
  }
  if (threadIdx.x == 0) {
    keep_alignment(*state, totals[0], elements);
  }
}

__global__ void read_groups_kernel(const State* state, const Group* groups,
                                   EffectiveGroup* effective, int64_t group_count) {
  for (int64_t g = threadIdx.x; g < group_count; g += kThreads) {
    effective[g] = effective_group(groups[g], *state);
  }
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(static_cast<int32_t>(tensor.get_device()), &stream));
  return static_cast<cudaStream_t>(stream);
}

void observe(Tensor inbox, Tensor loss, std::optional<Tensor> reward) {
  const Home home(inbox, "inbox");
  home.check(loss, "loss");
  home.check(reward, "reward");
  const torch::stable::accelerator::DeviceGuard guard(inbox.get_device());
  const DeviceNumber absent{nullptr, nullptr};
  observe_kernel<<<1, 1, 0, current_stream(inbox)>>>(
      records<Inbox>(inbox, "inbox", 1), number_of(loss, "loss"), reward.has_value(),
      reward.has_value() ? number_of(*reward, "reward") : absent);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The same of numbers that the host has; a graph that captures this observes them at each replay.
void observe_numbers(Tensor inbox, double loss, std::optional<double> reward) {
  const torch::stable::accelerator::DeviceGuard guard(inbox.get_device());
  observe_numbers_kernel<<<1, 1, 0, current_stream(inbox)>>>(
      records<Inbox>(inbox, "inbox", 1), loss, reward.has_value(), reward.value_or(0));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void advance_controller(Tensor state_tensor, Tensor numbers, Tensor inbox, Tensor trace,
                        Tensor groups, Tensor effective, std::vector<Tensor> tables,
                        std::optional<Tensor> found_inf) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  home.check(inbox, "inbox");
  home.check(trace, "trace");
  home.check(groups, "groups");
  home.check(effective, "effective");
  home.check(tables, "tables");
  home.check(found_inf, "found_inf");
  STD_TORCH_CHECK(tables.size() <= kMaxTables, "advance_ takes at most ", kMaxTables,
                  " tables, got ", tables.size());
  const torch::stable::accelerator::DeviceGuard guard(state_tensor.get_device());
  Tables list{};
  for (const Tensor& table : tables) {
    list.rows[list.count] = rows_of(table);
    list.sizes[list.count++] = table.size(0);
  }
  const Group* group = records<Group>(groups, "groups", 1);
  const int64_t group_count = count_of(groups);
  advance_kernel<<<1, kThreads, 0, current_stream(state_tensor)>>>(
      state_of(state_tensor), records<ControlNumbers>(numbers, "numbers", 1),
      records<Inbox>(inbox, "inbox", 1), records<TraceRow>(trace, "trace", 2), capacity_of(trace),
      group, records<EffectiveGroup>(effective, "effective", group_count), group_count, list,
      flag_of(found_inf));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void reduce_alignment(Tensor state_tensor, std::vector<Tensor> sums, double elements) {
  const Home home(state_tensor, "state");
  home.check(sums, "sums");
  STD_TORCH_CHECK(sums.size() <= kMaxTables, "reduce_alignment_ takes at most ", kMaxTables,
                  " tables, got ", sums.size());
  const torch::stable::accelerator::DeviceGuard guard(state_tensor.get_device());
  SumTables list{};
  for (const Tensor& table : sums) {
    list.rows[list.count] = records<AlignmentSums>(table, "sums", 0);
    list.sizes[list.count++] = rows_in(table);
  }
  reduce_alignment_kernel<<<1, kThreads, 0, current_stream(state_tensor)>>>(state_of(state_tensor),
                                                                            list, elements);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void update_controller(Tensor state_tensor, Tensor numbers, Tensor inbox, Tensor trace) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  home.check(inbox, "inbox");
  home.check(trace, "trace");
  const torch::stable::accelerator::DeviceGuard guard(state_tensor.get_device());
  update_kernel<<<1, 1, 0, current_stream(state_tensor)>>>(
      state_of(state_tensor), records<ControlNumbers>(numbers, "numbers", 1),
      records<Inbox>(inbox, "inbox", 1), records<TraceRow>(trace, "trace", 2), capacity_of(trace));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void pulse_controller(Tensor state_tensor, Tensor numbers, Tensor sums) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  home.check(sums, "sums");
  const torch::stable::accelerator::DeviceGuard guard(state_tensor.get_device());
  pulse_kernel<<<1, 1, 0, current_stream(state_tensor)>>>(
      state_of(state_tensor), records<ControlNumbers>(numbers, "numbers", 1),
      records<PulseSums>(sums, "sums", 1));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void read_groups(Tensor state_tensor, Tensor groups, Tensor effective) {
  const Home home(state_tensor, "state");
  home.check(groups, "groups");
  home.check(effective, "effective");
  const torch::stable::accelerator::DeviceGuard guard(state_tensor.get_device());
  const int64_t group_count = count_of(groups);
  read_groups_kernel<<<1, kThreads, 0, current_stream(state_tensor)>>>(
      state_of(state_tensor), records<Group>(groups, "groups", 1),
      records<EffectiveGroup>(effective, "effective", group_count), group_count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CUDA, m) {
  m.impl("observe_", TORCH_BOX(&adaptiverl::observe));
  m.impl("observe_numbers_", TORCH_BOX(&adaptiverl::observe_numbers));
  m.impl("advance_", TORCH_BOX(&adaptiverl::advance_controller));
  m.impl("reduce_alignment_", TORCH_BOX(&adaptiverl::reduce_alignment));
  m.impl("update_", TORCH_BOX(&adaptiverl::update_controller));
  m.impl("pulse_", TORCH_BOX(&adaptiverl::pulse_controller));
  m.impl("read_groups_", TORCH_BOX(&adaptiverl::read_groups));
}
