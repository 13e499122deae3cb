// Segments of shared memory that clients make: whatever they do to them is an error that names them, and never a signal.
#include "memory/shared_segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr std::size_t size = 10'000;

class Segments : public ::testing::Test {
 protected:
  Segments() : descriptor(shm_open(key.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) {
    EXPECT_GE(descriptor, 0);
    EXPECT_EQ(ftruncate(descriptor, size), 0);
  }
  ~Segments() override {
    close(descriptor);
    shm_unlink(key.c_str());
  }

  const std::string key = "/switchyard-test-" + std::to_string(getpid());
  const int descriptor;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
  return "no error";
}

std::string open_error(const std::string& key, std::size_t offset, std::size_t bytes) {
  return error_of([&] { SharedSegment::open(key, offset, bytes); });
}

TEST_F(Segments, AreReadAndWrittenFromTheOffsetOn) {
  const auto segment = SharedSegment::open(key, 100, 5000);
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i % 251);
  segment->write(0, bytes.size(), bytes.data());
  std::vector<std::byte> seen(200);
  ASSERT_EQ(pread(descriptor, seen.data(), seen.size(), 100 + 300), 200);
  EXPECT_TRUE(std::equal(seen.begin(), seen.end(), bytes.begin() + 300));
  segment->read(4800, 200, seen.data());
  EXPECT_TRUE(std::equal(seen.begin(), seen.end(), bytes.begin() + 4800));
  EXPECT_EQ(SharedSegment::open(key.substr(1), 0, size)->size(), size) << "a key needs no slash";
}

TEST_F(Segments, AreRefusedBeyondWhatWasRegistered) {
  const auto segment = SharedSegment::open(key, 100, 5000);
  std::byte byte{};
  EXPECT_NE(error_of([&] { segment->read(5000, 1, &byte); }).find("shared_memory_offset is 5000"), std::string::npos);
  EXPECT_NE(error_of([&] { segment->write(SIZE_MAX, 2, &byte); }).find("leave room for 2 bytes"), std::string::npos);
}

TEST_F(Segments, AreRefusedIfTheyAreShorterElsewhereOrNoSegments) {
  EXPECT_NE(open_error(key, 0, size + 1).find("at most the 10000 bytes"), std::string::npos);
  EXPECT_NE(open_error(key, SIZE_MAX, 2).find("at most the 10000 bytes"), std::string::npos);
  for (const std::string wrong : {"", "/", ".", "/..", "a/b", "../etc/passwd", "/ucx_shm_posix_1", "/switchyard-not-there"}) {
    EXPECT_NE(open_error(wrong, 0, 1).find("shared_memory_key is \"" + wrong), std::string::npos) << wrong;
  }
  const std::string link = key + "-link";
  ASSERT_EQ(symlink("/etc/hostname", ("/dev/shm" + link).c_str()), 0);
  EXPECT_NE(open_error(link, 0, 1).find("cannot be opened"), std::string::npos);
  unlink(("/dev/shm" + link).c_str());
  const std::string fifo = key + "-fifo";
  ASSERT_EQ(mkfifo(("/dev/shm" + fifo).c_str(), 0600), 0);
  EXPECT_NE(open_error(fifo, 0, 1).find("which is no file"), std::string::npos);
  unlink(("/dev/shm" + fifo).c_str());
}

TEST_F(Segments, OfAnotherUserAreRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  ASSERT_EQ(fchown(descriptor, 12345, 12345), 0);
  EXPECT_NE(open_error(key, 0, 1).find("belongs to user 12345; allowed: segments of user 0"), std::string::npos);
}

TEST_F(Segments, ThatAreCutShortAreErrorsAndDoNotGrowAgain) {
  const auto segment = SharedSegment::open(key, 0, size);
  ASSERT_EQ(ftruncate(descriptor, 4000), 0);
  std::vector<std::byte> bytes(size);
  EXPECT_NE(error_of([&] { segment->read(0, size, bytes.data()); }).find("was cut to 4000 bytes"), std::string::npos);
  EXPECT_NE(error_of([&] { segment->write(0, size, bytes.data()); }).find("was cut to 4000 bytes"), std::string::npos);
  struct stat status {};
  ASSERT_EQ(fstat(descriptor, &status), 0);
  EXPECT_EQ(status.st_size, 4000);
}

TEST_F(Segments, TellWhetherTheirNameIsGone) {
  const auto segment = SharedSegment::open(key, 0, size);
  EXPECT_FALSE(segment->unlinked());
  shm_unlink(key.c_str());
  EXPECT_TRUE(segment->unlinked());
}

}  // namespace
}  // namespace switchyard
