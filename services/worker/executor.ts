import type { ComputeTime, Expert, ExpertBackend, Slab } from '../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import { Deferred } from '../common/lifecycle.js';
import { LiveSet } from '../common/live.js';
import type { OwnWork } from '../common/liveness.js';
import type { Interval, Trace } from '../common/trace.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Tracer } from '../runtime/tracer.js';
import { resultMetadataBytes, rowsBytes } from '../transport/limits.js';
import type { TokenBatch, TokenBatchMeta, TokenBatchResult } from '../transport/link.js';
import type { ExecutorMetrics } from './metrics.js';
import { ExpertQueues, releaseIfDone } from './queues.js';
import {
  callOf,
  type ExpertQueue,
  type ExpertWork,
  type Piece,
  pieceByPiece,
  stillWanted,
  type Task,
} from './tasks.js';

export interface ExecutorOptions {
  backend: ExpertBackend;
  runtime: Runtime;
  worker: string;
  hidden: number;
  /** Rows of one call to the backend, at most. */
  maxRows: number;
  /** The model weighs the expert's input row, not its output. */
  weighsInput: boolean;
  metrics: ExecutorMetrics;
  trace?: Trace | null;
  tracer?: Tracer | null;
  /** The backend is of no use any more. */
  onDeviceLost: (error: SwitchyardError) => void;
}

/**
 * Computes token batches. Every expert has a queue of segments; a call to the backend takes what is queued for one
 * expert, up to `maxRows`, or for several if those have few rows, and while it runs the other queues fill. They are experts that
 * the token batch waiting longest needs, so that none is overtaken forever. Memory is bounded by the credits of the links: a token batch ends when
 * nothing is held of it, and holds what `creditCost` says at most.
 */
export class Executor implements OwnWork {
  readonly name = 'token batches';
  /** Calls to the backend that ended, and token batches. */
  done = 0;
  private readonly queues: ExpertQueues;
  private readonly tasks = new LiveSet<Task>();
  private calls = 0;
  /** Of the calls under way. */
  private callRows = 0;
  private heldBytes = 0;
  private idleWaiters: (() => void)[] = [];
  /** What the backend takes at once. */
  private readonly callsMax: number;
  private readonly callRowsMax: number;
  private closed: SwitchyardError | null = null;

  constructor(private readonly options: ExecutorOptions) {
    ({ calls: this.callsMax, rows: this.callRowsMax } = options.backend.description);
    const { worker, maxRows } = options;
    this.queues = new ExpertQueues(worker, maxRows, (task) => !this.isLate(task) && this.start(task));
  }

  /** Bytes of rows and results held. */
  get bytesHeld(): number {
    return this.heldBytes;
  }

  underWay(): string | null {
    const oldest = this.tasks.first;
    if (oldest === undefined) return null;
    const { batchId, layer } = oldest.batch.meta;
    return `${this.tasks.size} under way, the oldest of batch ${batchId}, layer ${layer}, from router ${oldest.router}`;
  }

  get idle(): boolean {
    return this.tasks.size === 0 && this.calls === 0;
  }

  /** Resolves when nothing is queued or computed. */
  async whenIdle(): Promise<void> {
    while (!this.idle) await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
  }

  /** Takes over the expert: it is released when it was removed and nothing is left for it. */
  add(layer: number, index: number, expert: Expert): void {
    this.queues.add(layer, index, expert);
  }

  /** Refuses new rows for an expert; those that are queued are computed. */
  remove(layer: number, index: number): void {
    this.queues.remove(layer, index);
  }

  /** The experts here. */
  experts(): Iterable<ExpertQueue> {
    return this.queues.all();
  }

  /** Rows that wait for experts. */
  get rowsQueued(): number {
    let rows = 0;
    for (const queue of this.experts()) rows += queue.rows;
    return rows;
  }

