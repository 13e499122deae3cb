// A peer dies as it writes to the queue in shared memory that a UCX worker's peers share, which blocks it: what comes of the others.
#include <ucp/api/ucp.h>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/un.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <fstream>
#include <future>

#include "runtime/temporary_variables.h"
#include "ucx_child.h"

namespace switchyard::ucx {
namespace {

/** As many as it takes by a wide margin: of those who die so, one in ten or so is in the middle of a write. */
constexpr int deaths_max = 200;
constexpr int blocks = 2;

/** The queues in shared memory by which peers write to this process: where each begins, and its transport. */
struct Queue {
  std::string transport;
  uint64_t* head;
};

/** As UCX lays them out: the number of the next place, then the length and the address of a socket that wakes the reader. */
std::vector<Queue> own_queues() {
  std::vector<Queue> queues;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const bool sysv = line.find("/SYSV") != std::string::npos;
    if (!sysv && line.find("ucx_shm_posix") == std::string::npos) continue;
    const uintptr_t begin = (std::stoull(line, nullptr, 16) + 63) & ~uintptr_t{63};
    uint32_t length = 0;
    uint16_t family = 0;
    std::memcpy(&length, reinterpret_cast<const char*>(begin) + sizeof(uint64_t), sizeof(length));
    std::memcpy(&family, reinterpret_cast<const char*>(begin) + sizeof(uint64_t) + sizeof(length), sizeof(family));
    if (family == AF_UNIX && length > 0 && length <= sizeof(sockaddr_un)) queues.push_back({sysv ? "sysv" : "posix", reinterpret_cast<uint64_t*>(begin)});
  }
  return queues;
}

/** Takes a place, as a peer does that dies before it fills it. */
void take_place(const Queue& queue) { std::atomic_ref(*queue.head).fetch_add(1); }

/** Whether so many workers were replaced, or are soon. */
bool replaced(const Fabric& fabric, uint64_t count, std::chrono::milliseconds limit) {
  for (const auto end = std::chrono::steady_clock::now() + limit; std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(10ms)) {
    if (fabric.stats().workers_replaced >= count) return true;
  }
  return false;
}

/** Sends to the address as fast as it can, messages that nobody wants, until it is killed. */
[[noreturn]] void flood(const std::vector<uint8_t>& address) {
  constexpr Variable survives[] = {{"UCX_MM_ERROR_HANDLING", "y"}};
  const TemporaryVariables options(survives);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM;
  ucp_context_h context = nullptr;
  ucp_worker_params_t worker_params{};
  ucp_worker_h worker = nullptr;
  ucp_ep_params_t to{};
  to.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  to.address = reinterpret_cast<const ucp_address_t*>(address.data());
  to.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  ucp_ep_h endpoint = nullptr;
  if (ucp_init(&params, nullptr, &context) != UCS_OK || ucp_worker_create(context, &worker_params, &worker) != UCS_OK ||
      ucp_ep_create(worker, &to, &endpoint) != UCS_OK) {
    _exit(4);
  }
  const std::vector<std::byte> data(4000);
  const char header = 0;
  for (;;) {
    ucp_request_param_t eager{};
    eager.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    eager.flags = UCP_AM_SEND_FLAG_EAGER;
    const ucs_status_ptr_t pending = ucp_am_send_nbx(endpoint, 0, &header, sizeof(header), data.data(), data.size(), &eager);
    if (!UCS_PTR_IS_PTR(pending)) continue;
    while (ucp_request_check_status(pending) == UCS_INPROGRESS) ucp_worker_progress(worker);
    ucp_request_free(pending);
  }
}

void begin(int socket) {
  char byte;
  Child::read_all(socket, &byte, 1);
}

void live(int socket) {
  begin(socket);
  Child::serve(socket);
}

/** Has a channel like any peer, and begins to flood at a byte on its socket. */
void live_to_die(int socket) {
  begin(socket);
  SlabArena arena{1u << 26};
  Inbox inbox;
  TestFabric fabric{arena};
  const uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());
  Child::write_address(socket, fabric.address(), channel);
  const auto [address, peer] = Child::read_address(socket);
  Completion connected;
  fabric.connect(channel, address, peer, connected.callback());
  begin(socket);
  flood(address);
}

