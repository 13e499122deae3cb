import type { Socket } from 'node:net';
import { type ClientDuplexStream, type StatusObject, status } from '@grpc/grpc-js';
import { hostOf } from '../common/address.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ForwardHeaderInput } from '../common/generated/switchyard/v1/ForwardHeader.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import type { SessionAnswer } from '../common/generated/switchyard/v1/SessionAnswer.js';
import type { SessionRequestInput } from '../common/generated/switchyard/v1/SessionRequest.js';
import type { SessionResponse } from '../common/generated/switchyard/v1/SessionResponse.js';
import type { SessionWelcome } from '../common/generated/switchyard/v1/SessionWelcome.js';
import type { UcxEnd } from '../common/generated/switchyard/v1/UcxEnd.js';
import { type Credential, connect } from '../common/grpc-channel.js';
import { abortError, Deferred, onAbort } from '../common/lifecycle.js';
import { LiveMap } from '../common/live.js';
import { clients } from '../common/protocol.js';
import { fromFailure } from '../common/status.js';
import {
  type ChunkRouting,
  chunkCost,
  chunkRoutingBytesMax,
  routingBytesOf,
} from '../transport/chunk-size.js';
import { Credits } from '../transport/credits.js';
import type { TransportChoice, TransportKind } from '../transport/link.js';
import { mayPass, ucxLoss } from '../transport/ucx/source.js';
import type { BatchEnd } from './batch-end.js';
import { answerBytesMax } from './connections.js';
import { routerLost, streamError } from './router-stream.js';
import type { SessionPort, TakeRows } from './session-port.js';
import type { RouterSummary } from './summary.js';
import { openMsOf, openSessionPort, type UnreachableByUcx } from './ucx.js';

export interface RouterSessionOptions {
  /** host:port */
  router: string;
  /** Its name as a node. */
  name: string;
  credential: Credential;
  transport: TransportChoice;
  unreachable: UnreachableByUcx;
  /** Whether others are left to be asked if this one does not answer. */
  others: boolean;
  /** No batch waits for it: it keeps no process alive once the router has been heard. Default: one does. */
  inBackground?: boolean;
}

/** What a batch sends. */
export interface SessionInput {
  /** Its deadline is that of the batch's end. */
  header: Omit<ForwardHeaderInput, 'deadlineMs'>;
  rows: Uint8Array;
  /** As of a chunk. */
  routing: ChunkRouting;
}

/** Tokens of a batch that are done, from `offset` on, and their routing, if it was asked for. */
export interface SessionPart {
  offset: number;
  rows: Uint8Array;
  experts: Uint8Array;
  weights: Uint8Array;
}

/** What a batch gets: its parts in any order. */
export interface SessionOutput {
  parts: SessionPart[];
  summary: RouterSummary;
}

/** A batch under way. */
interface Pending {
  readonly parts: Promise<SessionPart>[];
  readonly done: Deferred<SessionOutput>;
  /** Gives back what it takes of the session. */
  readonly giveBack: () => void;
}

type SessionCall = ClientDuplexStream<SessionRequestInput, SessionResponse>;

/** A stream to one router, on a connection of its own, and a UCX channel beside it where both ends have UCX. It keeps no process alive without a batch. */
export class RouterSession {
  transport: TransportKind = 'grpc';
  /** What carries the rows, for example "mapped posix". */
  lanes = 'http2';
  /** It has to do without UCX, for a reason that may pass. */
  mayHaveUcx = false;
  /** Batches that wait or are under way. */
  underWay = 0;
  /** When it had its last batch, as performance.now(); Infinity: it has one. */
  idleSinceMs = performance.now();
  private readonly client: InferenceClient;
  private readonly call: SessionCall;
  private readonly sockets = new Set<Socket>();
  private port: SessionPort | null = null;
  /** How many batches, and what they may cost over UCX. */
  private slots: Credits | null = null;
  private window: Credits | null = null;
  private readonly pending = new LiveMap<number, Pending>();
  private lastNumber = 0;
  private welcomes = [new Deferred<SessionWelcome>(), new Deferred<SessionWelcome>()] as const;
  private readonly opening: Promise<void>;
  /** Set: it ends with that as soon as it has no batch. */
  private retired: SwitchyardError | null = null;
  private ended: SwitchyardError | null = null;

