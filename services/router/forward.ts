import { asSwitchyardError, invalidArgument, SwitchyardError } from '../common/errors.js';
import { FairSlots } from '../common/fair-slots.js';
import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { Logger } from '../common/log.js';
import type { Trace } from '../common/trace.js';
import { modelLimits } from '../model/limits.js';
import type { TransportKind } from '../transport/link.js';
import { BatchAccount } from './account.js';
import { runBatch } from './batch.js';
import type { ByteBudget } from './budget.js';
import { ClientChannels } from './client-channels.js';
import { ClientStream, type ForwardStream } from './client-stream.js';
import { channelBytesMax, type RouterSettings } from './config.js';
import type { Control } from './control.js';
import { checkLinks } from './dispatch.js';
import type { Links } from './links.js';
import type { RouterMetrics } from './metrics.js';
import { type BatchPlan, planBatch } from './plan.js';
import type { RouterReporter } from './report.js';

export interface ForwardOptions {
  config: RouterSettings;
  router: string;
  control: Control;
  links: Links;
  budget: ByteBudget;
  reporter: RouterReporter;
  metrics: RouterMetrics;
  trace: Trace | null;
  log: Logger;
}

/** For the log. */
interface BatchDone {
  tokens: number;
  transport: TransportKind;
  lanes: string;
}

/** The Forward calls of a router: admits them, runs them, and says how each ended. */
export class ForwardService {
  /** Every call under way, and its end. */
  private readonly live = new Map<ClientStream, Promise<void>>();
  private readonly batchIds = new Set<string>();
  private readonly slots: FairSlots;
  private readonly channels: ClientChannels;
  private draining: SwitchyardError | null = null;

  constructor(private readonly options: ForwardOptions) {
    const { config, log } = options;
    this.slots = new FairSlots(config.batchesMax);
    this.channels = new ClientChannels({
      host: config.host,
      transport: config.transport,
      messageBytesMax: config.messageBytesMax,
      windowBytesMax: channelBytesMax(config),
      routingBytesMax: () => this.routingBytesMax(),
      batchesMax: config.batchesMax,
      log,
    });
  }

  get liveCount(): number {
    return this.live.size;
  }

  accept(call: ForwardStream): void {
    const stream = new ClientStream(call, this.options.config.clientStallMs);
    const { peer } = stream;
    const giveBack = this.draining === null ? this.slots.take(peer) : null;
    if (giveBack === null) {
      const refusal = this.draining ?? this.tooMany(peer);
      this.options.metrics.batches.inc({ outcome: refusal.code });
      stream.fail(refusal);
      return;
    }
    const run = this.run(stream).finally(() => {
      this.live.delete(stream);
      giveBack();
    });
    this.live.set(stream, run);
  }

  /** From now on calls are refused. Resolves when those under way have ended; call `abort` to make them. */
  async drain(reason: string): Promise<void> {
    this.draining ??= new SwitchyardError('DRAINING', `the router is stopping: ${reason}`, { reason });
    await Promise.all(this.live.values());
  }

  /** Ends every call under way. */
  abort(error: SwitchyardError): void {
    for (const stream of this.live.keys()) stream.abort(error);
  }

  /** Of one token; what any model may have as long as this one is not known. */
  private routingBytesMax(): number {
    const spec = this.options.control.weights?.spec;
    const [layers, topK] = spec
      ? [spec.layers.length, spec.routing.topK]
      : [modelLimits.layers, modelLimits.topK];
    return layers * topK * 8;
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
  private async run(stream: ClientStream): Promise<void> {
    const { metrics, log } = this.options;
    const started = performance.now();
    let plan: BatchPlan | null = null;
    try {
      const header = await this.receiveHeader(stream);
      await stream.welcome(header, this.channels);
      plan = await this.plan(header, stream);
      const done = await this.runPlan(plan, stream);
      stream.finish();
      metrics.batches.inc({ outcome: 'complete' });
      const seconds = (performance.now() - started) / 1000;
      log.info({ event: 'batch-complete', batch: plan.batchId, ...done, seconds });
    } catch (thrown) {
      const error = endedBy(stream.signal, asSwitchyardError(thrown));
      stream.fail(error);
      metrics.batches.inc({ outcome: error.code });
      const level = error.code === 'INTERNAL' ? 'error' : 'warn';
      log[level]({
        event: 'batch-failed',
        batch: plan?.batchId ?? '',
        client: stream.peer,
        code: error.code,
        reason: error.message,
        details: error.details,
        ...(error.code === 'INTERNAL' && { err: error }),
      });
    }
  }

  private async receiveHeader(stream: ClientStream): Promise<ForwardHeader> {
    const first = (await stream.next(() => false))?.request ?? null;
    if (!first?.header) {
      throw invalidArgument(
        'first message',
        first?.kind ?? (first === null ? 'half-close' : 'empty'),
        'a header',
      );
    }
    if (first.header.deadlineMs > 0) stream.limit(first.header.deadlineMs);
    return first.header;
  }

  /** The header is checked as soon as the model is known, which may be long before the cluster is ready. */
  private async plan(header: ForwardHeader, stream: ClientStream): Promise<BatchPlan> {
    const { config, control, budget, router } = this.options;
    const { spec } = await control.untilLoaded(config.readyWaitMs, stream.signal);
    return planBatch(header, {
      model: spec,
      feedback: control.feedback,
      chunkBytesMax: budget.shareBytesMax,
      chunkTokens: config.chunkTokens,
      messageBytesMax: config.messageBytesMax,
      node: `router ${router}`,
    });
  }

  /** Returns the tokens answered, and how they travelled. */
  private async runPlan(plan: BatchPlan, stream: ClientStream): Promise<BatchDone> {
    const { config, control, links, budget, reporter, metrics, trace, router } = this.options;
    const { batchId } = plan;
    if (this.batchIds.has(batchId)) {
      throw new SwitchyardError(
        'NAME_TAKEN',
        `batch_id is "${batchId}", which a batch under way at this router has; allowed: an id that is not in use, or none`,
        { field: 'batch_id', value: batchId },
      );
    }
    this.batchIds.add(batchId);
    try {
      await control.untilReady(config.readyWaitMs, stream.signal);
      checkLinks(plan, control.placement!, links);
      const account = new BatchAccount(plan);
      await runBatch({
        plan,
        stream,
        control,
        links,
        account,
        reporter,
        metrics,
        trace,
        share: budget.open(),
        messageLimit: { bytesMax: config.messageBytesMax, node: `router ${router}` },
        deadlineMs: stream.deadlineMs,
        signal: stream.signal,
        abort: (error) => stream.abort(error),
      });
      const way = await stream.transport();
      await stream.answersTaken();
      await stream.send({ summary: account.summary(router) });
      return { tokens: account.tokens, ...way };
    } finally {
      this.batchIds.delete(batchId);
    }
  }
}

/** What ended the batch: the first abort, unless the error is that abort and says more of it. */
function endedBy(signal: AbortSignal, error: SwitchyardError): SwitchyardError {
  if (!signal.aborted) return error;
  const reason = asSwitchyardError(signal.reason);
  return reason.code === error.code ? error : reason;
}
