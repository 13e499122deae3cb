import { backoffMs } from '../common/backoff.js';
import { plainText } from '../common/control-limits.js';
import { asSwitchyardError, SwitchyardError } from '../common/errors.js';
import type { ClusterView } from '../common/generated/switchyard/v1/ClusterView.js';
import type { LinkDescriptionInput } from '../common/generated/switchyard/v1/LinkDescription.js';
import type { LinkKey } from '../common/generated/switchyard/v1/LinkKey.js';
import type { NodeDescription } from '../common/generated/switchyard/v1/NodeDescription.js';
import type { RouterMessageInput } from '../common/generated/switchyard/v1/RouterMessage.js';
import type { WorkerMessage } from '../common/generated/switchyard/v1/WorkerMessage.js';
import { sleepOn } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import type { OnUnknown } from '../common/unknown-kinds.js';
import type { Dialer } from '../runtime/duplex.js';
import type { Runtime } from '../runtime/runtime.js';
import { dialLink } from '../transport/dial.js';
import { resultBytesMax } from '../transport/limits.js';
import type { Link, TransportChoice } from '../transport/link.js';
import type { UcxSource } from '../transport/ucx/source.js';

export interface LinksOptions {
  /** This router's name, as workers see it. */
  router: string;
  /** Where this router serves. */
  host: string;
  /** The name of this router's host, as the workers there say it. */
  machine: string;
  /** A worker silent for so long is lost. */
  leaseMs: number;
  transport: TransportChoice;
  dial: Dialer<WorkerMessage, RouterMessageInput>;
  /** Null: this process has none. */
  ucx: UcxSource | null;
  onUnknown: OnUnknown;
  log: Logger;
  runtime: Runtime;
  /** Called when a link was made or lost, or has moved to UCX. */
  onChange: () => void;
}

const backoffMsMin = 50;
const backoffMsMax = 2_000;

/** The way to one worker at one address: dialled, and dialled again with backoff, until it is closed. */
class Connection {
  link: Link | null = null;
  /** Why there is no link. */
  reason: string;
  private readonly closing = new AbortController();

  constructor(
    readonly worker: string,
    readonly address: string,
    /** The worker's host, as it says. */
    readonly host: string,
    private readonly options: LinksOptions,
    private readonly fingerprint: string,
    private readonly epoch: () => number,
    /** Of the links of this router to the worker; it may change when the worker joins anew. */
    private readonly key: () => Uint8Array | undefined,
  ) {
    this.reason = 'not connected yet';
    void this.keep();
  }

  close(): void {
    this.closing.abort();
    this.link?.close();
  }

  private async keep(): Promise<void> {
    const { log, onChange, runtime } = this.options;
    const { worker, address } = this;
    let failures = 0;
    while (!this.closing.signal.aborted) {
      const link = await this.dial(failures === 0);
      if (link !== null) {
        failures = 0;
        this.link = link;
        const { transport, lanes, reason } = link;
        log.info({ event: 'link-open', worker, address, transport, lanes, reason });
        onChange();
        const { code, message } = asSwitchyardError(await link.closed);
        this.reason = message;
        this.link = null;
        // A worker that stops says so.
        const level = code === 'DRAINING' ? 'info' : 'warn';
        if (!this.closing.signal.aborted)
          log[level]({ event: 'link-lost', worker, address, code, reason: message });
        onChange();
      }
      failures += 1;
      const pauseMs = backoffMs(runtime.random, failures, backoffMsMin, backoffMsMax);
      await sleepOn(runtime.clock, pauseMs, this.closing.signal).catch(() => {});
    }
  }

  /** The link goes on over UCX. */
  private moved(): void {
    if (this.link === null) return;
    const { transport, lanes, reason } = this.link;
    this.options.log.info({ event: 'link-moved', worker: this.worker, transport, lanes, reason });
    this.options.onChange();
  }

