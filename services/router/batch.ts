import { asSwitchyardError } from '../common/errors.js';
import type { MessageLimit } from '../common/grpc-channel.js';
import { onAbort } from '../common/lifecycle.js';
import { LiveSet } from '../common/live.js';
import type { BatchCall } from './batch-call.js';
import type { BudgetShare, Reservation } from './budget.js';
import { Ingest, type InputChunk } from './ingest.js';
import { type OutputChunk, type PipelineContext, runChunk } from './pipeline.js';
import { outputBytes, routingBytes } from './plan.js';
import { readRouting } from './routing-table.js';

export interface BatchContext extends PipelineContext {
  call: BatchCall;
  share: BudgetShare;
  messageLimit: MessageLimit;
}

/** However small its chunks are: more would only queue. */
const chunksInFlightMax = 64;

/**
 * Takes a batch's chunks through the pipeline as they come and its answers to the client as they are done.
 * Whatever happens, it settles after all that worked for the batch has ended, with everything released; it rejects with
 * the reason of the batch's signal.
 */
export async function runBatch(context: BatchContext): Promise<void> {
  const { plan, call, links, share, signal } = context;
  const tasks = new LiveSet<Promise<void>>();
  const forget = onAbort(signal, () => {
    for (const link of links.open()) link.cancel(plan.batchId);
  });
  const ingest = new Ingest({
    plan,
    source: call,
    share,
    messageLimit: context.messageLimit,
    runtime: context.runtime,
    busy: () => tasks.size > 0,
    signal,
  });
  try {
    for await (const chunk of ingest.chunks()) {
      const task = processChunk(chunk, context)
        .catch((error) => call.end.abort(asSwitchyardError(error)))
        .finally(() => {
          tasks.delete(task);
          if (tasks.size === 0) call.idle();
        });
      tasks.add(task);
      while (tasks.size >= chunksInFlightMax) await Promise.race(tasks.values());
    }
    await Promise.all(tasks.values());
    signal.throwIfAborted();
    await ingest.expectEnd();
  } catch (error) {
    call.end.abort(asSwitchyardError(error));
    throw signal.reason;
  } finally {
    await Promise.all(tasks.values());
    forget();
    share.close();
  }
}

async function processChunk(chunk: InputChunk, context: BatchContext): Promise<void> {
  const { account, metrics, reporter } = context;
  metrics.tokens.inc(chunk.tokens);
  reporter.countTokens(chunk.tokens);
  try {
    const output = await runChunk(chunk, context);
    try {
      await answer(output, chunk.reservation, context);
      account.tokens += chunk.tokens;
      account.nonFiniteOutputs += output.nonFinite;
      metrics.nonFiniteOutputs.inc(output.nonFinite);
    } finally {
      output.rows.release();
      output.routing?.release();
    }
  } finally {
    chunk.reservation.release();
  }
}

/** Sends a chunk's answers. What waits for the client is counted by `reservation` until it has left. */
async function answer(
  output: OutputChunk,
  reservation: Reservation,
  { plan, call, runtime }: BatchContext,
): Promise<void> {
  const tokensMax = call.answerTokensMax(plan.rowBytes, output.routing === null ? 0 : routingBytes(plan));
  for (let first = 0; first < output.tokens; first += tokensMax) {
    const tokens = Math.min(tokensMax, output.tokens - first);
    const routing = output.routing && (await readRouting(runtime.rows, output.routing, first, tokens, plan));
    const chunk = { offset: output.offset + first, ...routing };
    const byteOffset = first * plan.rowBytes;
    const rows = { slab: output.rows, byteOffset, byteLength: tokens * plan.rowBytes };
    // Beside the sums there are copies of them on their way, unless the sums themselves go out.
    const copies = call.answersInPlace(chunk, rows) ? 0 : 1;
    if (first === 0) reservation.shrink(outputBytes(plan, output.tokens) * (1 + copies));
    const held = reservation.split(outputBytes(plan, tokens));
    await call.answer(chunk, rows, held);
  }
}
