// A peer that knows UCX and the wire, and says what it likes, over TCP sockets. What it must not do is refused and counted;
// it harms no other channel and takes no memory.
#include <stdlib.h>
#include <ucp/api/ucp.h>

#include <future>
#include <random>
#include <thread>

#include "ucx/wire.h"
#include "ucx_support.h"

namespace switchyard::ucx {
namespace {

constexpr size_t limit = 100'000;

/** UCX reads the environment when its first context is made. */
class OverTcp : public testing::Environment {
  void SetUp() override {
    setenv("UCX_TLS", "tcp", 1);
    setenv("UCX_NET_DEVICES", "lo", 1);
  }
};
const auto* const over_tcp = testing::AddGlobalTestEnvironment(new OverTcp);

/** Sends active messages as they are. */
class Stranger {
 public:
  explicit Stranger(Fabric& to) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES;
    params.features = UCP_FEATURE_AM;
    check(ucp_init(&params, nullptr, &context_));
    ucp_worker_params_t worker{};
    check(ucp_worker_create(context_, &worker, &worker_));
    ucp_ep_params_t endpoint{};
    endpoint.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    const std::vector<uint8_t> address = to.address();
    endpoint.address = reinterpret_cast<const ucp_address_t*>(address.data());
    endpoint.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    check(ucp_ep_create(worker_, &endpoint, &endpoint_));
  }
  ~Stranger() {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    finish(ucp_ep_close_nbx(endpoint_, &param));
    ucp_worker_destroy(worker_);
    ucp_cleanup(context_);
  }

  void send(const void* header, size_t header_length, const std::vector<uint8_t>& data, unsigned id = message_id) {
    ucp_request_param_t param{};
    finish(ucp_am_send_nbx(endpoint_, id, header, header_length, data.data(), data.size(), &param));
    finish(ucp_ep_flush_nbx(endpoint_, &param));
  }
  void send(const WireHeader& header, const std::vector<uint8_t>& data) { send(&header, sizeof(header), data); }

 private:
  static void check(ucs_status_t status) { ASSERT_EQ(status, UCS_OK) << ucs_status_string(status); }

  void finish(ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) return;
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    while (ucp_request_check_status(request) == UCS_INPROGRESS && std::chrono::steady_clock::now() < deadline) {
      ucp_worker_progress(worker_);
    }
    ucp_request_free(request);
  }

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
};

/** A fabric with the channel that is attacked, and one that must not notice. */
struct Target {
  SlabArena arena{1u << 30};
  Inbox inbox, bystander_inbox, friend_inbox;
  TestFabric fabric{arena}, friendly{arena};
  uint64_t channel = fabric.open(key_of(1), {limit, 1 << 20}, inbox.events());
  uint64_t bystander = fabric.open(key_of(2), {limit}, bystander_inbox.events());
  uint64_t from_friend = friendly.open(key_of(2), {limit}, friend_inbox.events());
  Stranger stranger{fabric};

  Target() {
    Completion connected;
    friendly.connect(from_friend, fabric.address(), bystander, connected.callback());
    EXPECT_FALSE(connected.wait());
  }

  WireHeader header(size_t rows, size_t metadata) const {
    WireHeader header;
    header.channel = channel;
    header.row_bytes = rows;
    header.meta_bytes = metadata;
    header.key = key_of(1);
    return header;
  }

  void expect_refused(uint64_t count) {
    for (int i = 0; i < 500 && fabric.stats().messages_refused < count; ++i) std::this_thread::sleep_for(10ms);
    EXPECT_EQ(fabric.stats().messages_refused, count);
  }