  /** Null: there is no link, and `reason` says why. Only the first of several failures is logged. */
  private async dial(logFailure: boolean): Promise<Link | null> {
    const { router, host, leaseMs, transport, dial, ucx, runtime, onUnknown, log } = this.options;
    const { worker, address } = this;
    try {
      const key = this.key();
      if (key === undefined)
        throw new SwitchyardError('LINK_LOST', `the coordinator has given no key for worker ${worker}`);
      const link = await dialLink({
        address,
        router,
        host,
        worker,
        modelFingerprint: this.fingerprint,
        epoch: this.epoch(),
        key,
        resultBytesMax,
        leaseMs,
        transport,
        dial,
        ucx,
        runtime,
        onUnknown,
        onMoved: () => this.moved(),
        log,
      });
      if (this.closing.signal.aborted) {
        link.close();
        return null;
      }
      return link;
    } catch (error) {
      const { code, message } = asSwitchyardError(error);
      if (message !== this.reason) {
        this.reason = message;
        this.options.onChange();
      }
      if (logFailure && !this.closing.signal.aborted) {
        // A worker that has just joined opens its model first.
        const level = code === 'NOT_READY' ? 'info' : 'warn';
        log[level]({ event: 'link-failed', worker, address, code, reason: message });
      }
      return null;
    }
  }
}

/** One link per live worker of the view. */
export class Links {
  /** Counts the changes of what `describe` says. */
  changes = 0;
  private readonly connections = new Map<string, Connection>();
  private readonly options: LinksOptions;
  private epoch = 0;
  private keys: ReadonlyMap<string, Uint8Array> = new Map();

  constructor(options: LinksOptions) {
    const onChange = () => {
      this.changes += 1;
      options.onChange();
    };
    this.options = { ...options, onChange };
  }

  /** Takes the keys of this router for links to workers, which come before the view that names these. */
  setKeys(keys: readonly LinkKey[]): void {
    this.keys = new Map(keys.map(({ worker, key }) => [worker, key]));
  }

  /**
   * Connects to workers that are new in the view, drops those that are dead or gone. `kept`: workers that are not dropped for not
   * being in it.
   */
  update(view: ClusterView, fingerprint: string, kept: ReadonlySet<string>): void {
    this.epoch = view.epoch;
    const workers = new Map(
      view.nodes.filter(({ role }) => role === 'WORKER').map((node) => [node.name, node]),
    );
    for (const [worker, connection] of this.connections) {
      const node = workers.get(worker);
      if (node === undefined ? kept.has(worker) : isAlive(node) && node.address === connection.address)
        continue;
      this.changes += 1;
      this.connections.delete(worker);
      connection.close();
    }
    for (const [worker, node] of workers) {
      if (!isAlive(node) || this.connections.has(worker)) continue;
      const connection = new Connection(
        worker,
        node.address,
        node.host,
        this.options,
        fingerprint,
        () => this.epoch,
        () => this.keys.get(worker),
      );
      this.connections.set(worker, connection);
      this.changes += 1;
    }
  }

  /** The open link to a worker, or why there is none. */
  find(worker: string): { link: Link | null; reason: string } {
    const connection = this.connections.get(worker);
    if (connection === undefined)
      return { link: null, reason: 'the worker is not a live member of the cluster' };
    return { link: connection.link, reason: connection.reason };
  }

  /** Whether a worker is on this router's host. */
  isNear(worker: string): boolean {
    return this.connections.get(worker)?.host === this.options.machine;
  }

  /** How each live worker is reached, or why it is not. */
  describe(): LinkDescriptionInput[] {
    return [...this.connections.values()].map(({ worker, link, reason }) =>
      link === null
        ? { worker, transport: 'NO_LINK', lanes: '', reason: plainText(reason) }
        : {
            worker,
            transport: link.transport === 'ucx' ? 'UCX' : 'GRPC',
            lanes: plainText(link.lanes),
            reason: plainText(link.reason),
          },
    );
  }

  open(): Link[] {
    return [...this.connections.values()].flatMap(({ link }) => (link === null ? [] : [link]));
  }

  close(): void {
    for (const connection of this.connections.values()) connection.close();
    this.connections.clear();
  }
}

const isAlive = ({ state }: NodeDescription) => state !== 'DEAD';
