// A fabric in a child process, for the parent to stop or kill.
#pragma once

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "ucx_support.h"

namespace switchyard::ucx {

/** A child process that holds the right end and, after each byte on its socket, sends back what has arrived. */
struct Child {
  pid_t pid = -1;
  int socket = -1;

  explicit Child(void (*run)(int socket) = serve) {
    int sockets[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    pid = fork();
    if (pid == 0) {
      ::close(sockets[0]);
      run(sockets[1]);
      _exit(0);
    }
    ::close(sockets[1]);
    socket = sockets[0];
  }

  static void write_all(int socket, const void* data, size_t size) {
    if (::write(socket, data, size) != static_cast<ssize_t>(size)) _exit(2);
  }
  static void read_all(int socket, void* data, size_t size) {
    if (::recv(socket, data, size, MSG_WAITALL) != static_cast<ssize_t>(size)) _exit(2);
  }
  static void write_address(int socket, const std::vector<uint8_t>& address, uint64_t channel) {
    const uint64_t length = address.size();
    write_all(socket, &length, sizeof(length));
    write_all(socket, address.data(), address.size());
    write_all(socket, &channel, sizeof(channel));
  }
  static std::pair<std::vector<uint8_t>, uint64_t> read_address(int socket) {
    uint64_t length = 0, channel = 0;
    read_all(socket, &length, sizeof(length));
    std::vector<uint8_t> address(length);
    read_all(socket, address.data(), length);
    read_all(socket, &channel, sizeof(channel));
    return {address, channel};
  }

  Child(const Child&) = delete;
  ~Child() { end(); }

  /** Idempotent. */
  void end() {
    if (pid < 0) return;
    ::close(socket);
    kill(pid, SIGKILL);
    waitpid(std::exchange(pid, -1), nullptr, 0);
  }

  static void serve(int socket) {
    SlabArena arena{1u << 30};
    Inbox inbox;
    TestFabric fabric{arena};
    const uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());
    write_address(socket, fabric.address(), channel);
    const auto [address, peer] = read_address(socket);
    Completion connected;
    fabric.connect(channel, address, peer, connected.callback());
    char byte;
    while (::read(socket, &byte, 1) > 0) {
      if (byte == 'c') {
        fabric.close(channel, [] {});
        continue;
      }
      if (!inbox.wait_messages(1)) _exit(3);
      for (Message& message : inbox.take()) fabric.send(channel, std::move(message), [](auto) {});
    }
  }
};

}  // namespace switchyard::ucx