  /** Nothing of what the stranger said was taken for a message, no memory is held, and others are served. */
  void expect_unharmed() {
    EXPECT_FALSE(inbox.wait_messages(1, 20ms));
    Completion sent;
    friendly.send(from_friend, message_of(arena, 50'000, 10, 3), sent.callback());
    EXPECT_FALSE(sent.wait());
    ASSERT_TRUE(bystander_inbox.wait_messages(1));
    expect_content(bystander_inbox.take().at(0), 50'000, 10, 3);
    EXPECT_FALSE(bystander_inbox.wait_failure(1ms));
    EXPECT_EQ(arena.stats().slabs, 0u);
  }
};

TEST(UcxHostile, HonestMessageOfTheStrangerArrivesSoWhatFollowsIsRefusedForWhatItSays) {
  Target target;
  target.stranger.send(target.header(90, 10), std::vector<uint8_t>(100, 7));
  ASSERT_TRUE(target.inbox.wait_messages(1));
  EXPECT_EQ(target.inbox.take().at(0).row_bytes, 90u);
  EXPECT_EQ(target.fabric.stats().messages_refused, 0u);
  target.expect_unharmed();
}

TEST(UcxHostile, AMessageMayComeAsSoonAsItsChannelIsOpen) {
  Target target;
  for (int i = 0; i < 300; ++i) {
    Inbox inbox;
    WireHeader header = target.header(90, 10);
    header.key = key_of(9);
    header.channel = target.fabric.open(header.key, {limit, 1 << 20}, inbox.events());
    target.stranger.send(header, std::vector<uint8_t>(100, 7));
    ASSERT_TRUE(inbox.wait_messages(1, 2s)) << i;
    std::promise<void> closed;
    target.fabric.close(header.channel, [&] { closed.set_value(); });
    ASSERT_EQ(closed.get_future().wait_for(5s), std::future_status::ready);
  }
  EXPECT_EQ(target.fabric.stats().messages_refused, 0u);
  target.expect_unharmed();
}

TEST(UcxHostile, MessagesForNobodyAreRefusedAndTheChannelDoesNotNotice) {
  Target target;
  const std::vector<uint8_t> data(100, 7);
  auto header = target.header(90, 10);
  header.magic ^= 1;
  target.stranger.send(header, data);
  header = target.header(90, 10);
  header.key[15] ^= 1;
  target.stranger.send(header, data);
  // Long enough that UCX would fetch the data only when asked to.
  target.stranger.send(header, std::vector<uint8_t>(4 << 20));
  header = target.header(90, 10);
  header.channel = 99'999;
  target.stranger.send(header, data);
  target.expect_refused(4);
  EXPECT_FALSE(target.inbox.wait_failure(20ms));
  target.expect_unharmed();
}

TEST(UcxHostile, HeadersOfAnotherLengthAreRefused) {
  Target target;
  const auto good = target.header(90, 10);
  std::vector<uint8_t> bytes(4096, 0);
  std::memcpy(bytes.data(), &good, sizeof(good));
  uint64_t count = 0;
  for (const size_t length : {size_t{0}, size_t{1}, sizeof(good) - 1, sizeof(good) + 1, size_t{100}, bytes.size()}) {
    target.stranger.send(bytes.data(), length, std::vector<uint8_t>(100, 7));
    target.expect_refused(++count);
  }
  EXPECT_FALSE(target.inbox.wait_failure(20ms));
  target.expect_unharmed();
}

TEST(UcxHostile, MessagesOfAnotherIdNeverArrive) {
  Target target;
  const auto header = target.header(90, 10);
  for (const unsigned id : {1u, 2u, 3u, 100u, 1000u}) {
    target.stranger.send(&header, sizeof(header), std::vector<uint8_t>(100, 7), id);
  }
  EXPECT_FALSE(target.inbox.wait_failure(20ms));
  target.expect_unharmed();
}

class SizesThatDiffer : public testing::TestWithParam<std::tuple<uint64_t, uint64_t, size_t>> {};

TEST_P(SizesThatDiffer, FailTheChannelAndTakeNoMemory) {
  Target target;
  const auto [rows, metadata, sent] = GetParam();
  target.stranger.send(target.header(rows, metadata), std::vector<uint8_t>(sent));
  const auto failure = target.inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::invalid_argument);
  EXPECT_NE(std::string(failure->what()).find("allowed: their sum, at most 100000"), std::string::npos)
      << failure->what();
  target.expect_refused(1);
  // The channel has failed, so an honest message is refused too.
  target.stranger.send(target.header(90, 10), std::vector<uint8_t>(100));
  target.expect_refused(2);
  target.expect_unharmed();
}

INSTANTIATE_TEST_SUITE_P(UcxHostile, SizesThatDiffer,
                         testing::Values(std::tuple{90, 9, 100}, std::tuple{91, 10, 100}, std::tuple{0, 0, 0},
                                         std::tuple{0, 0, 100}, std::tuple{~uint64_t{0}, 101, 100},
                                         std::tuple{uint64_t{1} << 63, uint64_t{1} << 63, 0},
                                         std::tuple{limit, 1, limit + 1}, std::tuple{4 << 20, 0, 4 << 20}));

TEST(UcxHostile, AMessageForAClosedChannelIsRefused) {
  Target target;
  std::promise<void> closed;
  target.fabric.close(target.channel, [&] { closed.set_value(); });
  ASSERT_EQ(closed.get_future().wait_for(5s), std::future_status::ready);
  target.stranger.send(target.header(90, 10), std::vector<uint8_t>(100));
  target.expect_refused(1);
  target.expect_unharmed();
}

TEST(UcxHostile, ANumberThatComesTwiceFailsTheChannel) {
  Target target;
  for (int i = 0; i < 2; ++i) target.stranger.send(target.header(90, 10), std::vector<uint8_t>(100));
  const auto failure = target.inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_NE(std::string(failure->what()).find("came twice"), std::string::npos) << failure->what();
  EXPECT_EQ(target.inbox.take().size(), 1u);
  target.expect_unharmed();
}

TEST(UcxHostile, WhatWaitsForANumberThatNeverComesIsBoundedAndGivenBack) {
  Target target;
  for (uint64_t i = 1; i <= 5000 && !target.inbox.wait_failure(0ms); ++i) {
    auto header = target.header(9, 1);
    header.sequence = i;
    target.stranger.send(header, std::vector<uint8_t>(10));
  }
  const auto failure = target.inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::data_loss);
  target.fabric.close(target.channel, [] {});
  for (int i = 0; i < 500 && target.arena.stats().slabs > 0; ++i) std::this_thread::sleep_for(10ms);
  target.expect_unharmed();
}

/** Everything but messages: kind, bytes of data. */
class ControlMessages : public testing::TestWithParam<std::tuple<uint32_t, size_t>> {};

TEST_P(ControlMessages, MalformedOrUnaskedFailTheChannel) {
  Target target;
  auto header = target.header(0, 0);
  header.kind = static_cast<Kind>(std::get<0>(GetParam()));
  header.row_bytes = 50'000;
  target.stranger.send(header, std::vector<uint8_t>(std::get<1>(GetParam()), 0xff));
  const auto failure = target.inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::invalid_argument);
  EXPECT_NE(std::string(failure->what()).find("broke the protocol"), std::string::npos) << failure->what();
  target.expect_refused(1);
  target.expect_unharmed();
}