  constructor(private readonly options: RouterSessionOptions) {
    const { router, name, credential, inBackground } = options;
    const onSocket = (socket: Socket) => {
      this.sockets.add(socket);
      socket.once('close', () => this.sockets.delete(socket));
    };
    this.client = connect(clients.Inference, router, {
      ...credential,
      messageBytesMax: answerBytesMax,
      node: name,
      onSocket,
    });
    this.call = this.client.session();
    this.call.on('data', (message: SessionResponse) => this.receive(message, null));
    this.call.on('status', (result: StatusObject) => this.lose(whyEnded(result, router)));
    // The status says the same.
    this.call.on('error', () => {});
    for (const { promise } of this.welcomes) promise.catch(() => {});
    if (!inBackground) this.hold();
    this.opening = this.open().finally(() => (inBackground ? this.rest() : this.letGo()));
    this.opening.catch((error) => this.lose(asSwitchyardError(error)));
  }

  /** host:port */
  get router(): string {
    return this.options.router;
  }

  /** Why it takes no batches any more; null: it does. */
  get failure(): SwitchyardError | null {
    return this.ended;
  }

  /** Resolves when batches can be sent; rejects with why they cannot. */
  get opened(): Promise<void> {
    return this.opening;
  }

  /**
   * Sends a batch as soon as the session has room for it. Rejects with what the router refuses it with or it failed with, with
   * ROUTER_LOST when the router is gone, and with the reason of `end`; the router is then told.
   */
  async send(input: SessionInput, end: BatchEnd): Promise<SessionOutput> {
    this.hold();
    try {
      await this.opening;
      const routingBytes = routingBytesOf(input.routing);
      const cost = chunkCost(input.rows.byteLength, routingBytes);
      const fits = routingBytes <= chunkRoutingBytesMax && cost <= (this.window?.capacity ?? 0);
      await this.slots!.acquire(1, end);
      try {
        if (fits) await this.window!.acquire(cost, end);
      } catch (error) {
        this.slots!.release(1);
        throw error;
      }
      const giveBack = () => {
        this.slots!.release(1);
        if (fits) this.window!.release(cost);
      };
      if (this.ended !== null) throw this.ended;
      return await this.exchange(input, fits ? this.port : null, giveBack, end);
    } finally {
      this.letGo();
    }
  }

  /** Ends it with `reason` once the batches that it has, or is about to get, have ended. */
  retire(reason: SwitchyardError): void {
    this.retired = reason;
    this.endIfRetired();
  }

  /** Ends it, and all batches under way, with `reason`. Idempotent. */
  lose(reason: SwitchyardError): void {
    if (this.ended !== null) return;
    this.ended = reason;
    for (const { reject } of this.welcomes) reject(reason);
    this.slots?.close(reason);
    this.window?.close(reason);
    for (const { done } of this.pending.values()) done.reject(reason);
    this.pending.clear();
    this.port?.close(reason);
    this.call.cancel();
    this.client.close();
  }

  private async exchange(
    input: SessionInput,
    port: SessionPort | null,
    giveBack: () => void,
    end: BatchEnd,
  ): Promise<SessionOutput> {
    const send = await this.prepare(input, end.leaves(), port, giveBack);
    // Whatever comes in the meantime, numbers ascend on the wire.
    this.lastNumber += 1;
    const number = this.lastNumber;
    const pending: Pending = { parts: [], done: new Deferred(), giveBack };
    pending.done.promise.catch(() => {});
    this.pending.set(number, pending);
    send(number);
    // It may have been aborted while the rows were copied.
    const forget = onAbort(end, () => {
      pending.done.reject(abortError(end));
      this.say({ cancel: { number } }, port);
    });
    return await pending.done.promise.finally(forget);
  }

  /** Returns what sends the batch. Over UCX its rows are copied first. */
  private async prepare(
    { header, rows, routing }: SessionInput,
    deadlineMs: number,
    port: SessionPort | null,
    giveBack: () => void,
  ): Promise<(number: number) => void> {
    const batch = { header: { ...header, deadlineMs }, ...routing };
    if (port === null)
      return (number) => this.call.write({ batch: { number, ...batch, rows: rows as Buffer } });
    try {
      const send = await port.prepare(batch, rows);
      if (this.ended === null) return send;
      throw this.ended;
    } catch (error) {
      giveBack();
      throw error;
    }
  }

  private say(message: SessionRequestInput, port: SessionPort | null): void {
    if (this.ended !== null) return;
    if (port === null) this.call.write(message);
    else port.say(message);
  }

  private async open(): Promise<void> {
    const { transport, router, unreachable, others } = this.options;
    await this.offer();
    const { ucx, ucxDeclined, ucxMayPass, batchesMax, windowBytes } = await this.heard(0, openMsOf(others));
    this.rest();
    this.slots = new Credits(batchesMax, { setting: 'batches of a session', node: `router ${router}` });
    if (this.port !== null && ucx !== null) {
      await this.reach(this.port, ucx).catch((thrown) => {
        if (this.ended?.code !== 'CANCELLED') unreachable.add(router);
        const error = asSwitchyardError(thrown);
        throw ucxLoss(error.message, !mayPass(error));
      });
      unreachable.remove(router);
      this.lanes = await this.port.lanes();
      this.transport = 'ucx';
      this.window = new Credits(windowBytes, {
        setting: 'window of the session',
        node: `router ${router}`,
      });
    } else if (transport === 'ucx') {
      throw ucxLoss(`router ${router} takes batches over gRPC alone: ${ucxDeclined}`, !ucxMayPass);
    } else if (this.port !== null) {
      this.mayHaveUcx = ucxMayPass;
    }
  }

