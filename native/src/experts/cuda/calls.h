#pragma once

#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "experts/backend.h"

namespace switchyard::cuda {

/** One submitted call on its way through batches. */
struct Call {
  const Expert* expert;
  std::vector<ExpertInput> inputs;
  ForwardDone done;
  /** Rows that have not ended. */
  size_t rows_left;
  ComputeTime time;
  std::exception_ptr error;
};

/** Rows of one input of a call that one batch computes: entries `first` to `first + count - 1` of its indices. */
struct Piece {
  std::shared_ptr<Call> call;
  size_t input;
  size_t first;
  size_t count;

  const ExpertInput& source() const { return call->inputs[input]; }
};

/**
 * Calls in the order of submission, and batches cut from them: a batch takes whole calls as long as they fit, and a
 * call that is larger than a batch is spread over several. Not thread-safe.
 */
class CallQueue {
 public:
  explicit CallQueue(size_t batch_rows_max) : batch_rows_max_(batch_rows_max) {}

  /** False, and nothing queued, for a call with no rows: it is done. */
  bool push(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done);
  bool empty() const { return waiting_.empty(); }

  /** The oldest rows, at most `batch_rows_max`, of experts of one shape. Empty only if the queue is. */
  std::vector<Piece> take();
  /** Ends everything that waits, with an error. Calls that are partly in batches end with the last of these. */
  void fail(std::exception_ptr error);

  /** Ends the rows of a batch. Its seconds are shared out by rows. Calls whose last rows these were are done. */
  static void end(std::span<const Piece> pieces, const ComputeTime& time, std::exception_ptr error);

 private:
  size_t batch_rows_max_;
  std::deque<Piece> waiting_;
};

}  // namespace switchyard::cuda