// An unknown kind, and each kind that carries data with less or more of it than it has; may_offer and offer with the right
// amount, but to a side that asked for neither; a place that is none; and what is said on streams alone.
INSTANTIATE_TEST_SUITE_P(UcxHostile, ControlMessages,
                         testing::Values(std::tuple{0u, 0}, std::tuple{99u, 8}, std::tuple{2u, 15}, std::tuple{2u, 0},
                                         std::tuple{3u, 17}, std::tuple{3u, 0}, std::tuple{4u, 0}, std::tuple{5u, 7},
                                         std::tuple{5u, 8}, std::tuple{8u, 27}, std::tuple{8u, 28}, std::tuple{9u, 0},
                                         std::tuple{10u, 0}));

TEST(UcxHostile, ATakenMessageThatWasNeverOfferedIsIgnored) {
  Target target;
  auto header = target.header(0, 0);
  header.kind = Kind::taken;
  header.sequence = 12345;
  target.stranger.send(header, {});
  target.stranger.send(target.header(90, 10), std::vector<uint8_t>(100));
  ASSERT_TRUE(target.inbox.wait_messages(1));
  target.inbox.take();
  EXPECT_FALSE(target.inbox.wait_failure(1ms));
  target.expect_unharmed();
}

TEST(UcxHostile, RandomHeadersWithTheRightKeyHarmNobody) {
  Target target;
  std::mt19937_64 random(20240501);
  for (int i = 0; i < 500; ++i) {
    Inbox inbox;
    const uint64_t channel = target.fabric.open(key_of(1), {limit}, inbox.events());
    WireHeader header;
    auto* bytes = reinterpret_cast<uint8_t*>(&header);
    for (size_t at = sizeof(header.magic); at < sizeof(header); ++at) bytes[at] = static_cast<uint8_t>(random());
    header.kind = static_cast<Kind>(random() % 12);
    header.channel = channel;
    header.key = key_of(1);
    if (random() % 2) header.row_bytes %= 2 * limit;
    if (random() % 2) header.meta_bytes %= 2 * limit;
    target.stranger.send(header, std::vector<uint8_t>(random() % 40, 0xee));
    std::promise<void> closed;
    target.fabric.close(channel, [&] { closed.set_value(); });
    ASSERT_EQ(closed.get_future().wait_for(5s), std::future_status::ready) << "message " << i;
  }
  target.expect_unharmed();
}

}  // namespace
}  // namespace switchyard::ucx
