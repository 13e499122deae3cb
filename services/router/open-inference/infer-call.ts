import type { Addon, SlabRange } from '../../../native/index.js';
import { invalidArgument, type SwitchyardError } from '../../common/errors.js';
import type { ModelInferRequest } from '../../common/generated/inference/ModelInferRequest.js';
import type { ModelInferResponseInput } from '../../common/generated/inference/ModelInferResponse.js';
import type { ChunkInput } from '../../common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeader } from '../../common/generated/switchyard/v1/ForwardHeader.js';
import { Deferred, type EndSignal } from '../../common/lifecycle.js';
import type { MessageShare } from '../../common/message-gate.js';
import { narrowInt64, packUint32 } from '../../common/packed.js';
import type { ModelSpec } from '../../model/spec.js';
import { systemClock } from '../../runtime/system.js';
import { usualChunkTokens } from '../../transport/chunk-size.js';
import type { BatchCall, RowsWay } from '../batch-call.js';
import { BatchEnd } from '../batch-end.js';
import type { Reservation } from '../budget.js';
import type { ClientMessage } from '../check-chunk.js';
import { modelVersion } from './models.js';
import { messageBytes, Outputs } from './outputs.js';
import type { SharedRegions } from './regions.js';
import { type InferencePlan, planInference } from './request.js';
import type { RequestSeconds, Statistics } from './statistics.js';
import { elementBytes, partOf, type TensorMemory } from './tensors.js';

export interface InferCallOptions {
  request: ModelInferRequest;
  peer: string;
  /** Of its call. */
  traceparent: string;
  native: Pick<Addon, 'narrowRows' | 'widenRows' | 'readSegment' | 'writeSegment'>;
  /** The model of the cluster, as soon as it is known here. */
  model: (signal: EndSignal) => Promise<ModelSpec>;
  regions: SharedRegions;
  statistics: Statistics;
  /** Of answers that have not left. */
  room: MessageShare;
  messageBytesMax: number;
  /** Called when the request's own memory is needed no longer. */
  taken: () => void;
}

/** What a request ended with, and what gives the memory of the answer back. */
export type InferOutcome = ({ response: ModelInferResponseInput } | { error: SwitchyardError }) & {
  done: () => void;
};

const noBytes = Buffer.alloc(0);

/** A request of the Open Inference Protocol as a batch: it came whole, in its message or in shared memory, and is answered whole. */
export class InferCall implements BatchCall {
  /** The router names it. */
  readonly batchId = '';
  readonly routingNames = { experts: 'topk_ids', weights: 'topk_weights', signed: true };
  readonly end = new BatchEnd(systemClock);
  /** One among many. */
  readonly loggedAt = 'debug';
  readonly outcome: Promise<InferOutcome>;
  /** Settles when the request has its room, or has failed: the next one of its stream may follow. */
  readonly admitted: Promise<void>;
  private readonly settled = new Deferred<InferOutcome>();
  private readonly admission = new Deferred<void>();
  private readonly held: (() => void)[] = [];
  private readonly arrivedMs = systemClock.now();
  private readonly seconds: RequestSeconds = { total: 0, queue: 0, input: 0, infer: 0, output: 0 };
  private plan: InferencePlan | null = null;
  private outputs: Outputs | null = null;
  private answerRoom: { release(): void } | null = null;
  /** Tokens that `next` gave. */
  private given = 0;

  constructor(private readonly options: InferCallOptions) {
    this.outcome = this.settled.promise;
    this.admitted = this.admission.promise;
  }

  get peer(): string {
    return this.options.peer;
  }

  get traceparent(): string {
    return this.options.traceparent;
  }

  async header(): Promise<ForwardHeader> {
    const { request, peer, regions, room } = this.options;
    const model = await this.options.model(this.end.signal);
    const plan = planInference(request, { model, regions, peer, held: this.held });
    if (plan.deadlineMs > 0) this.end.limit(plan.deadlineMs);
    this.plan = plan;
    const bytes = messageBytes(plan.outputs);
    if (bytes > 0) this.answerRoom = await room.reserve(bytes, this.end.signal);
    this.outputs = new Outputs(plan.outputs, plan.tokens, this.options.native);
    this.admission.resolve();
    return headerOf(plan);
  }

  /** A piece of the rows as large as a chunk of the pipeline. */
  async next(): Promise<ClientMessage | null> {
    this.end.signal.throwIfAborted();
    const plan = this.plan!;
    if (this.given === 0) this.seconds.queue = this.secondsSinceArrival();
    const offset = this.given;
    if (offset === plan.tokens) return null;
    const tokens = Math.min(this.pieceTokens(plan), plan.tokens - offset);
    this.given += tokens;
    const last = this.given === plan.tokens;
    const routingOf = (memory: TensorMemory) =>
      this.bytesOf(memory, offset * plan.routingBytes, tokens * plan.routingBytes);
    const experts = plan.routing === null ? noBytes : await routingOf(plan.routing.ids);
    const weights = plan.routing === null ? noBytes : await routingOf(plan.routing.weights);
    const tokenIds = plan.tokenIds === null ? noBytes : await this.idsOf(plan.tokenIds, offset, tokens);
    const { dtype, memory } = plan.rows;
    const stored = elementBytes(dtype);
    const elements = offset * plan.hidden;
    return {
      request: { kind: 'chunk', chunk: { offset, experts, weights, tokenIds, rows: noBytes } },
      rows: {
        kind: 'stored',
        byteLength: tokens * plan.hidden * 2,
        readInto: (byteOffset, byteLength, target, targetOffset) => {
          const source = partOf(memory, (elements + byteOffset / 2) * stored, (byteLength / 2) * stored);
          return this.timed('input', this.options.native.narrowRows(source, dtype, target, targetOffset));
        },
      },
      taken: () => {
        if (last) this.options.taken();
      },
    };
  }

