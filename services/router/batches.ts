import { batchIdPattern } from '../common/batch-id.js';
import { controlLimits } from '../common/control-limits.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import { FairSlots } from '../common/fair-slots.js';
import type { BatchProgressInput } from '../common/generated/switchyard/v1/BatchProgress.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { EndSignal } from '../common/lifecycle.js';
import { LiveMap } from '../common/live.js';
import type { Logger } from '../common/log.js';
import type { Trace } from '../common/trace.js';
import type { Runtime } from '../runtime/runtime.js';
import type { Span, Tracer } from '../runtime/tracer.js';
import { BatchAccount } from './account.js';
import { runBatch } from './batch.js';
import type { BatchCall, RowsWay } from './batch-call.js';
import type { ByteBudget } from './budget.js';
import type { RouterSettings } from './config.js';
import { Destinations } from './destinations.js';
import type { KnownCluster } from './known-cluster.js';
import type { Links } from './links.js';
import type { RouterMetrics } from './metrics.js';
import { type BatchPlan, planBatch } from './plan.js';
import type { RouterReporter } from './report.js';
import type { RowWork } from './row-work.js';
import { WorkerPaces } from './worker-paces.js';

export interface BatchesOptions {
  config: RouterSettings;
  router: string;
  cluster: KnownCluster;
  links: Links;
  budget: ByteBudget;
  reporter: RouterReporter;
  metrics: RouterMetrics;
  trace: Trace | null;
  tracer: Tracer | null;
  log: Logger;
  runtime: Runtime;
  work: RowWork;
}

/** For the log. */
type BatchDone = RowsWay & { tokens: number };

/** The batches of a router: admits them, whatever protocol they come by, runs them, and says how each ended. */
export class Batches {
  /** Every batch under way, and its end. */
  private readonly live = new LiveMap<number, { call: BatchCall; run: Promise<void> }>();
  private accepted = 0;
  /** By id of the batch, in the order of beginning. */
  private readonly running = new LiveMap<string, BatchAccount>();
  private readonly slots: FairSlots;
  private readonly destinations: Destinations;
  private readonly paces: WorkerPaces;
  private draining: SwitchyardError | null = null;

  constructor(private readonly options: BatchesOptions) {
    this.slots = new FairSlots(options.config.batchesMax);
    this.paces = new WorkerPaces(options.runtime.clock, options.config.leaseMs);
    this.destinations = new Destinations(options.links, this.paces);
  }

  get liveCount(): number {
    return this.live.size;
  }

  /** Those of the batches under way that began first. */
  oldest(): BatchProgressInput[] {
    return this.running
      .values()
      .slice(0, controlLimits.batchesToldMax)
      .map((account) => account.progress());
  }

  /** Takes the batch, or refuses it. */
  accept(call: BatchCall): void {
    const { peer } = call;
    const giveBack = this.draining === null ? this.slots.take(peer) : null;
    if (giveBack === null) {
      const refusal = this.draining ?? this.tooMany(peer);
      this.options.metrics.batches.inc({ outcome: refusal.code });
      call.fail(refusal);
      return;
    }
    const number = ++this.accepted;
    const run = this.run(call).finally(() => {
      this.live.delete(number);
      giveBack();
    });
    this.live.set(number, { call, run });
  }

  /** From now on batches are refused. Resolves when those under way have ended; call `abort` to make them. */
  async drain(reason: string): Promise<void> {
    const { router } = this.options;
    const text = `router ${router} is stopping: ${reason}`;
    this.draining ??= new SwitchyardError('DRAINING', text, { router, reason });
    await Promise.all(this.live.values().map(({ run }) => run));
  }

  /** Ends every batch under way. */
  abort(error: SwitchyardError): void {
    for (const { call } of this.live.values()) call.end.abort(error);
  }

  private tooMany(peer: string): SwitchyardError {
    const { max: batchesMax, free } = this.slots;
    const { router } = this.options;
    const own = this.slots.heldBy(peer);
    return new SwitchyardError(
      'RESOURCE_EXHAUSTED',
      `${batchesMax - free} batches are under way at router ${router}, ${own} of them of this connection; ` +
        `allowed: ${batchesMax}, as batchesMax has it, and one more for a connection that has fewer than are free`,
      {
        batches: batchesMax - free,
        ofConnection: own,
        free,
        allowed: batchesMax,
        setting: 'batchesMax',
        node: `router ${router}`,
      },
    );
  }

