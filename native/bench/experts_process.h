#pragma once

#include <sys/types.h>

#include <cstdio>
#include <string>
#include <vector>

namespace switchyard::bench {

/** A peer in a process of its own that answers each line with a line. It inherits the core of the caller. */
class PeerProcess {
 public:
  explicit PeerProcess(const std::vector<std::string>& command);
  ~PeerProcess();
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;

  /** The next line without its end; empty once the process has ended. */
  std::string read();
  void write(const std::string& line);

 private:
  pid_t process_ = -1;
  std::FILE* input_ = nullptr;
  std::FILE* output_ = nullptr;
};

}  // namespace switchyard::bench
