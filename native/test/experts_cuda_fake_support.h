#pragma once

// The CUDA backend on a device that is not there, as its tests use it.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "experts/cuda/cuda_backend.h"
#include "experts_support.h"
#include "fake_cuda/fake.h"
#include "memory/slab.h"
#include "runtime/error.h"

namespace switchyard::cuda::test {

using namespace switchyard::test;

constexpr fake_cuda::Order orders[] = {fake_cuda::Order::queued, fake_cuda::Order::random, fake_cuda::Order::late, fake_cuda::Order::starved};
constexpr size_t hidden = 8;
constexpr size_t rows_made = 40;
constexpr auto patience = std::chrono::seconds(20);

/** Two experts of one shape, one of another, whose rows need padding and begin at odd places, and one whose batches are larger than theirs. */
inline const Model& model(size_t number) {
  static const Model models[] = {Model(Activation::swiglu, hidden, 8, 1), Model(Activation::swiglu, hidden, 8, 2),
                                 Model(Activation::gelu, hidden - 3, 12, 3), Model(Activation::gelu, 64, 64, 5)};
  return models[number];
}

/** [rows_made, row_elements] */
inline const Rows& input_rows(size_t row_elements) {
  static const auto made = [](size_t elements) {
    std::mt19937 random(4);
    return random_values(rows_made * elements, 2.0f, random);
  };
  static const Rows rows = made(hidden), odd_rows = made(hidden - 3), long_rows = made(64);
  return row_elements == hidden ? rows : row_elements == 64 ? long_rows : odd_rows;
}

inline std::vector<uint32_t> every(size_t step) {
  std::vector<uint32_t> indices;
  for (size_t i = 0; i < rows_made; i += step) indices.push_back(static_cast<uint32_t>(i));
  return indices;
}

inline std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& thrown) {
    return thrown.what();
  }
}

inline Code code_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return known.code;
  }
}

/** Rows of a call in slabs, or in memory that the device does not reach. */
class Place {
 public:
  Place(SlabArena& arena, bool pinned, size_t elements) : elements_(elements) {
    if (pinned) slab_ = arena.allocate(elements * sizeof(uint16_t));
    else own_.resize(elements);
    spoil();
  }
  uint16_t* data() { return slab_ ? reinterpret_cast<uint16_t*>(slab_->data()) : own_.data(); }

  // What the device copies or has copied: whoever touches it must know that it is not at it.
  void write(const Rows& rows) { std::copy(rows.begin(), rows.end(), written()); }
  void spoil() { std::fill_n(written(), elements_, poison); }
  /** Now, and not when the last copy of what holds this goes: the fake does not see how threads count such copies. */
  void give_back() { slab_ = {}; }
  Rows read() {
    if (slab_) fake_cuda::host_reads(data(), elements_ * sizeof(uint16_t));
    return Rows(data(), data() + elements_);
  }

 private:
  uint16_t* written() {
    if (slab_) fake_cuda::host_writes(data(), elements_ * sizeof(uint16_t));
    return data();
  }

  size_t elements_;
  SlabRef slab_;
  Rows own_;
};

/** The backend with slabs for rows, and a way to let calls come together in one batch. */
class Backend {
 public:
  /** What a call gave, on the backend's thread. */
  using Ended = std::function<void(const Rows& output, std::exception_ptr error)>;

  Backend() : backend(create_backend(0, [this](const BatchTimes& times) { batch_ended(times); })) { arena_.set_listener(backend->memory_listener()); }

  std::unique_ptr<Expert> load(size_t number) { return backend->load(model(number).source()); }

  /** Rows of input_rows, from slab to slab or between memory that the device does not reach. */
  void submit(const Expert& expert, const std::vector<uint32_t>& indices, Ended ended, bool pinned = true) {
    const Rows& input = input_rows(expert.hidden());
    const auto rows = std::make_shared<Place>(arena_, pinned, input.size());
    const auto chosen = std::make_shared<const std::vector<uint32_t>>(indices);
    const auto output = std::make_shared<Place>(arena_, pinned, indices.size() * expert.hidden());
    rows->write(input);
    {
      const std::lock_guard lock(mutex_);
      ++under_way_;
    }
    backend->submit(expert,
                    {{.rows = rows->data(), .row_count = rows_made, .indices = *chosen, .output = output->data(),
                      .output_row_count = indices.size(), .output_row = 0, .input_weights = nullptr}},
                    [this, rows, chosen, output, ended = std::move(ended)](const ComputeTime&, std::exception_ptr error) {
                      ended(output->read(), error);
                      for (Place* place : {rows.get(), output.get()}) {
                        place->spoil();
                        place->give_back();
                      }
                      const std::lock_guard lock(mutex_);
                      --under_way_;
                      changed_.notify_all();
                    });
  }

  /** For every call. False: not within `patience`. */
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, patience, [this] { return under_way_ == 0; });
  }

  Rows compute(const Expert& expert, const std::vector<uint32_t>& indices) {
    std::mutex mutex;
    std::condition_variable changed;
    bool has_ended = false;
    Rows result;
    submit(expert, indices, [&](const Rows& output, std::exception_ptr error) {
      EXPECT_FALSE(error);
      const std::lock_guard lock(mutex);
      result = output;
      has_ended = true;
      changed.notify_all();
    });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return has_ended; });
    return result;
  }

  /** One call for each expert, all of them in one batch if there is room: a batch before them, of the first one, waits for them. Waits for all. */
  void compute_at_once(const std::vector<const Expert*>& experts, const std::vector<uint32_t>& indices) {
    const auto ended = [](const Rows&, std::exception_ptr error) { EXPECT_FALSE(error); };
    hold(true);
    submit(*experts.front(), indices, ended);
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return held_; });
    }
    for (const Expert* expert : experts) submit(*expert, indices, ended);
    hold(false);
    wait();
  }

  /** Rows of the batches that ended. */
  std::vector<size_t> batches;

 private:
  void hold(bool wanted) {
    const std::lock_guard lock(mutex_);
    hold_ = wanted;
    changed_.notify_all();
  }

  void batch_ended(const BatchTimes& times) {
    std::unique_lock lock(mutex_);
    batches.push_back(times.rows);
    held_ = hold_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !hold_; });
    held_ = false;
  }

  SlabArena arena_{size_t{1} << 20};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false, held_ = false;
  int under_way_ = 0;

 public:
  /** The last, because it uses the others. */
  std::unique_ptr<ExpertBackend> backend;
};

}  // namespace switchyard::cuda::test
