import type { ServerDuplexStream } from '@grpc/grpc-js';
import type { Addon } from '../../../native/index.js';
import { asSwitchyardError, invalidArgument, SwitchyardError } from '../../common/errors.js';
import type { ModelInferRequest } from '../../common/generated/inference/ModelInferRequest.js';
import type { ModelInferResponseInput } from '../../common/generated/inference/ModelInferResponse.js';
import type { ModelStreamInferResponseInput } from '../../common/generated/inference/ModelStreamInferResponse.js';
import { Deferred } from '../../common/lifecycle.js';
import { LiveSet } from '../../common/live.js';
import { gateOf, type MessageGate, type MessageShare } from '../../common/message-gate.js';
import { cutMessage, toServiceError } from '../../common/status.js';
import { traceparentOf } from '../../common/traceparent.js';
import type { Batches } from '../batches.js';
import { takesNothing } from '../client-channel.js';
import { sendsNothing, unreadMsMax } from '../one-shot-call.js';
import { InferCall, type InferCallOptions, type InferOutcome } from './infer-call.js';

type Response = ModelInferResponseInput | ModelStreamInferResponseInput;
export type InferServerStream = ServerDuplexStream<ModelInferRequest, Response>;

export interface InferStreamOptions
  extends Omit<InferCallOptions, 'request' | 'peer' | 'traceparent' | 'taken' | 'native'> {
  native: InferCallOptions['native'] & Pick<Addon, 'endView'>;
  batches: Batches;
  room: MessageShare;
  /** `clientStallMs`: a client that takes no answer, or does not say the whole of what it began, for so long has stalled. */
  stallMs: number;
  onEnd: () => void;
}

/** Requests of a stream that are not answered. */
const requestsMax = 64;
/** How often in the time that a client has it is looked whether it stalls. */
const looksPerStall = 4;

/**
 * A ModelInfer call, which is a stream of one request to this end, or a ModelStreamInfer call. Requests are batches of the router
 * like any other, many at once; answers leave in the order of the requests.
 */
export class InferStream {
  private readonly peer: string;
  private readonly gate: MessageGate | null;
  private readonly live = new LiveSet<InferCall>();
  private readonly timer: NodeJS.Timeout;
  /** Since when the next request is read, as performance.now(); Infinity: it is not. */
  private readsSinceMs = performance.now();
  /** Settles when every answer before has left. */
  private written: Promise<void> = Promise.resolve();
  private roomForOne = new Deferred<void>();
  /** Resolves when the call is over. */
  private readonly closed = new Deferred<void>();
  private over = false;
  private halfClosed = false;
  /** Of requests that came. */
  private count = 0;

  constructor(
    private readonly call: InferServerStream,
    /** ModelInfer: one request, and an error ends the call. */
    private readonly single: boolean,
    private readonly options: InferStreamOptions,
  ) {
    // A connection that is gone does not know it any more.
    this.peer = call.getPeer();
    this.gate = gateOf(call);
    this.timer = setInterval(() => this.look(), options.stallMs / looksPerStall);
    call.on('cancelled', () => this.close(this.whyCancelled()));
    call.on('data', (request: ModelInferRequest) => void this.receive(request));
    call.on('end', () => this.finish());
  }

  /** Ends the call well, when the requests that came are answered. */
  finish(): void {
    this.halfClosed = true;
    this.endIfDone();
  }

  private async receive(request: ModelInferRequest): Promise<void> {
    if (this.over || this.halfClosed) return;
    this.count += 1;
    if (this.single && this.count > 1) {
      this.fail(oneRequest(this.count));
      return;
    }
    this.call.pause();
    this.readsSinceMs = Number.POSITIVE_INFINITY;
    const call = this.begin(request);
    // An answer waits for those before it: they must not wait for memory that it has.
    await call.admitted;
    while (this.live.size >= requestsMax) await this.roomForOne.promise;
    this.readsSinceMs = performance.now();
    this.call.resume();
  }

