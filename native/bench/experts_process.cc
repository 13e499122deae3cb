#include "experts_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>

namespace switchyard::bench {

PeerProcess::PeerProcess(const std::vector<std::string>& command) {
  int down[2], up[2];
  if (pipe(down) != 0 || pipe(up) != 0) throw std::runtime_error("no pipe to a peer");
  // A peer that ended is seen by an empty answer, not by a signal.
  std::signal(SIGPIPE, SIG_IGN);
  process_ = fork();
  if (process_ < 0) throw std::runtime_error("no process for a peer");
  if (process_ == 0) {
    dup2(down[0], 0);
    dup2(up[1], 1);
    for (const int end : {down[0], down[1], up[0], up[1]}) close(end);
    std::vector<char*> arguments;
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  close(down[0]);
  close(up[1]);
  input_ = fdopen(down[1], "w");
  output_ = fdopen(up[0], "r");
}

PeerProcess::~PeerProcess() {
  std::fclose(input_);
  std::fclose(output_);
  waitpid(process_, nullptr, 0);
}

std::string PeerProcess::read() {
  char line[256];
  if (std::fgets(line, sizeof line, output_) == nullptr) return {};
  std::string text(line);
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

void PeerProcess::write(const std::string& line) {
  std::fputs((line + "\n").c_str(), input_);
  std::fflush(input_);
}

}  // namespace switchyard::bench