/** The parent's end of a channel to a child of its own. */
struct Peer {
  TestFabric& fabric;
  Peers kind;
  Child& child;
  Inbox inbox;
  uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events(), kind);

  bool closed = false;

  /** Whether this side connects too. */
  enum class Start { connected, heard_alone };
  Peer(TestFabric& fabric, Peers kind, Child& child, Start start = Start::connected) : fabric(fabric), kind(kind), child(child) {
    Child::write_all(child.socket, "b", 1);
    const auto [address, peer] = Child::read_address(child.socket);
    Child::write_address(child.socket, fabric.address(kind), channel);
    if (start == Start::heard_alone) return;
    Completion connected;
    fabric.connect(channel, address, peer, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  ~Peer() { die(); }

  void die() {
    child.end();
    if (std::exchange(closed, true)) return;
    // As who loses a link does.
    fabric.abandon(channel);
    std::promise<void> closed;
    fabric.close(channel, [&] { closed.set_value(); }, 0ms);
    EXPECT_EQ(closed.get_future().wait_for(20s), std::future_status::ready);
  }

  /** Sends a message and has it sent back. False: the channel failed. */
  bool echo(SlabArena& arena) {
    Completion sent;
    fabric.send(channel, message_of(arena, 1000, 10, 7), sent.callback());
    sent.wait();
    Child::write_all(child.socket, "e", 1);
    for (int i = 0; i < 1000; ++i) {
      if (inbox.wait_messages(1, 10ms)) {
        expect_content(inbox.take().at(0), 1000, 10, 7);
        return true;
      }
      if (inbox.wait_failure(0ms)) return false;
    }
    ADD_FAILURE() << "neither an answer nor a failure";
    return false;
  }
};

TEST(FabricBlocked, ByAPeerThatDiesAsItWritesEndsItsChannelsAndTheNextOnesAreServed) {
  signal(SIGPIPE, SIG_IGN);
  // UCX does not survive a fork.
  std::deque<Child> living, dying;
  for (int i = 0; i < 2 + blocks; ++i) living.emplace_back(live);
  for (int i = 0; i < deaths_max; ++i) dying.emplace_back(live_to_die);
  SlabArena arena{1u << 30};
  TestFabric fabric{arena};
  Peer beside(fabric, Peers::clients, living[0]);
  auto bystander = std::make_unique<Peer>(fabric, Peers::nodes, living[1]);
  ASSERT_TRUE(bystander->echo(arena));
  ASSERT_TRUE(beside.echo(arena));
  const std::string lanes = fabric.transports(bystander->channel);
  if (lanes.find("sysv") == std::string::npos && lanes.find("posix") == std::string::npos) GTEST_SKIP() << "no shared memory: " << lanes;
  int deaths = 0, blocked = 0;
  for (; deaths < deaths_max && blocked < blocks; ++deaths) {
    const uint64_t before = fabric.stats().messages_refused;
    {
      Peer doomed(fabric, Peers::nodes, dying[deaths]);
      Child::write_all(doomed.child.socket, "f", 1);
      for (int i = 0; i < 10'000 && fabric.stats().messages_refused == before; ++i) std::this_thread::sleep_for(1ms);
      ASSERT_GT(fabric.stats().messages_refused, before);
      std::this_thread::sleep_for(std::chrono::microseconds(deaths % 7 * 300));
    }
    if (bystander->echo(arena)) continue;
    ++blocked;
    const auto failure = bystander->inbox.wait_failure(0ms);
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->code, Code::link_lost);
    EXPECT_NE(std::string(failure->what()).find("in the middle of a write"), std::string::npos) << failure->what();
    EXPECT_EQ(fabric.stats().workers_replaced, static_cast<uint64_t>(blocked));
    // Peers of another kind have not noticed.
    EXPECT_TRUE(beside.echo(arena));
    EXPECT_FALSE(beside.inbox.wait_failure(0ms));
    bystander = std::make_unique<Peer>(fabric, Peers::nodes, living[1 + blocked]);
    ASSERT_TRUE(bystander->echo(arena));
  }
  EXPECT_EQ(arena.stats().slabs, 0u);
  // How many die in the middle of a write is the machine's; what follows is shown below too.
  if (blocked == 0) GTEST_SKIP() << "of " << deaths << " deaths none was in the middle of a write";
}

/** Of this process, in seconds, in half a second. */
double processor_time() {
  const auto now = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  };
  const double before = now();
  std::this_thread::sleep_for(500ms);
  return now() - before;
}

