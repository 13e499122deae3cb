#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace switchyard::ucx {

/**
 * Whether an event loop that has nothing to do looks for messages, or sleeps until one wakes it. To be woken takes tens of
 * microseconds, and all that runs after a sleep is slower; so it looks as long as `longest` where it expects a wait that is shorter. What it
 * expects is what followed when the last waits were as they were now: the waits for a worker's answers are short, the one for the next batch may be long,
 * batch after batch. (A two-level predictor of branches: T.-Y. Yeh, Y. N. Patt, 1991.) Waits that it slept through count as well.
 */
class Waits {
 public:
  using Clock = std::chrono::steady_clock;

  /** `longest` of zero: it always sleeps. */
  explicit Waits(Clock::duration longest) : longest_(longest) {}

  /** Nothing has come. Whether to look again soon, instead of sleeping. */
  bool looks_on(Clock::time_point now) {
    if (since_) {
      count(now);
    } else {
      since_ = now;
      looking_ = expected() > certainty_max / 2;
    }
    last_ = now;
    looking_ = looking_ && now - *since_ < longest_;
    return looking_;
  }

  /** Something has come. */
  void end(Clock::time_point now) {
    if (!since_) return;
    count(now);
    const bool was_short = now - *since_ < longest_;
    uint8_t& certainty = expected();
    if (was_short && certainty < certainty_max) ++certainty;
    if (!was_short && certainty > 0) --certainty;
    history_ = (history_ << 1 | was_short) % certainties_.size();
    forget();
  }

  /** The wait is over without anything having come: somebody else waits. */
  void forget() {
    since_.reset();
    looking_ = false;
  }

  /** Time that it looked. */
  Clock::duration looked() const { return looked_; }

 private:
  static constexpr uint8_t certainty_max = 3;
  /** Whoever comes back later than that has done something else between. */
  static constexpr std::chrono::microseconds between_looks_max{50};

  uint8_t& expected() { return certainties_[history_]; }

  void count(Clock::time_point now) {
    if (looking_) looked_ += std::min<Clock::duration>(now - last_, between_looks_max);
  }

  const Clock::duration longest_;
  /** How certain a short wait is after each history of four. */
  std::array<uint8_t, 16> certainties_{};
  /** Whether the last waits were short, the latest in the lowest bit. */
  size_t history_ = 0;
  std::optional<Clock::time_point> since_{};
  Clock::time_point last_{};
  bool looking_ = false;
  Clock::duration looked_{0};
};

}  // namespace switchyard::ucx
