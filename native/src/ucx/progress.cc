#include "ucx/progress.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "runtime/thread_start.h"
#include "ucx/transports.h"

namespace switchyard::ucx {
namespace {

/**
 * How long the thread looks for work before it sleeps. To be woken takes tens of microseconds, and a message costs several such waits
 * in a row. Between looks it yields, so that a thread that computes has the core.
 */
constexpr auto look_time = std::chrono::microseconds(20);

/** As long the event loop looks for what usually comes sooner, as the next message of many small batches does. */
constexpr auto loop_look_time = std::chrono::microseconds(500);

/** Where the process has one core it sleeps at once: whoever is waited for runs on that core or is far away. */
std::chrono::microseconds if_several_cores(std::chrono::microseconds time) {
  cpu_set_t cores;
  const bool known = sched_getaffinity(0, sizeof(cores), &cores) == 0;
  return known && CPU_COUNT(&cores) == 1 ? std::chrono::microseconds(0) : time;
}

/** How often the thread looks whether the loop that drives stands still. */
constexpr int watch_ms = 500;


constexpr auto shutdown_wait = std::chrono::seconds(1);

/** An option of UCX. The environment's UCX_NAME comes before it. */
struct Option {
  const char* name;
  const char* value;
};

// Without it, endpoints with peer error handling leave shared memory for TCP without a word.
constexpr Option shared_memory_options[] = {{"MM_ERROR_HANDLING", "y"}};
constexpr Option peer_options[] = {
    // How soon a peer on this host is found dead when nothing is sent to it and nothing else tells of it; each look reads a file for each
    // peer, and wakes it. UCX would take 20 s.
    {"KEEPALIVE_INTERVAL", "3s"},
};
constexpr Option machine_options[] = {{"NET_DEVICES", "lo"}};

std::vector<const char*> allowed_queues(const std::string& transports) {
  std::vector<const char*> allowed;
  for (const char* name : {"sysv", "posix"}) {
    if (transport_allowed(transports, name)) allowed.push_back(name);
  }
  if (transport_allowed(transports, "xpmem") && access("/dev/xpmem", F_OK) == 0) allowed.push_back("xpmem");
  return allowed;
}

void apply(std::span<const Option> options, ucp_config_t* config) {
  for (const auto& [name, value] : options) {
    const std::string variable = std::string("UCX_") + name;
    if (std::getenv(variable.c_str()) == nullptr) check(ucp_config_modify(config, name, value), variable.c_str());
  }
}

}  // namespace

Fabric::Progress::Progress(SlabArena& arena, Reach reach)
    : arena_(arena), transports_(transports_of(reach)), peer_memory_allowed_(shared_memory_allowed(transports_)), queue_transports_(allowed_queues(transports_)), look_time_(if_several_cores(look_time)), waits_(if_several_cores(loop_look_time)) {
  try {
    create_context(reach);
    create_events();
    descriptors_.keep_from_children();
    take_on(current_[static_cast<size_t>(Peers::nodes)] = create_worker());
  } catch (...) {
    destroy();
    throw;
  }
  thread_ = std::thread([this] {
    start_thread("ucx");
    run();
  });
}

Fabric::Progress::~Progress() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake();
  thread_.join();
  destroy();
}