/** Some that live, made before the fabric, since UCX does not survive a fork. */
class FabricWithPeers : public testing::Test {
 protected:
  FabricWithPeers() {
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < 4; ++i) children_.emplace_back(live);
    fabric_ = std::make_unique<TestFabric>(arena_);
    queues_ = own_queues();
  }
  void SetUp() override {
    if (queues_.empty()) GTEST_SKIP() << "no queues in shared memory that look as expected";
  }
  Peer peer(Peer::Start start = Peer::Start::connected) { return {*fabric_, Peers::nodes, children_.at(next_++), start}; }

  SlabArena arena_{1u << 30};
  std::deque<Child> children_;
  std::unique_ptr<TestFabric> fabric_;
  std::vector<Queue> queues_;

 private:
  size_t next_ = 0;
};

TEST_F(FabricWithPeers, SleepsWhileAPeersQueueIsFullAndNobodyReadsIt) {
  Peer bystander = peer();
  Peer other = peer();
  ASSERT_TRUE(bystander.echo(arena_));
  ASSERT_TRUE(other.echo(arena_));
  kill(other.child.pid, SIGSTOP);
  waitpid(other.child.pid, nullptr, WUNTRACED);  // It runs on until the signal has reached it.
  std::vector<Completion> sent(1000);
  for (auto& completion : sent) fabric_->send(other.channel, message_of(arena_, 1000, 16, 1), completion.callback());
  EXPECT_LT(processor_time(), 0.25) << "it stands still";
  ASSERT_TRUE(bystander.echo(arena_));
  EXPECT_EQ(fabric_->stats().workers_replaced, 0u);
  kill(other.child.pid, SIGCONT);
  for (auto& completion : sent) EXPECT_FALSE(completion.wait());
  kill(other.child.pid, SIGSTOP);
  waitpid(other.child.pid, nullptr, WUNTRACED);
  for (size_t i = 0; i < sent.size(); ++i) fabric_->send(other.channel, message_of(arena_, 1000, 16, 1), [](auto) {});
  other.die();
  EXPECT_LT(processor_time(), 0.25) << "it died";
  // The queue of one that is dead is full for ever: who comes next is served by another worker, and the others go on.
  ASSERT_TRUE(replaced(*fabric_, 1, 10s));
  ASSERT_TRUE(bystander.echo(arena_));
  Peer next = peer();
  ASSERT_TRUE(next.echo(arena_));
  EXPECT_FALSE(bystander.inbox.wait_failure(0ms));
}

class FabricWithPlacesTaken : public FabricWithPeers {
 protected:
  void take_places() {
    for (const Queue& queue : queues_) take_place(queue);
  }
};

TEST_F(FabricWithPlacesTaken, SleepsWhileNothingHappens) {
  Inbox inbox;
  const uint64_t opened = fabric_->open(key_of(2), {message_bytes_max}, inbox.events());
  EXPECT_LT(processor_time(), 0.25) << "with a channel that is not connected";
  Peer other = peer();
  ASSERT_TRUE(other.echo(arena_));
  EXPECT_LT(processor_time(), 0.25) << "with one that is";
  take_places();
  other.die();
  ASSERT_TRUE(replaced(*fabric_, 1, 4s));
  EXPECT_LT(processor_time(), 0.25) << "with a worker that was replaced";
  fabric_->close(opened, [] {});
}

TEST_F(FabricWithPlacesTaken, ByWhoDiesBeforeThisSideConnectsBeginsAnew) {
  Peer bystander = peer();
  ASSERT_TRUE(bystander.echo(arena_));
  Peer dying = peer(Peer::Start::heard_alone);
  take_places();
  dying.die();
  EXPECT_TRUE(replaced(*fabric_, 1, 4s));
  EXPECT_FALSE(bystander.echo(arena_));
}

/** UCX takes the first that both ends have. */
class OfOneTransport : public FabricWithPlacesTaken, public testing::WithParamInterface<const char*> {};

TEST_P(OfOneTransport, BeginsAnew) {
  std::erase_if(queues_, [](const Queue& queue) { return queue.transport != GetParam(); });
  if (queues_.empty()) GTEST_SKIP() << "no queue of " << GetParam();
  Peer dying = peer();
  ASSERT_TRUE(dying.echo(arena_));
  take_places();
  dying.die();
  EXPECT_TRUE(replaced(*fabric_, 1, 4s));
  EXPECT_TRUE(peer().echo(arena_));
}

