// All tensors of a table, cut into pieces for the threads. The cut depends on the table alone,
// never on the number of threads, and each tensor's pieces start at its first element: whatever is
// summed per piece and then in the pieces' order has the same bits for any number of threads and
// any company.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "checks.h"
#include "sums.h"
#include "tables.h"

namespace adaptiverl {

// Elements of a piece. Small enough to share out evenly, large enough that taking one costs
// nothing.
constexpr int64_t kPiece = int64_t{1} << 18;

// A whole tensor's pieces come one after the other; `first[row]` is where they start.
class Pieces {
 public:
  Pieces(const TensorRow* rows, int64_t count) : rows_(rows), first_(count + 1, 0) {
    for (int64_t row = 0; row < count; ++row) {
      first_[row + 1] = first_[row] + (rows[row].numel + kPiece - 1) / kPiece;
    }
    group_into_tasks(count);
  }

  int64_t size() const { return first_.back(); }
  int64_t first_of(int64_t row) const { return first_[row]; }

  // Calls f(piece, row, begin, elements) for every piece. Threads take tasks as they come free, so
  // that a thread that the machine disturbs holds up nobody for longer than one task.
  template <typename F>
  void for_each(const F& f) const {
    const int64_t tasks = static_cast<int64_t>(task_.size()) - 1;
    const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
      for (int64_t task = next++; task < tasks; task = next++) {
        run(task_[task], task_[task + 1], f);
      }
    });
  }

 private:
  // A small tensor costs this many elements more than it has.
  static constexpr int64_t kCostOfTensor = 256;

  // Tasks for each thread: long runs of neighbouring memory, and yet short enough to share out.
  static constexpr int64_t kTasksPerThread = 16;

  // Tasks are runs of pieces, of at least one full piece's work.
  void group_into_tasks(int64_t count) {
    task_.push_back(0);
    int64_t total = count * kCostOfTensor;
    for (int64_t row = 0; row < count; ++row) {
      total += rows_[row].numel;
    }
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t enough = std::max(kPiece, total / (threads * kTasksPerThread));
    int64_t work = 0;
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t piece = first_[row]; piece < first_[row + 1]; ++piece) {
        work += elements(piece, row) + kCostOfTensor;
        if (work >= enough) {
          task_.push_back(piece + 1);
          work = 0;
        }
      }
    }
    if (task_.back() != size()) {
      task_.push_back(size());
    }
  }

  int64_t elements(int64_t piece, int64_t row) const {
    return std::min(kPiece, rows_[row].numel - (piece - first_[row]) * kPiece);
  }

  template <typename F>
  void run(int64_t begin, int64_t end, const F& f) const {
    // The last row that starts at or before the piece: empty tensors, which have no piece, are
    // stepped over.
    int64_t row = std::upper_bound(first_.begin(), first_.end(), begin) - first_.begin() - 1;
    for (int64_t piece = begin; piece < end; ++piece) {
      while (piece >= first_[row + 1]) {
        ++row;
      }
      f(piece, row, (piece - first_[row]) * kPiece, elements(piece, row));
    }
  }

  const TensorRow* rows_;
  std::vector<int64_t> first_;
  std::vector<int64_t> task_;
};

// What the pieces of each tensor were summed to, into the tensors' sums, in the pieces' order.
template <typename Sums>
void add_up(const Pieces& pieces, int64_t rows, const std::vector<Sums>& partial, Sums* totals) {
  for (int64_t row = 0; row < rows; ++row) {
    Sums total = {};
    for (int64_t piece = pieces.first_of(row); piece < pieces.first_of(row + 1); ++piece) {
      add(total, partial[piece]);
    }
    totals[row] = total;
  }
}

}  // namespace adaptiverl
