#include "kernels/split.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

/** Rows on copies, and when each worker ends with them. */
class Split {
 public:
  Split(std::span<const std::uint32_t> rows, const ExpertCopies& copies, std::size_t workers, const WorkerPace& pace)
      : copies_(copies), at_(copies.workers.size()), end_(workers), row_(workers, 1.0), expert_of_(at_.size()) {
    if (!pace.seconds_queued.empty()) std::ranges::copy(pace.seconds_queued, end_.begin());
    if (!pace.seconds_per_row.empty()) std::ranges::copy(pace.seconds_per_row, row_.begin());
    for (std::uint32_t expert = 0; expert < rows.size(); ++expert) {
      if (rows[expert] == 0 || copies.count(expert) == 0) continue;
      if (copies.count(expert) == 1) {
        give(copies.offsets[expert], rows[expert]);
      } else {
        shared_.push_back(expert);
      }
    }
    std::ranges::stable_sort(shared_, [&](std::uint32_t a, std::uint32_t b) { return rows[a] > rows[b]; });
    for (const std::uint32_t expert : shared_) pour(expert, rows[expert]);
    index_by_worker();
  }

  /**
   * Moves rows from the worker that ends last along chains of experts that neighbours share, until none would end earlier by that;
   * then from the next one. Every move makes the later end of two workers earlier.
   */
  void even_out() {
    std::vector<bool> done(end_.size());
    // Each move fills a worker up or empties a copy, so there are few. The bound is against rounding alone.
    for (std::size_t moves = 16 * (at_.size() + end_.size()); moves > 0; --moves) {
      std::uint32_t last = none;
      for (std::uint32_t worker = 0; worker < end_.size(); ++worker) {
        const bool shares = !done[worker] && shared_at_[worker] < shared_at_[worker + 1];
        if (shares && (last == none || end_[worker] > end_[last])) last = worker;
      }
      if (last == none) return;
      done[last] = !relieve(last);
    }
  }

  std::vector<std::uint32_t> take() { return std::move(at_); }

 private:
  /** How a worker was reached: by rows that go from one copy of an expert to another. */
  struct Step {
    std::uint32_t from;
    std::uint32_t to;
  };

  void give(std::uint32_t copy, std::uint32_t rows) {
    at_[copy] += rows;
    end_[copies_.workers[copy]] += rows * row_[copies_.workers[copy]];
  }

  void take_back(std::uint32_t copy, std::uint32_t rows) {
    at_[copy] -= rows;
    end_[copies_.workers[copy]] -= rows * row_[copies_.workers[copy]];
  }

  /** Fills the workers of an expert up to one level, as water does; what is left of whole rows goes where it ends first. */
  void pour(std::uint32_t expert, std::uint32_t rows) {
    const std::uint32_t first = copies_.offsets[expert];
    const std::uint32_t end = copies_.offsets[expert + 1];
    const auto worker = [&](std::uint32_t copy) { return copies_.workers[copy]; };
    double level = std::numeric_limits<double>::infinity();
    for (;;) {
      double room = rows;
      double rate = 0;
      for (std::uint32_t copy = first; copy < end; ++copy) {
        if (end_[worker(copy)] >= level) continue;
        room += end_[worker(copy)] / row_[worker(copy)];
        rate += 1 / row_[worker(copy)];
      }
      if (!(rate > 0) || room / rate >= level) break;
      level = room / rate;
    }
    std::uint32_t left = rows;
    for (std::uint32_t copy = first; copy < end; ++copy) {
      const double fitting = std::floor((level - end_[worker(copy)]) / row_[worker(copy)]);
      if (!(fitting >= 1)) continue;
      const auto taken = static_cast<std::uint32_t>(std::min<double>(fitting, left));
      give(copy, taken);
      left -= taken;
    }
    for (; left > 0; --left) {
      std::uint32_t best = first;
      for (std::uint32_t copy = first + 1; copy < end; ++copy) {
        if (end_[worker(copy)] + row_[worker(copy)] < end_[worker(best)] + row_[worker(best)]) best = copy;
      }
      give(best, 1);
    }
  }