  private endIfDone(): void {
    if (this.over || !this.halfClosed || this.live.size > 0) return;
    if (this.single && this.count === 0) {
      this.fail(oneRequest(0));
      return;
    }
    this.close(new SwitchyardError('CANCELLED', 'the call is over'));
    this.call.end();
  }

  private begin(request: ModelInferRequest): InferCall {
    const { peer } = this;
    const { native } = this.options;
    let giveBack: (() => void) | null = this.gate?.claim() ?? (() => {});
    const call = new InferCall({
      ...this.options,
      request,
      peer,
      traceparent: traceparentOf(this.call.metadata),
      taken: () => {
        giveBack?.();
        giveBack = null;
        // Short messages share their memory.
        for (const bytes of request.rawInputContents)
          if (bytes.byteLength > Buffer.poolSize) native.endView(bytes);
      },
    });
    const leftMs = Number(this.call.getDeadline()) - Date.now();
    if (Number.isFinite(leftMs)) call.end.limit(leftMs);
    this.live.add(call);
    this.written = this.written
      .then(async () => this.answer(request, await call.outcome))
      .catch((error) => this.fail(asSwitchyardError(error)))
      .finally(() => {
        this.live.delete(call);
        this.roomForOne.resolve();
        this.roomForOne = new Deferred();
        this.endIfDone();
      });
    this.options.batches.accept(call);
    return call;
  }

  private async answer({ id, modelName }: ModelInferRequest, outcome: InferOutcome): Promise<void> {
    try {
      if (this.over) return;
      if ('response' in outcome) {
        await this.write(this.single ? outcome.response : { inferResponse: outcome.response });
      } else if (this.single) this.fail(outcome.error);
      else {
        const { code, message } = outcome.error;
        await this.write({
          errorMessage: cutMessage(`${code}: ${message}`),
          inferResponse: { id, modelName },
        });
      }
    } finally {
      outcome.done();
    }
  }

  /** Resolves when gRPC has a copy of the message, or the call is over. */
  private async write(message: Response): Promise<void> {
    const { stallMs } = this.options;
    const stalled = setTimeout(() => this.fail(takesNothing(stallMs)), stallMs);
    const left = new Deferred<void>();
    this.call.write(message, () => left.resolve());
    await Promise.race([left.promise, this.closed.promise]);
    clearTimeout(stalled);
  }

  private fail(error: SwitchyardError): void {
    if (this.over) return;
    this.close(error);
    this.call.emit('error', toServiceError(error));
    setTimeout(() => this.gate?.cut(), unreadMsMax).unref();
  }

  private close(reason: SwitchyardError): void {
    if (this.over) return;
    this.over = true;
    this.closed.resolve();
    clearInterval(this.timer);
    for (const { end } of this.live.values()) end.abort(reason);
    this.options.onEnd();
  }

  /** Ends the call of a client that owes its request, or the rest of one. */
  private look(): void {
    const { stallMs } = this.options;
    const begunMs = this.gate?.incompleteSinceMs ?? null;
    const owes = begunMs !== null || (this.single && this.count === 0 && !this.gate?.waiting);
    const sinceMs = Math.max(this.readsSinceMs, begunMs ?? 0);
    const missing = begunMs === null ? 'the request' : 'the rest of a request';
    if (owes && sinceMs <= performance.now() - stallMs) this.fail(sendsNothing(stallMs, missing));
  }

  private whyCancelled(): SwitchyardError {
    return Number(this.call.getDeadline()) <= Date.now()
      ? new SwitchyardError('DEADLINE_EXCEEDED', 'the deadline of the call passed')
      : new SwitchyardError('CANCELLED', 'the client cancelled the call or is gone');
  }
}

function oneRequest(count: number): SwitchyardError {
  return invalidArgument('requests of a ModelInfer call', count, '1');
}