void Fabric::Progress::create_context(Reach reach) {
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  params.name = "switchyard";
  ucp_config_t* config = nullptr;
  check(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read");
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> released(config, ucp_config_release);
  apply(peer_options, config);
  if (!queue_transports_.empty()) apply(shared_memory_options, config);
  if (reach == Reach::machine) apply(machine_options, config);
  if (!transports_.empty()) check(ucp_config_modify(config, "TLS", transports_.c_str()), "UCX_TLS");
  check(ucp_init(&params, config, &context_), "ucp_init");
}

void Fabric::Progress::create_events() {
  command_events_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  stream_events_ = epoll_create1(EPOLL_CLOEXEC);
  loop_events_ = epoll_create1(EPOLL_CLOEXEC);
  back_events_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (command_events_ < 0 || stream_events_ < 0 || loop_events_ < 0 || back_events_ < 0) {
    throw Error(Code::internal, "no file descriptor for events");
  }
  wake_on(loop_events_, back_events_);
  wakes_.push_back(stream_events_);
}

void Fabric::Progress::destroy() {
  // UCX aborts the process when a worker is destroyed under operations that never ended, which a peer that stopped
  // answering can cause. Such a worker is left to the end of the process.
  const bool quiet = channels_.empty() && endpoints_.empty() && nothing_under_way();
  for (const auto& worker : workers_) {
    worker->probes.clear();
    if (quiet) worker->destroy();
  }
  if (context_ && quiet) ucp_cleanup(context_);
  const Error ended(Code::cancelled, "the UCX fabric closed before the message was sent");
  for (SendRequest* request : sending_) {
    if (request->done) request->done(ended);
    delete request;
  }
  for (auto& [id, channel] : channels_) {
    end_offers(*channel, ended);
    end_waiting(*channel, ended);
    for (const CloseDone& closed : channel->closed) closed();
  }
  for (ReceiveRequest* request : receiving_) delete request;
  close_streams();
  if (command_events_ >= 0) ::close(command_events_);
  if (stream_events_ >= 0) ::close(stream_events_);
  if (loop_events_ >= 0) ::close(loop_events_);
  if (back_events_ >= 0) ::close(back_events_);
}

void Fabric::Progress::enqueue(Command command) {
  {
    std::lock_guard lock(mutex_);
    if (closing_) throw Error(Code::cancelled, "the UCX fabric is closing");
    commands_.push_back(std::move(command));
    // A thread that is awake looks for commands by itself, and one that was woken takes them all.
    if (!sleeping_ || commands_.size() > 1) return;
  }
  wake();
}

void Fabric::Progress::wake() { eventfd_write(command_events_, 1); }

bool Fabric::Progress::run_commands() {
  std::deque<Command> commands;
  {
    std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  const bool busy = !commands.empty() || !deferred_.empty();
  for (Command& command : commands) command();
  for (Command& command : std::exchange(deferred_, {})) command();
  return busy;
}

void Fabric::Progress::run() {
  using Clock = std::chrono::steady_clock;
  auto last_work = Clock::now();
  std::unique_lock driving(driving_);
  for (;;) {
    bool busy = run_commands();
    if (!flushing_.empty()) give_up_late();
    if (!unused_files_.empty()) unmap_unused();
    {
      std::lock_guard lock(mutex_);
      if (closing_ && commands_.empty()) break;
    }
    // Once, although more may have arrived: while a stream of messages comes in, answers to the first must go out.
    if (progress() != 0) busy = true;
    const auto now = Clock::now();
    const bool probing = watch_workers(now);
    if (serve_streams()) {
      busy = true;
      keep_from_loop();
    }
    if (busy) {
      last_work = now;
    } else if (probing || now - last_work < look_time_) {
      driving.unlock();
      sched_yield();
      driving.lock();
    } else if (sleep(driving)) {
      last_work = Clock::now();
    }
  }
  close_all();
}

/** False: a nap has passed in which nothing came. */
bool Fabric::Progress::sleep(std::unique_lock<std::mutex>& driving) {
  using std::chrono::steady_clock;
  // Arming fails while events are pending: then there is something to do.
  const bool armed = arm();
  const int nap_ms = armed ? -1 : nap_after(steady_clock::now());
  if (nap_ms == 0) return true;
  {
    std::lock_guard lock(mutex_);
    if (!commands_.empty() || !deferred_.empty() || closing_) return true;
    sleeping_ = true;
  }
  if (armed && has_loop_ && !loop_stands_ && receiving_.empty() && steady_clock::now() >= threads_until_) leave_to_loop();
  const auto next = next_look();
  const auto wait_ms = [&] {
    using std::chrono::ceil, std::chrono::milliseconds;
    const int longest = loops_turn_ ? watch_ms : nap_ms;
    if (!next) return longest;
    const int wait = std::max<int>(0, ceil<milliseconds>(*next - steady_clock::now()).count());
    return longest < 0 ? wait : std::min(longest, wait);
  };
  std::vector<pollfd> events{{.fd = command_events_, .events = POLLIN, .revents = 0}};
  if (!loops_turn_) {
    const auto wake_on_too = [&](int descriptor) { events.push_back({.fd = descriptor, .events = POLLIN, .revents = 0}); };
    wake_on_too(stream_events_);
    for (const auto& worker : workers_) {
      // What it has told of, it goes on to tell of.
      if (!worker->retired && !worker->unarmed_since) wake_on_too(worker->events);
    }
  }
  driving.unlock();
  int woken = 0;
  do {
    woken = poll(events.data(), events.size(), wait_ms());
  } while (woken == 0 && armed && !(next && steady_clock::now() >= *next) && !loop_stands_still());
  driving.lock();
  if (loops_turn_) leave_to_thread();
  {
    std::lock_guard lock(mutex_);
    sleeping_ = false;
  }
  eventfd_t ignored;
  eventfd_read(command_events_, &ignored);
  return armed || woken != 0;
}

void Fabric::Progress::close_all() {
  ending_ = true;
  for (const auto& [id, channel] : channels_) {
    close_now(id, nullptr, flush_wait);
    close_if_quiet(*channel);
  }
  const auto deadline = std::chrono::steady_clock::now() + shutdown_wait;
  const auto progress_while = [&](const auto& busy) {
    while (busy() && std::chrono::steady_clock::now() < deadline) {
      progress();
      serve_streams();
      run_commands();
    }
    return !busy();
  };
  // UCX aborts the process when an endpoint is closed under messages.
  const bool quiet = progress_while([&] { return !channels_.empty() || !sending_.empty() || !receiving_.empty(); });
  if (!quiet) return;
  for (const Endpoint& endpoint : std::exchange(endpoints_, {})) {
    say_goodbye(endpoint);
    ++endpoint.worker->under_way;
    close_endpoint(*endpoint.worker, endpoint.handle, false);
  }
  progress_while([&] { return !nothing_under_way(); });
}

}  // namespace switchyard::ucx
