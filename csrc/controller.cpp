// The operators' schemas, and the controller on the CPU.
#include <optional>
#include <vector>

#include "checks.h"
#include "law/loop.h"

namespace adaptiverl {
namespace {

double number_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.numel() == 1, name, " must have one element, got ", tensor.numel());
  if (tensor.scalar_type() == ScalarType::Float) {
    return *static_cast<const float*>(tensor.data_ptr());
  }
  check_dtype(tensor, name, ScalarType::Double, "float32 or float64");
  return *static_cast<const double*>(tensor.data_ptr());
}

void observe(Tensor inbox_tensor, Tensor loss, std::optional<Tensor> reward) {
  const Home home(inbox_tensor, "inbox");
  home.check(loss, "loss");
  home.check(reward, "reward");
  Inbox* inbox = records<Inbox>(inbox_tensor, "inbox", 1);
  const double loss_number = number_of(loss, "loss");
  const double reward_number = reward.has_value() ? number_of(*reward, "reward") : 0;
  put(*inbox, loss_number, reward.has_value(), reward_number);
}

// The same of numbers that the host has.
void observe_numbers(Tensor inbox, double loss, std::optional<double> reward) {
  put(*records<Inbox>(inbox, "inbox", 1), loss, reward.has_value(), reward.value_or(0));
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
  State* state = state_of(state_tensor);
  const ControlNumbers* control = records<ControlNumbers>(numbers, "numbers", 1);
  TraceRow* ring = records<TraceRow>(trace, "trace", 2);
  const Group* group = records<Group>(groups, "groups", 1);
  const int64_t group_count = count_of(groups);
  EffectiveGroup* in_effect = records<EffectiveGroup>(effective, "effective", group_count);
  const float* flag = flag_of(found_inf);
  for (const Tensor& table : tables) {
    check_rows(rows_of(table), table.size(0), group_count);
  }

  bool any_lr = false;
  for (int64_t g = 0; g < group_count; ++g) {
    any_lr = any_lr || group[g].lr != 0;
  }
  advance(*state, *control, *records<Inbox>(inbox, "inbox", 1), flag != nullptr && *flag != 0,
          any_lr, ring, capacity_of(trace));
  if (state->active == 0) {
    return;
  }
  for (int64_t g = 0; g < group_count; ++g) {
    in_effect[g] = effective_group(group[g], *state);
  }
  for (const Tensor& table : tables) {
    const TensorRow* rows = rows_of(table);
    for (int64_t i = 0; i < table.size(0); ++i) {
      count_step(rows[i], group, in_effect);
    }
  }
}

// Of tensors on another device than the controller's, whose launch does not reach them.
void count_steps(Tensor rows_tensor, Tensor state_tensor, Tensor groups, Tensor effective) {
  const Home home(state_tensor, "state");
  home.check(rows_tensor, "rows");
  home.check(groups, "groups");
  home.check(effective, "effective");
  const TensorRow* rows = rows_of(rows_tensor);
  const State* state = state_of(state_tensor);
  const Group* group = records<Group>(groups, "groups", 0);
  const int64_t group_count = count_of(groups);
  const EffectiveGroup* in_effect = records<EffectiveGroup>(effective, "effective", group_count);
  check_rows(rows, rows_tensor.size(0), group_count);
  if (state->active == 0) {
    return;
  }
  for (int64_t i = 0; i < rows_tensor.size(0); ++i) {
    count_step(rows[i], group, in_effect);
  }
}

void reduce_alignment(Tensor state_tensor, std::vector<Tensor> sums, double elements) {
  const Home home(state_tensor, "state");
  home.check(sums, "sums");
  AlignmentSums total{0, 0, 0};
  for (const Tensor& table : sums) {
    const AlignmentSums* rows = records<AlignmentSums>(table, "sums", 0);
    for (int64_t i = 0; i < rows_in(table); ++i) {
      add(total, rows[i]);
    }
  }
  keep_alignment(*state_of(state_tensor), total, elements);
}

