// What the tests of the fabric share.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

#include "ucx/fabric.h"

namespace switchyard::ucx {

using namespace std::chrono_literals;

constexpr size_t message_bytes_max = 16 << 20;

/** An event loop that has nothing to do but to drive a fabric. */
class EventLoop {
 public:
  explicit EventLoop(Fabric& fabric) : fabric_(fabric), thread_([this] { run(fabric_.attach_loop().value()); }) {}
  ~EventLoop() {
    resume();
    eventfd_write(end_, 1);
    thread_.join();
    fabric_.detach_loop();
    ::close(end_);
  }

  std::thread::id thread() const { return thread_.get_id(); }

  /** It stands still from now on, before it looks at the fabric. */
  void pause() { paused_ = true; }
  /** It does when it has found something there, and before it looks again. */
  void stop_after_what_comes() { stops_ = true; }
  bool stands() const { return paused_; }
  void resume() {
    stops_ = false;
    paused_ = false;
    paused_.notify_all();
  }

 private:
  void run(int descriptor) {
    pollfd watched[] = {{.fd = descriptor, .events = POLLIN, .revents = 0}, {.fd = end_, .events = POLLIN, .revents = 0}};
    while (poll(watched, 2, -1) >= 0 && watched[1].revents == 0) {
      bool more = true;
      while (more) {
        paused_.wait(true);
        more = fabric_.drive();
        if (more && stops_) paused_ = true;
      }
    }
  }

  Fabric& fabric_;
  const int end_ = eventfd(0, EFD_CLOEXEC);
  std::atomic<bool> paused_{false}, stops_{false};
  std::thread thread_;
};

/** Every test runs once more with SWITCHYARD_TEST_LOOP, where event loops drive the fabrics. */
class TestFabric : public Fabric {
 public:
  explicit TestFabric(SlabArena& arena) : Fabric(arena) {
    if (std::getenv("SWITCHYARD_TEST_LOOP") != nullptr) loop_.emplace(*this);
  }

 private:
  std::optional<EventLoop> loop_;
};

inline Key key_of(uint8_t seed) {
  Key key;
  std::iota(key.begin(), key.end(), seed);
  return key;
}

/** What happened on one channel, for a test thread to wait on. */
class Inbox {
 public:
  ChannelEvents events() {
    return {[this](Message message) { push(std::move(message)); }, [this](Error error) { fail(std::move(error)); }};
  }

  bool wait_messages(size_t count, std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [&] { return messages_.size() >= count; });
  }

  std::optional<Error> wait_failure(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [&] { return failure_.has_value(); });
    return failure_;
  }

  std::vector<Message> take() {
    std::lock_guard lock(mutex_);
    return std::move(messages_);
  }

 private:
  void push(Message message) {
    std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
    changed_.notify_all();
  }
  void fail(Error error) {
    std::lock_guard lock(mutex_);
    failure_ = std::move(error);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Message> messages_;
  std::optional<Error> failure_;
};

/** Waits for one completion. */
class Completion {
 public:
  auto callback() {
    return [this](std::optional<Error> error) {
      std::lock_guard lock(mutex_);
      error_ = std::move(error);
      done_ = true;
      changed_.notify_all();
    };
  }
  std::optional<Error> wait(std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, limit, [&] { return done_; })) << "no completion";
    return error_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::optional<Error> error_;
};

/** Makes the channels of two fabrics send to each other. */
inline void connect_both(Fabric& left, uint64_t left_channel, Fabric& right, uint64_t right_channel) {
  Completion one, two;
  left.connect(left_channel, right.address(), right_channel, one.callback());
  right.connect(right_channel, left.address(), left_channel, two.callback());
  EXPECT_FALSE(one.wait());
  EXPECT_FALSE(two.wait());
}

inline Message message_of(SlabArena& arena, size_t row_bytes, size_t meta_bytes, unsigned seed) {
  Message message{arena.allocate(row_bytes + meta_bytes), row_bytes, meta_bytes};
  auto* bytes = reinterpret_cast<uint8_t*>(message.slab->data());
  for (size_t i = 0; i < row_bytes + meta_bytes; ++i) bytes[i] = static_cast<uint8_t>(seed + i * 31 + (i >> 8));
  return message;
}

inline void expect_content(const Message& message, size_t row_bytes, size_t meta_bytes, unsigned seed) {
  ASSERT_EQ(message.row_bytes, row_bytes);
  ASSERT_EQ(message.meta_bytes, meta_bytes);
  const auto* bytes = reinterpret_cast<const uint8_t*>(message.slab->data());
  for (size_t i = 0; i < row_bytes + meta_bytes; ++i) {
    ASSERT_EQ(bytes[i], static_cast<uint8_t>(seed + i * 31 + (i >> 8))) << "byte " << i;
  }
}

/** Every third row of a slab, from the last to the first, and what they must look like where they arrive. */
struct Selected {
  static constexpr size_t meta_bytes = 101;
  size_t row_bytes;
  SlabRef source;
  std::vector<uint32_t> indices;
  std::vector<uint8_t> metadata = std::vector<uint8_t>(meta_bytes, 9);

  Selected(SlabArena& arena, size_t rows, size_t row_bytes)
      : row_bytes(row_bytes), source(message_of(arena, rows * row_bytes, 0, 5).slab) {
    for (size_t row = rows; row >= 3; row -= 3) indices.push_back(static_cast<uint32_t>(row - 1));
  }

  Message message(SlabArena& arena) const { return select_rows(arena, source, row_bytes, indices, metadata); }

  void expect_arrived(const Message& message) const {
    ASSERT_EQ(message.row_bytes, indices.size() * row_bytes);
    ASSERT_EQ(message.meta_bytes, meta_bytes);
    const std::byte* arrived = message.slab->data();
    for (size_t i = 0; i < indices.size(); ++i) {
      ASSERT_EQ(std::memcmp(arrived + i * row_bytes, source->data() + indices[i] * row_bytes, row_bytes), 0) << i;
    }
    ASSERT_EQ(std::memcmp(arrived + message.row_bytes, metadata.data(), meta_bytes), 0);
  }
};

}  // namespace switchyard::ucx