  /**
   * Takes over `batch.rows`. Resolves when all segments are computed; rejects with EXPERT_NOT_HERE, INVALID_ARGUMENT,
   * CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, DRAINING or what the backend throws. Other token batches are unharmed.
   */
  submit(batch: TokenBatch, router: string): Promise<TokenBatchResult> {
    const task: Task = {
      batch,
      router,
      answer: new Deferred(),
      arrivedMs: this.now(),
      startedMs: 0,
      output: null,
      waiting: new Set(),
      rowsLeft: batch.meta.rowIndices.length,
      computeSeconds: 0,
      operations: 0,
      failure: null,
    };
    this.tasks.add(task);
    this.heldBytes += batch.rows.byteLength;
    try {
      if (this.closed !== null) throw this.closed;
      this.check(batch.meta);
      this.queues.enqueue(task);
      this.pump();
    } catch (error) {
      this.fail(task, error);
    }
    return task.answer.promise;
  }

  /** Drops what is queued of a batch of a router; what is being computed of it comes to nothing, and ends first. */
  cancel(batchId: string, router: string): void {
    for (const task of this.tasks.values()) {
      if (task.router !== router || task.batch.meta.batchId !== batchId) continue;
      this.fail(task, new SwitchyardError('CANCELLED', `batch ${batchId} was cancelled`));
    }
  }

  /** Gives up what is queued, and takes nothing more. Calls that the backend has begun end by themselves. */
  close(): void {
    this.closed = new SwitchyardError('DRAINING', `worker ${this.options.worker} is stopping`);
    for (const task of this.tasks.values()) this.fail(task, this.closed);
  }

  private now(): number {
    return this.options.runtime.clock.now();
  }

  /** What the transport cannot know: it has checked the rest. */
  private check({ weights, rowIndices }: TokenBatchMeta): void {
    if (this.options.weighsInput && weights === null)
      throw invalidArgument(
        'weights',
        'missing',
        `${rowIndices.length}, for this model weighs the experts' input`,
      );
  }

  /** Gives the backend calls, as long as it takes them and there are rows: so many, or more if they are small. */
  private pump(): void {
    while (this.calls < this.callsMax || this.callRows < this.callRowsMax) {
      const call = this.queues.nextCall();
      if (call === null) break;
      void this.run(call);
    }
  }

  private isLate(task: Task): boolean {
    const { deadlineMs, batchId } = task.batch.meta;
    const lateMs = Math.ceil(this.now() - deadlineMs);
    if (lateMs <= 0) return false;
    const text = `the deadline of batch ${batchId} passed ${lateMs} ms ago, in the queue`;
    this.fail(task, new SwitchyardError('DEADLINE_EXCEEDED', text));
    return true;
  }

  /** False if there is no memory for the task's results; it has then failed. */
  private start(task: Task): boolean {
    if (task.output !== null) return true;
    try {
      task.output = this.options.runtime.rows.allocateSlab(
        rowsBytes(task.rowsLeft, this.options.hidden),
        resultMetadataBytes,
      );
    } catch (error) {
      this.fail(task, error);
      return false;
    }
    this.heldBytes += task.output.byteLength;
    task.startedMs = this.now();
    this.options.metrics.queueSeconds.observe((task.startedMs - task.arrivedMs) / 1000);
    return true;
  }

  private async run(call: readonly ExpertWork[]): Promise<void> {
    const rows = call.flatMap(({ pieces }) => pieces).reduce((sum, { count }) => sum + count, 0);
    this.calls += 1;
    this.callRows += rows;
    for (const { queue } of call) queue.calls += 1;
    await this.compute(call);
    this.calls -= 1;
    this.callRows -= rows;
    this.done += 1;
    for (const { queue } of call) {
      queue.calls -= 1;
      releaseIfDone(queue);
    }
    this.pump();
    this.tellIfIdle();
  }

  /** A call that fails is repeated piece by piece, so that only the token batch at fault fails. */
  private async compute(call: readonly ExpertWork[]): Promise<void> {
    const alive = stillWanted(call);
    if (alive.length === 0) return;
    try {
      const times = await this.forward(alive);
      for (const [index, work] of alive.entries()) this.completed(work, times[index]!);
    } catch (error) {
      const single = pieceByPiece(alive);
      const lost = asSwitchyardError(error);
      if (lost.code === 'DEVICE_LOST') {
        for (const { pieces } of alive) for (const { task } of pieces) this.fail(task, lost);
        this.options.onDeviceLost(lost);
      } else if (single.length === 1) this.fail(alive[0]!.pieces[0]!.task, error);
      else for (const work of single) await this.compute([work]);
    }
  }

