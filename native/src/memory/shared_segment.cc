#include "memory/shared_segment.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr const char* folder = "/dev/shm/";
constexpr std::size_t name_characters_max = 255;

/** The name of a key, which may begin with a slash. */
std::string name_of(const std::string& key) {
  const std::string name = key.substr(!key.empty() && key[0] == '/' ? 1 : 0);
  const bool plain = !name.empty() && name.size() <= name_characters_max && name != "." && name != ".." &&
                     name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
  // Peers of this process write there whatever they like; a client of it must not.
  if (!plain || name.starts_with("ucx_")) {
    throw_invalid("shared_memory_key", '"' + key.substr(0, name_characters_max) + '"',
                  "the name of a segment in /dev/shm, without a folder, and none of UCX");
  }
  return name;
}

[[noreturn]] void fail(const std::string& key, const std::string& seen, const std::string& allowed) {
  throw_invalid("shared_memory_key", '"' + key + "\", " + seen, allowed);
}

}  // namespace

std::shared_ptr<const SharedSegment> SharedSegment::open(const std::string& key, std::size_t offset, std::size_t bytes) {
  const std::string name = name_of(key);
  // A FIFO would hold an open that waits for its other end.
  const int descriptor = ::open((folder + name).c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (descriptor < 0) {
    fail(key, std::string("which cannot be opened: ") + std::strerror(errno), "a segment that this process may read and write");
  }
  const std::shared_ptr<const SharedSegment> segment(new SharedSegment(key, descriptor, offset, bytes));
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) fail(key, "which is no file", "a segment of shared memory");
  if (status.st_uid != geteuid()) {
    fail(key, "which belongs to user " + std::to_string(status.st_uid), "segments of user " + std::to_string(geteuid()));
  }
  const auto length = static_cast<std::size_t>(status.st_size);
  if (offset > length || bytes > length - offset) {
    throw_invalid("offset + byte_size", std::to_string(offset) + " + " + std::to_string(bytes),
                  "at most the " + std::to_string(length) + " bytes of segment \"" + key + '"');
  }
  return segment;
}

SharedSegment::~SharedSegment() { ::close(descriptor_); }

bool SharedSegment::unlinked() const {
  struct stat status {};
  return fstat(descriptor_, &status) != 0 || status.st_nlink == 0;
}

void SharedSegment::check(std::size_t offset, std::size_t bytes) const {
  if (offset <= bytes_ && bytes <= bytes_ - offset) return;
  throw_invalid("shared_memory_offset", offset,
                "offsets that leave room for " + std::to_string(bytes) + " bytes in the " + std::to_string(bytes_) +
                    " registered of segment \"" + key_ + '"');
}

std::size_t SharedSegment::length() const {
  struct stat status {};
  return fstat(descriptor_, &status) == 0 ? static_cast<std::size_t>(status.st_size) : 0;
}

void SharedSegment::read(std::size_t offset, std::size_t bytes, std::byte* out) const {
  check(offset, bytes);
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = pread(descriptor_, out + done, bytes - done, static_cast<off_t>(offset_ + offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(key_, std::string("which cannot be read: ") + std::strerror(errno), "a segment that stays");
    if (count == 0) fail(key_, "which was cut to " + std::to_string(length()) + " bytes", "a segment that stays as long as it was");
    done += static_cast<std::size_t>(count);
  }
}

void SharedSegment::write(std::size_t offset, std::size_t bytes, const std::byte* from) const {
  check(offset, bytes);
  // A write beyond the end would make the segment longer.
  if (const std::size_t now = length(); now < offset_ + offset + bytes) {
    fail(key_, "which was cut to " + std::to_string(now) + " bytes", "a segment that stays as long as it was");
  }
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t count = pwrite(descriptor_, from + done, bytes - done, static_cast<off_t>(offset_ + offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(key_, std::string("which cannot be written: ") + std::strerror(errno), "a segment with memory behind it");
    done += static_cast<std::size_t>(count);
  }
}

}  // namespace switchyard
