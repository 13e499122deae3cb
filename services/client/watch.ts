import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type StatusObject, status } from '@grpc/grpc-js';
import { backoffMs } from '../common/backoff.js';
import type { SwitchyardError } from '../common/errors.js';
import type { ClusterState } from '../common/generated/switchyard/v1/ClusterState.js';
import type { RouterDescription } from '../common/generated/switchyard/v1/RouterDescription.js';
import { type Credential, connect } from '../common/grpc-channel.js';
import { abortable, Deferred, onAbort } from '../common/lifecycle.js';
import { clients } from '../common/protocol.js';
import { fromServiceError, isUntrusted } from '../common/status.js';
import { systemRandom } from '../runtime/system.js';
import { allFailed, type Failure } from './all-failed.js';
import { unanswered } from './connections.js';

export interface WatchOptions {
  /** host:port, at least one: those that the user gave. */
  addresses: readonly string[];
  credential: Credential;
  /** How long a server may take to tell the state. */
  timeoutMs: number;
  /** Called with every new state. */
  onState: (state: ClusterState) => void;
}

/** When a watch ends that stood for so long, the next one is tried at once. */
const steadyMs = 5_000;
const pauseMsMin = 100;
const pauseMsMax = 2_000;
const messageBytesMax = 1024 * 1024;

/**
 * What the cluster looks like, kept up to date by one call to one server: an address that was given, or a router learned from
 * it. When the call ends another server is asked, and with backoff once none has answered. It keeps no process alive.
 */
export class ClusterWatch {
  /** The latest; null until the first has come. */
  state: ClusterState | null = null;
  /** The server that tells it; null while there is none. */
  private server: string | null = null;
  /** The coordinator that leads, as one that does not has named it last. */
  private leader: string | null = null;
  private readonly first = new Deferred<void>();
  /** Resolved by a new state, and when all servers were asked in vain. */
  private changed = new Deferred<void>();
  /** Servers that failed since one of them answered for long. */
  private failed = 0;
  /** Ends the pause before servers are asked again. */
  private resting: AbortController | null = null;
  private readonly over = new AbortController();
  /** By a router's own address, which may lead nowhere from here: the one at which it answered, as behind a published port. */
  private readonly foundAt = new Map<string, string>();

  constructor(private readonly options: WatchOptions) {}

  /**
   * Resolves when an address has answered. Rejects if none does, with NOT_READY, or if one refuses the credential; the watch
   * is then over.
   */
  start(): Promise<void> {
    void this.run();
    return this.first.promise;
  }

  /** Resolves when `met` holds for the state. Rejects with the signal's reason, or that of `end`. */
  async until(met: (state: ClusterState) => boolean, signal: AbortSignal): Promise<void> {
    this.over.signal.throwIfAborted();
    while (this.state === null || !met(this.state)) {
      await abortable(this.changed.promise, signal);
      this.over.signal.throwIfAborted();
    }
  }

  /** Whether a server tells the state now. */
  get told(): boolean {
    return this.server !== null;
  }

  /** If no server tells the state now, asks each of them without a pause. Resolves with the first answer, or after `waitMs`. */
  async refresh(waitMs: number): Promise<void> {
    if (this.server !== null) return;
    this.failed = 0;
    this.resting?.abort();
    this.resting = null;
    const late = AbortSignal.timeout(waitMs);
    while (this.server === null && this.resting === null && !late.aborted) {
      await abortable(this.changed.promise, late).catch(() => {});
    }
  }

  /** Who may tell the state: the server that does, the addresses given, the coordinator and the routers learned. */
  servers(): string[] {
    const learned = (this.state?.routers ?? []).map(({ address }) => address);
    const current = this.server === null ? [] : [this.server];
    const named = this.leader === null ? [] : [this.leader];
    return [...new Set([...current, ...this.options.addresses, ...named, ...learned])];
  }

  /** Idempotent. */
  end(reason: SwitchyardError): void {
    this.over.abort(reason);
    this.resting?.abort();
    this.wake();
  }

