// Weights must be those of the file as it was opened: whatever changes it is an error that names it, and never a signal.
#include "model/weight_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "model_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

using test::TemporaryFiles;

std::vector<uint8_t> some_bytes() {
  std::vector<uint8_t> bytes(100'000);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  return bytes;
}

std::vector<uint8_t> read(const WeightFile& file, size_t offset, size_t bytes) {
  std::vector<uint8_t> out(bytes);
  file.read(offset, bytes, reinterpret_cast<std::byte*>(out.data()));
  return out;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::model_invalid);
    return error.what();
  }
  return "nothing was thrown";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

/** Times have the ticks of the kernel's clock: a change within the tick of the one before it cannot be told. */
void let_the_clock_tick(const std::filesystem::path& path) {
  const auto probe = TemporaryFiles::write("x", 1);
  struct stat before {}, now {};
  ASSERT_EQ(stat(path.c_str(), &before), 0);
  do {
    std::ofstream(probe, std::ios::app) << "x";
    ASSERT_EQ(stat(probe.c_str(), &now), 0);
  } while (now.st_ctim.tv_sec == before.st_ctim.tv_sec && now.st_ctim.tv_nsec == before.st_ctim.tv_nsec);
}

class ChangedFile : public testing::Test {
 protected:
  void SetUp() override {
    const auto bytes = some_bytes();
    path_ = TemporaryFiles::write(bytes.data(), bytes.size());
    file_ = WeightFile::open(path_);
    EXPECT_EQ(read(*file_, 0, bytes.size()), bytes);
    let_the_clock_tick(path_);
  }

  void expect_refused(const std::string& reason) {
    const std::string error = error_of([&] { read(*file_, 10, 20); });
    expect_contains(error, path_);
    expect_contains(error, reason);
    expect_contains(error_of([&] { file_->require_unchanged(); }), path_);
  }

  std::filesystem::path path_;
  std::shared_ptr<const WeightFile> file_;
};

TEST_F(ChangedFile, IsRefusedWhenItWasOverwrittenInPlace) {
  std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary).seekp(50'000).put(7);
  expect_refused("was changed or replaced");
}

TEST_F(ChangedFile, IsRefusedWhenItWasOverwrittenAndItsTimeSetBack) {
  const auto time = std::filesystem::last_write_time(path_);
  std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary).seekp(50'000).put(7);
  std::filesystem::last_write_time(path_, time);
  expect_refused("was changed or replaced");
}

TEST_F(ChangedFile, IsRefusedWhenItWasReplacedByRename) {
  const auto bytes = some_bytes();
  std::filesystem::rename(TemporaryFiles::write(bytes.data(), bytes.size()), path_);
  expect_refused("was changed or replaced");
}

TEST_F(ChangedFile, IsRefusedWhenItIsGone) {
  std::filesystem::remove(path_);
  expect_refused("is no longer there: No such file");
}

TEST_F(ChangedFile, ThatWasCutShortIsAnErrorAndNotASignal) {
  std::filesystem::resize_file(path_, 60'000);
  expect_contains(error_of([&] { read(*file_, 59'990, 20); }), "ends at byte 60000; allowed: 100000 bytes");
  expect_refused("was changed or replaced");
}

TEST_F(ChangedFile, ThatIsCutShortWhileItIsReadIsAnErrorAndNotASignal) {
  std::thread cutter([&] { std::filesystem::resize_file(path_, 4096); });
  std::string error = "nothing was thrown";
  while (error == "nothing was thrown") error = error_of([&] { read(*file_, 0, 100'000); });
  cutter.join();
  expect_contains(error, path_);
}

TEST(WeightFile, ReadsAnyPart) {
  const auto bytes = some_bytes();
  const auto file = test::weight_file(bytes);
  EXPECT_EQ(file->size(), bytes.size());
  EXPECT_EQ(read(*file, 99'999, 1), std::vector<uint8_t>{bytes[99'999]});
  EXPECT_EQ(read(*file, 777, 5000), std::vector<uint8_t>(bytes.begin() + 777, bytes.begin() + 5777));
}

TEST(WeightFile, LeadsThroughLinks) {
  const auto bytes = some_bytes();
  const auto target = TemporaryFiles::write(bytes.data(), bytes.size());
  const auto link = target.string() + ".link";
  std::filesystem::create_symlink(target, link);
  const auto file = WeightFile::open(link);
  EXPECT_EQ(read(*file, 0, bytes.size()), bytes);
  EXPECT_EQ(file->identity(), WeightFile::open(target)->identity());
  std::filesystem::remove(link);
}

TEST(WeightFile, SaysWhichPathCannotBeOpenedAndWhy) {
  const std::string missing = "/nonexistent/switchyard";
  EXPECT_EQ(error_of([&] { WeightFile::open(missing); }), missing + ": cannot be opened: No such file or directory");
  expect_contains(error_of([&] { WeightFile::open(testing::TempDir()); }), "it is not a regular file");
  const auto fifo = TemporaryFiles::write("", 0);
  std::filesystem::remove(fifo);
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  expect_contains(error_of([&] { WeightFile::open(fifo); }), "it is not a regular file");
  EXPECT_EQ(WeightFile::open(TemporaryFiles::write("", 0))->size(), 0u);
}

}  // namespace
}  // namespace switchyard
