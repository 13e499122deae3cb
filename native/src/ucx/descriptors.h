#pragma once

#include <unordered_set>

namespace switchyard::ucx {

/**
 * UCX lets the children of the process inherit what it opens: sockets, event descriptors, shared memory. This keeps it from
 * them. What was open before UCX was is left as it is.
 */
class Descriptors {
 public:
  /** Before UCX opens anything. */
  Descriptors();
  /** Marks all that was opened meanwhile to be closed where a child begins another program. */
  void keep_from_children() const;
  /** As `keep_from_children`, of sockets, events and timers: peers come and go while the program opens files of its own. */
  void keep_connections_from_children() const;

 private:
  void keep(bool connections_alone) const;

  const std::unordered_set<int> inherited_before_;
};

}  // namespace switchyard::ucx
