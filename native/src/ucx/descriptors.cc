#include "ucx/descriptors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <charconv>
#include <filesystem>

namespace switchyard::ucx {
namespace {

/** The descriptors that children would inherit. */
std::unordered_set<int> inherited() {
  std::unordered_set<int> found;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", none)) {
    const std::string name = entry.path().filename();
    int descriptor = -1;
    std::from_chars(name.data(), name.data() + name.size(), descriptor);
    const int flags = fcntl(descriptor, F_GETFD);
    if (flags >= 0 && !(flags & FD_CLOEXEC)) found.insert(descriptor);
  }
  return found;
}

/** A socket, or what the system has no kind of file for: events and timers. */
bool is_of_connections(int descriptor) {
  struct stat status {};
  return fstat(descriptor, &status) == 0 && (S_ISSOCK(status.st_mode) || (status.st_mode & S_IFMT) == 0);
}

}  // namespace

Descriptors::Descriptors() : inherited_before_(inherited()) {}

void Descriptors::keep_from_children() const { keep(false); }

void Descriptors::keep_connections_from_children() const { keep(true); }

void Descriptors::keep(bool connections_alone) const {
  for (const int descriptor : inherited()) {
    if (inherited_before_.contains(descriptor) || (connections_alone && !is_of_connections(descriptor))) continue;
    fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  }
}

}  // namespace switchyard::ucx