  private async forward(call: readonly ExpertWork[]): Promise<ComputeTime[]> {
    const { weighsInput } = this.options;
    const calls = call.map((work) => callOf(work, weighsInput));
    for (const { pieces } of call) for (const { task } of pieces) task.operations += 1;
    try {
      return await this.options.backend.forward(calls);
    } finally {
      for (const { pieces } of call) for (const { task } of pieces) this.operationEnded(task);
    }
  }

  private completed({ queue, pieces }: ExpertWork, { startedMicroseconds, seconds }: ComputeTime): void {
    const rows = pieces.reduce((sum, piece) => sum + piece.count, 0);
    const interval = { start: startedMicroseconds, end: startedMicroseconds + seconds * 1e6 };
    const place = { layer: queue.layer, expert: queue.index };
    this.options.trace?.span('compute', `expert ${queue.index}`, interval, {
      ...place,
      rows,
      parts: pieces.length,
    });
    const { tracer } = this.options;
    if (tracer) this.addSpans(tracer, pieces, interval, place);
    queue.rowsComputed += rows;
    queue.computeSeconds += seconds;
    this.options.metrics.computed(queue.layer, rows, seconds);
    for (const { task, count } of pieces) {
      if (task.failure !== null) continue;
      task.computeSeconds += (seconds * count) / rows;
      task.rowsLeft -= count;
      if (task.rowsLeft === 0) void this.finish(task);
    }
  }

  /** A call computes rows of several token batches: each that is traced has a span of it. */
  private addSpans(
    tracer: Tracer,
    pieces: readonly Piece[],
    interval: Interval,
    place: { layer: number; expert: number },
  ): void {
    for (const { task, count } of pieces) {
      const { traceparent } = task.batch.meta;
      if (traceparent !== '') tracer.add('compute', traceparent, interval, { ...place, rows: count });
    }
  }

  private async finish(task: Task): Promise<void> {
    const { meta } = task.batch;
    const { computeSeconds } = task;
    // All its waiting, between segments too: what is left of an exchange is then transport.
    const queueSeconds = Math.max(0, (this.now() - task.arrivedMs) / 1000 - computeSeconds);
    if (meta.combine === 'exact') {
      const rows = task.output!;
      // From here on it is the answer's.
      task.output = null;
      this.heldBytes -= rows.byteLength;
      this.end(task);
      task.answer.resolve({ rows, rowCount: meta.rowIndices.length, computeSeconds, queueSeconds });
      return;
    }
    let sums: Slab;
    try {
      sums = await this.reduce(task);
    } catch (error) {
      this.fail(task, error);
      return;
    }
    if (task.failure !== null) {
      sums.release();
      return;
    }
    this.end(task);
    task.answer.resolve({ rows: sums, rowCount: meta.rowCount, computeSeconds, queueSeconds });
  }

  /** The weighted sums of a task's results, one for each of its rows. */
  private async reduce(task: Task): Promise<Slab> {
    const { hidden, rowIndices, weights, rowCount } = task.batch.meta;
    task.operations += 1;
    try {
      return await this.options.runtime.rows.reduceRows({
        rows: task.output!,
        hidden,
        rowIndices,
        weights: weights!,
        outputRows: rowCount,
      });
    } finally {
      this.operationEnded(task);
    }
  }

  /** Ends a task without an answer, as soon as no operation uses its memory; what those yield is dropped. */
  private fail(task: Task, error: unknown): void {
    if (task.failure !== null) return;
    task.failure = asSwitchyardError(error);
    this.queues.withdraw(task);
    this.rejectIfFree(task);
  }

  private operationEnded(task: Task): void {
    task.operations -= 1;
    this.rejectIfFree(task);
  }

  private rejectIfFree(task: Task): void {
    if (task.failure === null || task.operations > 0) return;
    this.end(task);
    task.answer.reject(task.failure);
  }

  /** Gives up what is held of a task. */
  private end(task: Task): void {
    this.tasks.delete(task);
    for (const slab of [task.batch.rows, task.output]) {
      if (slab === null) continue;
      this.heldBytes -= slab.byteLength;
      slab.release();
    }
    task.output = null;
    this.tellIfIdle();
  }

  private tellIfIdle(): void {
    if (!this.idle) return;
    const waiters = this.idleWaiters;
    this.idleWaiters = [];
    for (const resolve of waiters) resolve();
  }
}