  /** Never rejects: how it ends is what the client gets. */
  private async run(call: BatchCall): Promise<void> {
    const { metrics, log, runtime } = this.options;
    const startedMs = runtime.clock.now();
    let plan: BatchPlan | null = null;
    let span: Span | null = null;
    try {
      const header = await call.header();
      plan = await this.plan(header, call);
      span = this.trace(plan, header.traceparent || call.traceparent);
      const done = await this.runPlan(plan, call, span);
      metrics.batches.inc({ outcome: 'complete' });
      const seconds = (runtime.clock.now() - startedMs) / 1000;
      metrics.batchSeconds.observe(seconds);
      span?.end();
      log[call.loggedAt]({
        event: 'batch-complete',
        batch: plan.batchId,
        ...done,
        seconds,
        ...traceOf(span),
      });
    } catch (thrown) {
      const error = endedBy(call.end.signal, asSwitchyardError(thrown));
      call.fail(error);
      span?.end(error);
      metrics.batches.inc({ outcome: error.code });
      const level = error.code === 'INTERNAL' ? 'error' : 'warn';
      log[level]({
        event: 'batch-failed',
        batch: plan?.batchId ?? asLogged(call.batchId),
        client: call.peer,
        code: error.code,
        reason: error.message,
        details: error.details,
        ...traceOf(span),
        ...(error.code === 'INTERNAL' && { err: error }),
      });
    }
  }

  /** The header is checked as soon as the model is known, which may be long before the cluster is ready. */
  private async plan(header: ForwardHeader, { end }: BatchCall): Promise<BatchPlan> {
    const { config, cluster, budget, router, runtime } = this.options;
    const { spec } = await cluster.untilLoaded(config.readyWaitMs, end.signal);
    return planBatch(header, {
      model: spec,
      feedback: cluster.feedback,
      chunkBytesMax: budget.shareBytesMax,
      chunkTokens: config.chunkTokens,
      messageBytesMax: config.messageBytesMax,
      node: `router ${router}`,
      random: runtime.random,
    });
  }

  private trace({ batchId: batch, tokens }: BatchPlan, traceparent: string): Span | null {
    const { tracer, router } = this.options;
    return tracer?.begin('batch', traceparent, { batch, tokens, router }) ?? null;
  }

  /** Returns the tokens answered, and how they travelled. */
  private async runPlan(plan: BatchPlan, call: BatchCall, span: Span | null): Promise<BatchDone> {
    const { config, cluster, links, budget, reporter, metrics, trace, router, runtime } = this.options;
    const { batchId } = plan;
    const { end } = call;
    if (this.running.has(batchId)) {
      throw new SwitchyardError(
        'NAME_TAKEN',
        `batch_id is "${batchId}", which a batch under way at this router has; allowed: an id that is not in use, or none`,
        { field: 'batch_id', value: batchId },
      );
    }
    const account = new BatchAccount(plan, runtime.clock);
    this.running.set(batchId, account);
    try {
      const layers = plan.layers.map(({ layer }) => layer);
      await cluster.untilReady(layers, config.readyWaitMs, end.signal);
      this.destinations.check(plan, cluster.placement!);
      await runBatch({
        plan,
        call,
        runtime,
        work: this.options.work,
        cluster,
        links,
        destinations: this.destinations,
        paces: this.paces,
        readyWaitMs: config.readyWaitMs,
        account,
        reporter,
        metrics,
        trace,
        span,
        share: budget.open(),
        messageLimit: { bytesMax: config.messageBytesMax, node: `router ${router}` },
        deadlineMs: end.deadlineMs,
        signal: end.signal,
        abort: (error) => end.abort(error),
      });
      const way = await call.way();
      await call.complete(account.summary(router));
      return { tokens: account.tokens, ...way };
    } finally {
      this.running.delete(batchId);
    }
  }
}

/** For the log: a batch that ended before its header was checked may be called anything, and the reason says what. */
function asLogged(batchId: string): string {
  return batchIdPattern.test(batchId) ? batchId : '';
}

/** For the log: the id of the trace, by which it is found. */
function traceOf(span: Span | null): { trace?: string } {
  return span === null ? {} : { trace: span.traceparent.split('-')[1]! };
}

/** What ended the batch: the first abort, unless the error is that abort and says more of it. */
function endedBy(signal: EndSignal, error: SwitchyardError): SwitchyardError {
  if (!signal.aborted) return error;
  const reason = asSwitchyardError(signal.reason);
  return reason.code === error.code ? error : reason;
}
