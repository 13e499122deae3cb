#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <optional>

namespace switchyard::ucx {

/**
 * Whether an event loop that has nothing to do looks for messages, or sleeps until one wakes it. To be woken takes tens of
 * microseconds, and all that runs after a sleep is slower; so it looks as long as `longest` if most of the last waits were
 * shorter than that. What waits are like is learned from those that it slept through too.
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
      looking_ = std::popcount(short_ones_) > remembered / 2;
    }
    last_ = now;
    looking_ = looking_ && now - *since_ < longest_;
    return looking_;
  }

  /** Something has come. */
  void end(Clock::time_point now) {
    if (!since_) return;
    count(now);
    short_ones_ = static_cast<uint8_t>(short_ones_ << 1 | (now - *since_ < longest_));
    since_.reset();
    looking_ = false;
  }

  /** Time that it looked. */
  Clock::duration looked() const { return looked_; }

 private:
  static constexpr int remembered = 8;
  /** Whoever comes back later than that has done something else between. */
  static constexpr std::chrono::microseconds between_looks_max{50};

  void count(Clock::time_point now) {
    if (looking_) looked_ += std::min<Clock::duration>(now - last_, between_looks_max);
  }

  const Clock::duration longest_;
  /** Of the last waits, the latest in the lowest bit. */
  uint8_t short_ones_ = 0;
  std::optional<Clock::time_point> since_{};
  Clock::time_point last_{};
  bool looking_ = false;
  Clock::duration looked_{0};
};

}  // namespace switchyard::ucx