INSTANTIATE_TEST_SUITE_P(FabricWithPlacesTaken, OfOneTransport, testing::Values("sysv", "posix"));

/** Then a probe does not even leave; the next ones must not wait for it. */
TEST_F(FabricWithPlacesTaken, AndFullBeginsAnewOnce) {
  Peer dying = peer();
  ASSERT_TRUE(dying.echo(arena_));
  for (const Queue& queue : queues_) std::atomic_ref(*queue.head).fetch_add(1000);
  dying.die();
  ASSERT_TRUE(replaced(*fabric_, 1, 4s));
  Peer bystander = peer(), other = peer();
  ASSERT_TRUE(other.echo(arena_));
  other.die();
  EXPECT_FALSE(replaced(*fabric_, 2, 2s));
  EXPECT_TRUE(bystander.echo(arena_));
}

TEST_F(FabricWithPlacesTaken, WithoutAWordBeginsAnewByItself) {
  Peer bystander = peer();
  ASSERT_TRUE(bystander.echo(arena_));
  take_places();
  EXPECT_TRUE(replaced(*fabric_, 1, 10s));
  EXPECT_FALSE(bystander.echo(arena_));
  EXPECT_TRUE(peer().echo(arena_));
}

TEST_F(FabricWithPlacesTaken, FailsAChannelThatConnectsAfterwards) {
  Peer dying = peer();
  ASSERT_TRUE(dying.echo(arena_));
  Inbox inbox;
  const uint64_t opened = fabric_->open(key_of(2), {message_bytes_max}, inbox.events());
  take_places();
  dying.die();
  ASSERT_TRUE(replaced(*fabric_, 1, 4s));
  Completion connected;
  fabric_->connect(opened, fabric_->address(), opened, connected.callback());
  const auto error = connected.wait();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Code::link_lost);
}

/** Takes all file descriptors that there are, as long as it lives. */
class NoFileDescriptors {
 public:
  NoFileDescriptors() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &limit_), 0);
    const rlimit few{std::min<rlim_t>(limit_.rlim_cur, 1024), limit_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int more; (more = ::open("/dev/null", O_RDONLY)) >= 0;) all_.push_back(more);
  }
  ~NoFileDescriptors() {
    for (const int descriptor : all_) ::close(descriptor);
    setrlimit(RLIMIT_NOFILE, &limit_);
  }

 private:
  rlimit limit_{};
  std::vector<int> all_;
};

TEST_F(FabricWithPlacesTaken, WaitsForFileDescriptors) {
  Peer bystander = peer();
  Peer dying = peer();
  ASSERT_TRUE(dying.echo(arena_));
  take_places();
  {
    const NoFileDescriptors none;
    EXPECT_THROW(fabric_->address(Peers::clients), Error);
    dying.die();
    EXPECT_FALSE(replaced(*fabric_, 1, 1s));
  }
  EXPECT_TRUE(replaced(*fabric_, 1, 10s));
  EXPECT_TRUE(peer().echo(arena_));
}

/** No memory can be mapped, as long as it lives. */
class NoMemory {
 public:
  NoMemory() {
    EXPECT_EQ(getrlimit(RLIMIT_AS, &limit_), 0);
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    // Enough for what is small: UCX ends the process without it.
    const rlimit few{pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (1u << 20), limit_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_AS, &few), 0);
  }
  ~NoMemory() { setrlimit(RLIMIT_AS, &limit_); }

 private:
  rlimit limit_{};
};

TEST_F(FabricWithPlacesTaken, WaitsForMemory) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need memory of their own, and end the process without";
#endif
  Peer bystander = peer();
  Peer dying = peer();
  ASSERT_TRUE(dying.echo(arena_));
  take_places();
  {
    const NoMemory none;
    dying.die();
    std::this_thread::sleep_for(1s);
    EXPECT_FALSE(bystander.inbox.wait_failure(0ms));
  }
  EXPECT_TRUE(bystander.inbox.wait_failure(12s));
  EXPECT_TRUE(peer().echo(arena_));
}

}  // namespace
}  // namespace switchyard::ucx