void read_groups(Tensor state_tensor, Tensor groups, Tensor effective) {
  const Home home(state_tensor, "state");
  home.check(groups, "groups");
  home.check(effective, "effective");
  const State* state = state_of(state_tensor);
  const Group* group = records<Group>(groups, "groups", 1);
  const int64_t group_count = count_of(groups);
  EffectiveGroup* in_effect = records<EffectiveGroup>(effective, "effective", group_count);
  for (int64_t g = 0; g < group_count; ++g) {
    in_effect[g] = effective_group(group[g], *state);
  }
}

void start_controller(Tensor state_tensor, Tensor numbers, double lr, double momentum,
                      double seed_low, double seed_high) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  const ControlNumbers* control = records<ControlNumbers>(numbers, "numbers", 1);
  *state_of(state_tensor) = start(*control, lr, momentum, seed_low, seed_high);
}

void update_controller(Tensor state_tensor, Tensor numbers, Tensor inbox, Tensor trace) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  home.check(inbox, "inbox");
  home.check(trace, "trace");
  State* state = state_of(state_tensor);
  const ControlNumbers* control = records<ControlNumbers>(numbers, "numbers", 1);
  TraceRow* ring = records<TraceRow>(trace, "trace", 2);
  update(*state, *control, *records<Inbox>(inbox, "inbox", 1), ring, capacity_of(trace));
}

void pulse_controller(Tensor state_tensor, Tensor numbers, Tensor sums) {
  const Home home(state_tensor, "state");
  home.check(numbers, "numbers");
  home.check(sums, "sums");
  const ControlNumbers* control = records<ControlNumbers>(numbers, "numbers", 1);
  pulse(*state_of(state_tensor), *control, *records<PulseSums>(sums, "sums", 1));
}

}  // namespace
}  // namespace adaptiverl

STABLE_TORCH_LIBRARY(adaptiverl, m) {
  m.def("observe_(Tensor(a!) inbox, Tensor loss, Tensor? reward) -> ()");
  m.def("observe_numbers_(Tensor(a!) inbox, float loss, float? reward) -> ()");
  m.def(
      "advance_(Tensor(a!) state, Tensor numbers, Tensor(b!) inbox, Tensor(c!) trace, "
      "Tensor groups, Tensor(d!) effective, Tensor[] tables, Tensor? found_inf) -> ()");
  m.def("count_steps_(Tensor rows, Tensor state, Tensor groups, Tensor effective) -> ()");
  m.def("reduce_alignment_(Tensor(a!) state, Tensor[] sums, float elements=0.) -> ()");
  m.def("update_(Tensor(a!) state, Tensor numbers, Tensor(b!) inbox, Tensor(c!) trace) -> ()");
  m.def("pulse_(Tensor(a!) state, Tensor numbers, Tensor sums) -> ()");
  m.def("read_groups_(Tensor state, Tensor groups, Tensor(a!) effective) -> ()");
  m.def(
      "start_(Tensor(a!) state, Tensor numbers, float lr, float momentum, float seed_low, "
      "float seed_high) -> ()");
  m.def("rewind_(Tensor regions, Tensor state) -> ()");
  m.def(
      "sum_squares_(Tensor rows, Tensor state, Tensor(a!) squares, bool always, "
      "bool of_parameters=False, int codec=0) -> ()");
  m.def(
      "normals_(int seed_low, int seed_high, int index, int step, int offset, Tensor(a!) out) "
      "-> ()");
  m.def(
      "philox_words_(int seed_low, int seed_high, int index, int step, int quad, Tensor(a!) out) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(adaptiverl, CPU, m) {
  m.impl("observe_", TORCH_BOX(&adaptiverl::observe));
  m.impl("observe_numbers_", TORCH_BOX(&adaptiverl::observe_numbers));
  m.impl("advance_", TORCH_BOX(&adaptiverl::advance_controller));
  m.impl("count_steps_", TORCH_BOX(&adaptiverl::count_steps));
  m.impl("reduce_alignment_", TORCH_BOX(&adaptiverl::reduce_alignment));
  m.impl("update_", TORCH_BOX(&adaptiverl::update_controller));
  m.impl("pulse_", TORCH_BOX(&adaptiverl::pulse_controller));
  m.impl("read_groups_", TORCH_BOX(&adaptiverl::read_groups));
  m.impl("start_", TORCH_BOX(&adaptiverl::start_controller));
}