  /** Resolves when the router has been heard over UCX. */
  private async reach(port: SessionPort, end: UcxEnd): Promise<void> {
    await port.connect(end);
    port.say({ hello: {} });
    await this.heard(1, openMsOf(this.options.transport === 'auto'));
  }

  /** The router's welcome on the stream (0) or over UCX (1). Rejects with LINK_LOST if it does not come in time. */
  private async heard(way: 0 | 1, openMs: number): Promise<SessionWelcome> {
    const { promise, reject } = this.welcomes[way];
    const timer = setTimeout(() => {
      const text = `router ${this.router} did not open the session within ${openMs} ms`;
      reject(new SwitchyardError('LINK_LOST', text));
    }, openMs);
    if (this.options.inBackground) timer.unref();
    return promise.finally(() => clearTimeout(timer));
  }

  /** Says hello, with an offer of UCX where that is to be. Rejects with LINK_LOST where it must be and cannot. */
  private async offer(): Promise<void> {
    const { transport, router, credential, unreachable } = this.options;
    if (unreachable.tries(router, transport)) {
      try {
        this.port = await openSessionPort(hostOf(router), credential.tls?.encryptsRows ?? false, {
          onMessage: (message, rows) => this.receive(message, rows),
          onFailure: (error) => this.lose(routerLost(router, error)),
        });
      } catch (error) {
        if (transport === 'ucx') throw error;
        this.mayHaveUcx = mayPass(asSwitchyardError(error));
      }
    } else {
      this.mayHaveUcx = transport === 'auto';
    }
    if (this.ended !== null) {
      this.port?.close(this.ended);
      throw this.ended;
    }
    this.call.write({ hello: this.port?.offer ?? {} });
  }

  private receive(message: SessionResponse, rows: TakeRows | null): void {
    const { welcome, answer, failure } = message;
    if (welcome) this.welcomes[rows === null ? 0 : 1].resolve(welcome);
    else if (answer) this.answered(answer, rows);
    else if (failure) this.take(failure.number)?.done.reject(fromFailure(failure, { router: this.router }));
  }

  private answered(
    { number, offset, experts, weights, rows: inside, summary }: SessionAnswer,
    outside: TakeRows | null,
  ): void {
    const pending = this.pending.get(number);
    const rows = outside === null ? Promise.resolve(inside) : outside();
    const part = rows.then((own) => ({ offset, rows: own, experts, weights }));
    part.catch(() => {});
    if (pending === undefined) return;
    pending.parts.push(part);
    if (summary === null) return;
    this.take(number);
    const { transport, lanes } = outside === null ? grpcWay : this;
    Promise.all(pending.parts).then(
      (parts) => pending.done.resolve({ parts, summary: { ...summary, transport, lanes } }),
      (error) => pending.done.reject(error),
    );
  }

  /** A batch that is over for the router; null: none has this number. */
  private take(number: number): Pending | null {
    const pending = this.pending.get(number) ?? null;
    if (pending === null) return null;
    this.pending.delete(number);
    pending.giveBack();
    return pending;
  }

  /** Keeps the process alive while there is something to wait for. */
  private hold(): void {
    this.underWay += 1;
    this.idleSinceMs = Number.POSITIVE_INFINITY;
    if (this.underWay === 1) for (const socket of this.sockets) socket.ref();
  }

  private letGo(): void {
    this.underWay -= 1;
    if (this.underWay > 0) return;
    this.idleSinceMs = performance.now();
    this.rest();
    this.endIfRetired();
  }

  private rest(): void {
    if (this.underWay === 0) for (const socket of this.sockets) socket.unref();
  }

  private endIfRetired(): void {
    // Somebody may have chosen it in this turn, and is about to send.
    setImmediate(() => {
      if (this.retired !== null && this.underWay === 0) this.lose(this.retired);
    }).unref();
  }
}

const grpcWay = { transport: 'grpc', lanes: 'http2' } as const;

function whyEnded(result: StatusObject, router: string): SwitchyardError {
  if (result.code !== status.OK) return streamError(result, router);
  const text = `router ${router} is stopping and has ended the session; it did not begin this batch`;
  return new SwitchyardError('DRAINING', text, { router });
}
