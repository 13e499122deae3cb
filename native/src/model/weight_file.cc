#include "model/weight_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/error.h"

namespace switchyard {

namespace {

[[noreturn]] void fail(const std::string& path, const std::string& reason) {
  throw Error(Code::model_invalid, path + ": " + reason);
}

std::string identity_of(const struct stat& status) {
  const auto time = [](const timespec& at) { return std::to_string(at.tv_sec) + "." + std::to_string(at.tv_nsec); };
  return std::to_string(status.st_dev) + ":" + std::to_string(status.st_ino) + ":" + std::to_string(status.st_size) + ":" +
         time(status.st_mtim) + ":" + time(status.st_ctim);
}

double milliseconds_of(const timespec& at) {
  return static_cast<double>(at.tv_sec) * 1e3 + static_cast<double>(at.tv_nsec) / 1e6;
}

}  // namespace

std::shared_ptr<const WeightFile> WeightFile::open(const std::string& path) {
  // A FIFO would hold an open that waits for its writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail(path, std::string("cannot be opened: ") + std::strerror(errno));
  return std::shared_ptr<const WeightFile>(new WeightFile(path, descriptor));
}

WeightFile::WeightFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {
  try {
    if (fstat(descriptor_, &opened_) != 0) fail(path_, std::string("cannot be opened: ") + std::strerror(errno));
    if (!S_ISREG(opened_.st_mode)) fail(path_, "cannot be opened: it is not a regular file");
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

WeightFile::~WeightFile() { ::close(descriptor_); }

std::string WeightFile::identity() const { return identity_of(opened_); }

double WeightFile::changed_milliseconds() const {
  return std::max(milliseconds_of(opened_.st_mtim), milliseconds_of(opened_.st_ctim));
}

void WeightFile::read(size_t offset, size_t bytes, std::byte* out) const {
  for (size_t done = 0; done < bytes;) {
    const ssize_t count = pread(descriptor_, out + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, std::string("cannot be read: ") + std::strerror(errno));
    if (count == 0) {
      fail(path_, "ends at byte " + std::to_string(offset + done) + "; allowed: " + std::to_string(size()) +
                      " bytes, as when it was opened");
    }
    done += static_cast<size_t>(count);
  }
  // Times change before content does, so what was read is what was opened if they are the same now.
  require_unchanged();
}

void WeightFile::require_unchanged() const {
  struct stat now {};
  if (stat(path_.c_str(), &now) != 0) {
    fail(path_, std::string("is no longer there: ") + std::strerror(errno) + "; a model that is served must stay as it is");
  }
  if (identity_of(now) == identity()) return;
  fail(path_, "was changed or replaced since it was opened (device:inode:size:modified:changed is " + identity_of(now) +
                  ", was " + identity() + "); a model that is served must stay as it is");
}

}  // namespace switchyard