  private async run(): Promise<void> {
    const failures: Failure[] = [];
    for (let turn = 0; !this.over.signal.aborted; turn += 1) {
      const servers = this.servers();
      if (this.failed >= servers.length) await this.rest(this.failed - servers.length);
      const startedMs = performance.now();
      const address = servers[turn % servers.length]!;
      const failure = await this.follow(address);
      this.failed = performance.now() - startedMs >= steadyMs ? 0 : this.failed + 1;
      if (failure.code === 'NOT_LEADING') this.leader = String(failure.details.leader ?? '') || null;
      if (this.state !== null) continue;
      failures.push({ address, error: failure });
      this.giveUp(failures, failure);
    }
  }

  /** Ends the watch if the first round brought nothing. */
  private giveUp(failures: readonly Failure[], failure: SwitchyardError): void {
    const refused =
      (failure.code === 'UNAUTHENTICATED' && !isUntrusted(failure)) || failure.code === 'PERMISSION_DENIED';
    if (!refused && failures.length < this.servers().length) return;
    const error = refused ? failure : allFailed(failures);
    this.first.reject(error);
    this.end(error);
  }

  /** Watches at one server. Resolves when that is over, with why. */
  private async follow(address: string): Promise<SwitchyardError> {
    const { credential, timeoutMs } = this.options;
    let socket: Socket | null = null;
    const onSocket = (made: Socket) => {
      socket = made;
    };
    const client = connect(clients.Inference, address, {
      ...credential,
      messageBytesMax,
      node: this.state?.routers.find((router) => router.address === address)?.name,
      onSocket,
    });
    const call = client.watchCluster({});
    const ended = new Deferred<SwitchyardError>();
    let left = false;
    const cancel = (reason: string) => {
      left = true;
      ended.resolve(unanswered(address, reason));
      call.cancel();
    };
    const timer = setTimeout(() => cancel(`no answer within ${timeoutMs} ms`), timeoutMs).unref();
    const forget = onAbort(this.over.signal, () => cancel('the watch is over'));
    call.on('data', (state: ClusterState) => {
      // What had come when the call was cancelled.
      if (left) return;
      clearTimeout(timer);
      // A call keeps its connection's process alive from its start on.
      socket?.unref();
      if (!this.receive(address, state)) cancel('the server does not know its cluster yet');
    });
    // The status says the same.
    call.on('error', () => {});
    call.on('status', (result: StatusObject) => ended.resolve(whyEnded(address, result)));
    const failure = await ended.promise;
    clearTimeout(timer);
    forget();
    this.server = null;
    client.close();
    return failure;
  }

  /** Takes a state in; false: another server may know more. */
  private receive(address: string, state: ClusterState): boolean {
    this.server = address;
    const knows = state.model !== null;
    if (knows || this.state === null || this.state.model === null) {
      this.state = { ...state, routers: this.asFound(address, state) };
      this.options.onState(this.state);
      this.wake();
    }
    this.first.resolve();
    return knows || this.servers().length === 1;
  }

  /** The routers of a state that came from `address`, each under the address by which it is reached. */
  private asFound(address: string, { router, routers }: ClusterState): RouterDescription[] {
    for (const [own, found] of this.foundAt) {
      if (found === address || !routers.some((one) => one.address === own)) this.foundAt.delete(own);
    }
    const teller = routers.find(({ name }) => name === router);
    if (teller !== undefined) this.foundAt.set(teller.address, address);
    return routers.map((one) => ({ ...one, address: this.foundAt.get(one.address) ?? one.address }));
  }

  private async rest(round: number): Promise<void> {
    this.resting = new AbortController();
    this.wake();
    const ms = backoffMs(systemRandom, round, pauseMsMin, pauseMsMax);
    await sleep(ms, null, { ref: false, signal: this.resting.signal }).catch(() => {});
    this.resting = null;
  }

  private wake(): void {
    this.changed.resolve();
    this.changed = new Deferred();
  }
}

function whyEnded(address: string, result: StatusObject): SwitchyardError {
  if (result.code === status.OK) return unanswered(address, 'the server is stopping');
  const error = fromServiceError(result);
  return error.code === 'LINK_LOST' ? unanswered(address, error.message, error) : error;
}