  void index_by_worker() {
    shared_at_.resize(end_.size() + 1);
    const auto each = [&](auto&& use) {
      for (const std::uint32_t expert : shared_) {
        for (std::uint32_t copy = copies_.offsets[expert]; copy < copies_.offsets[expert + 1]; ++copy) use(expert, copy);
      }
    };
    each([&](std::uint32_t, std::uint32_t copy) { ++shared_at_[copies_.workers[copy] + 1]; });
    for (std::size_t w = 0; w < end_.size(); ++w) shared_at_[w + 1] += shared_at_[w];
    shared_copies_.resize(shared_at_.back());
    std::vector<std::uint32_t> next(shared_at_.begin(), shared_at_.end() - 1);
    each([&](std::uint32_t expert, std::uint32_t copy) {
      expert_of_[copy] = expert;
      shared_copies_[next[copies_.workers[copy]]++] = copy;
    });
  }

  /** Moves rows from a worker to the one that ends first of those within reach. Returns whether it did. */
  bool relieve(std::uint32_t worker) {
    reached_.assign(1, worker);
    steps_.assign(end_.size(), {none, none});
    std::uint32_t best = worker;
    for (std::size_t i = 0; i < reached_.size(); ++i) {
      for (std::uint32_t s = shared_at_[reached_[i]]; s < shared_at_[reached_[i] + 1]; ++s) {
        const std::uint32_t from = shared_copies_[s];
        if (at_[from] == 0) continue;
        const std::uint32_t expert = expert_of_[from];
        for (std::uint32_t to = copies_.offsets[expert]; to < copies_.offsets[expert + 1]; ++to) {
          const std::uint32_t other = copies_.workers[to];
          if (other == worker || steps_[other].from != none) continue;
          steps_[other] = {from, to};
          reached_.push_back(other);
          if (end_[other] + row_[other] < end_[best] + row_[best]) best = other;
        }
      }
    }
    if (best == worker || !(end_[best] + row_[best] < end_[worker])) return false;
    const double even = std::floor((end_[worker] - end_[best]) / (row_[worker] + row_[best]));
    std::uint32_t rows = even < none ? std::max(1u, static_cast<std::uint32_t>(even)) : none;
    const auto along = [&](auto&& use) {
      for (std::uint32_t at = best; at != worker; at = copies_.workers[steps_[at].from]) use(steps_[at]);
    };
    along([&](const Step& step) { rows = std::min(rows, at_[step.from]); });
    along([&](const Step& step) {
      take_back(step.from, rows);
      give(step.to, rows);
    });
    return true;
  }

  const ExpertCopies& copies_;
  /** Rows of each copy. */
  std::vector<std::uint32_t> at_;
  /** When each worker ends, and what a row adds to that. */
  std::vector<double> end_;
  std::vector<double> row_;
  /** The experts with rows and several copies, and the copies of those, by worker. */
  std::vector<std::uint32_t> shared_;
  std::vector<std::uint32_t> shared_at_;
  std::vector<std::uint32_t> shared_copies_;
  std::vector<std::uint32_t> expert_of_;
  std::vector<std::uint32_t> reached_;
  std::vector<Step> steps_;
};

}  // namespace

void check_copies(const ExpertCopies& copies, std::size_t workers) {
  const auto wrong = [](std::size_t expert, std::size_t value) {
    throw_invalid("copies.offsets[" + std::to_string(expert) + "]", value,
                  "ascending from 0 to the number of copies.workers");
  };
  if (copies.offsets.front() != 0) wrong(0, copies.offsets.front());
  if (copies.offsets.back() != copies.workers.size()) wrong(copies.experts(), copies.offsets.back());
  for (std::size_t expert = 0; expert < copies.experts(); ++expert) {
    if (copies.offsets[expert + 1] < copies.offsets[expert]) wrong(expert + 1, copies.offsets[expert + 1]);
    for (std::uint32_t copy = copies.offsets[expert]; copy < copies.offsets[expert + 1]; ++copy) {
      const std::uint32_t worker = copies.workers[copy];
      if (worker < workers && (copy == copies.offsets[expert] || worker > copies.workers[copy - 1])) continue;
      throw_invalid("copies.workers of expert " + std::to_string(expert), worker,
                    "below " + std::to_string(workers) + ", ascending");
    }
  }
}

bool has_replicas(const ExpertCopies& copies) {
  for (std::size_t expert = 0; expert < copies.experts(); ++expert) {
    if (copies.count(expert) > 1) return true;
  }
  return false;
}

std::vector<std::uint32_t> split_rows(std::span<const std::uint32_t> rows, const ExpertCopies& copies, std::size_t workers,
                                      const WorkerPace& pace) {
  Split split(rows, copies, workers, pace);
  split.even_out();
  return split.take();
}

}  // namespace switchyard