  idle(): void {}

  /** They go where they belong, however many there are. */
  answerTokensMax(): number {
    return Number.POSITIVE_INFINITY;
  }

  answersInPlace(): boolean {
    return true;
  }

  async answer(chunk: ChunkInput, rows: SlabRange, held: Reservation): Promise<void> {
    const part = {
      offset: Number(chunk.offset),
      rows,
      ids: (chunk.experts as Uint8Array | undefined) ?? noBytes,
      weights: (chunk.weights as Uint8Array | undefined) ?? noBytes,
    };
    try {
      await this.timed('output', this.outputs!.write(part));
    } finally {
      held.release();
    }
  }

  async way(): Promise<RowsWay> {
    return { transport: 'grpc', lanes: 'http2' };
  }

  async complete(): Promise<void> {
    this.end.signal.throwIfAborted();
    this.end.clear();
    const { request, statistics } = this.options;
    const response = {
      modelName: request.modelName,
      modelVersion,
      id: request.id,
      ...this.outputs!.describe(),
    };
    const { seconds } = this;
    seconds.total = this.secondsSinceArrival();
    seconds.infer = Math.max(0, seconds.total - seconds.queue - seconds.input - seconds.output);
    statistics.succeeded(this.plan!.model.name, seconds, Date.now());
    this.release();
    this.settled.resolve({ response, done: () => this.answerRoom?.release() });
  }

  fail(error: SwitchyardError): void {
    this.end.clear();
    this.end.abort(error);
    if (this.plan !== null) this.options.statistics.failed(this.plan.model.name, this.secondsSinceArrival());
    this.release();
    this.answerRoom?.release();
    this.outputs = null;
    this.admission.resolve();
    this.settled.resolve({ error, done: () => {} });
  }

  private release(): void {
    for (const giveBack of this.held.splice(0)) giveBack();
    this.options.taken();
  }

  private pieceTokens({ hidden, routingBytes }: InferencePlan): number {
    const rowBytes = hidden * 2;
    const fitting = Math.floor(this.options.messageBytesMax / (rowBytes + 2 * routingBytes));
    return Math.max(1, Math.min(usualChunkTokens(rowBytes), fitting));
  }

  private async bytesOf(memory: TensorMemory, byteOffset: number, byteLength: number): Promise<Buffer> {
    const part = partOf(memory, byteOffset, byteLength);
    if (part instanceof Uint8Array) return Buffer.from(part.buffer, part.byteOffset, part.byteLength);
    const bytes = Buffer.allocUnsafeSlow(byteLength);
    await this.options.native.readSegment(part.segment, part.byteOffset, bytes);
    return bytes;
  }

  /** Ids of tokens as a chunk has them. Throws INVALID_ARGUMENT for one that is out of range. */
  private async idsOf(memory: TensorMemory, first: number, tokens: number): Promise<Buffer> {
    const { below } = this.plan!.model.tokenIds!;
    const size = elementBytes('INT64');
    const bytes = await this.bytesOf(memory, first * size, tokens * size);
    const ids = new Uint32Array(tokens);
    // In a message they lie at any address.
    const wrong = narrowInt64(new Uint8Array(bytes), below, ids);
    if (wrong === null) return packUint32(ids);
    throw invalidArgument(`token_ids of token ${first + wrong.index}`, `${wrong.value}`, `0 to ${below - 1}`);
  }

  private async timed(stage: 'input' | 'output', work: Promise<void>): Promise<void> {
    const startedMs = systemClock.now();
    try {
      await work;
    } finally {
      this.seconds[stage] += (systemClock.now() - startedMs) / 1000;
    }
  }

  private secondsSinceArrival(): number {
    return (systemClock.now() - this.arrivedMs) / 1000;
  }
}

/** What the request is to the router. */
function headerOf({ model, hidden, tokens, routing, outputs, deadlineMs }: InferencePlan): ForwardHeader {
  const toggle = model.bare ? 'OFF' : 'DEFAULT';
  return {
    batchId: '',
    sequences: 1,
    length: tokens,
    hidden,
    dtype: 'BF16',
    firstLayer: model.layers[0]!.layer,
    lastLayer: model.layers.at(-1)!.layer,
    options: {
      norm: toggle,
      residual: toggle,
      combine: 'EXACT',
      feedback: 'DEFAULT',
      routing: routing === null ? 'GATE' : 'GIVEN',
      returnRouting: outputs.some(({ name }) => name !== 'hidden_states'),
      refuseNonFinite: false,
      chunkTokens: 0,
    },
    deadlineMs,
    ucx: null,
    ucxKey: noBytes,
    traceparent: '',
  };
}
