#include "experts/cuda/calls.h"

#include <algorithm>
#include <utility>

namespace switchyard::cuda {
namespace {

void end_rows(Call& call, size_t rows, const ComputeTime& time, const std::exception_ptr& error) {
  if (call.time.seconds == 0) call.time.started = time.started;
  call.time.seconds += time.seconds;
  if (error && !call.error) call.error = error;
  call.rows_left -= rows;
  if (call.rows_left == 0) call.done(call.time, call.error);
}

/** A gated expert has one matrix more than another of its sizes. */
bool same_shape(const Expert& a, const Expert& b) { return a.hidden() == b.hidden() && a.ffn() == b.ffn() && a.bytes() == b.bytes(); }

}  // namespace

bool CallQueue::push(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) {
  size_t rows = 0;
  for (const ExpertInput& input : inputs) rows += input.indices.size();
  if (rows == 0) return false;
  const auto call = std::make_shared<Call>(
      Call{.expert = &expert, .inputs = std::move(inputs), .done = std::move(done), .rows_left = rows, .time = {}, .error = nullptr});
  for (size_t input = 0; input < call->inputs.size(); ++input) {
    const size_t count = call->inputs[input].indices.size();
    if (count > 0) waiting_.push_back({call, input, 0, count});
  }
  return true;
}

std::vector<Piece> CallQueue::take() {
  std::vector<Piece> batch;
  size_t room = batch_rows_max_;
  while (!waiting_.empty() && room > 0) {
    Piece& oldest = waiting_.front();
    const bool fits = oldest.count <= room;
    // A piece that would fit into a batch of its own waits for it: cut pieces cost a batch more.
    if (!batch.empty() && (!same_shape(*batch.front().call->expert, *oldest.call->expert) ||
                           (!fits && oldest.count <= batch_rows_max_))) {
      break;
    }
    const size_t count = std::min(oldest.count, room);
    batch.push_back({oldest.call, oldest.input, oldest.first, count});
    room -= count;
    oldest.first += count;
    oldest.count -= count;
    if (oldest.count == 0) waiting_.pop_front();
  }
  return batch;
}

void CallQueue::fail(std::exception_ptr error) {
  for (const Piece& piece : std::exchange(waiting_, {})) end_rows(*piece.call, piece.count, {}, error);
}

void CallQueue::end(std::span<const Piece> pieces, const ComputeTime& time, std::exception_ptr error) {
  size_t rows = 0;
  for (const Piece& piece : pieces) rows += piece.count;
  for (const Piece& piece : pieces) {
    const double share = static_cast<double>(piece.count) / static_cast<double>(rows);
    end_rows(*piece.call, piece.count, {time.started, time.seconds * share}, error);
  }
}

}  // namespace switchyard::cuda
