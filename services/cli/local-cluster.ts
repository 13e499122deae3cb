import { SwitchyardClient } from '../client/index.js';
import { accessRoles, type Tokens } from '../common/access.js';
import { SwitchyardError } from '../common/errors.js';
import { onAbort, sleep } from '../common/lifecycle.js';
import { usableCores } from '../common/machine.js';
import type { TlsSettings } from '../common/tls.js';
import { type PresentedCredential, presentedFiles } from './connection.js';
import { type Flags, LocalProcess, type ProcessRole } from './local-process.js';

export interface LocalClusterOptions {
  workers: number;
  /** Router processes beside the one that the coordinator embeds. */
  routers: number;
  /** Compute threads of each worker; null: the cores divided by the workers, at least 1. */
  threads: number | null;
  /** Flags of each kind of process, as its command takes them. */
  coordinator: Flags;
  router?: Flags;
  worker?: Flags;
  /** Of the whole cluster. Default: none. */
  tokens?: Tokens;
  tls?: TlsSettings | null;
  /** Variables of every process beside those of this one. */
  environment?: Readonly<Record<string, string>>;
  readyTimeoutMs: number;
  /** Gives up starting, and stops what has started, whatever its user is at. */
  signal?: AbortSignal;
  /** Called with every line a process prints. */
  onLine?: (process: LocalProcess, line: string) => void;
}

/** What the processes of a cluster are called. */
export function namesOf({ workers, routers }: Pick<LocalClusterOptions, 'workers' | 'routers'>): string[] {
  const counted = (role: ProcessRole, count: number) =>
    Array.from({ length: count }, (_, index) => `${role}-${index}`);
  return ['coordinator', ...counted('worker', workers), ...counted('router', routers)];
}

/** Coordinator and routers finish their batches within this; longer batches are cut. */
const drainMs = 7_500;
/** Then workers have nothing left to do. */
const stopMs = 1_000;
/** How long `stop` takes at most. A container is ended after 10 s. */
export const clusterEndMsMax = drainMs + stopMs + 1_000;

/** A coordinator, workers and routers as child processes on this machine. */
export class LocalCluster {
  readonly processes: LocalProcess[] = [];
  private stopping: Promise<void> | null = null;

  private constructor(
    readonly address: string,
    readonly metricsUrl: string,
    readonly client: SwitchyardClient,
    /** What this process presents: an operator's token, or a client's if there is none, and the certificate of all. */
    readonly credential: PresentedCredential,
  ) {}

  /** Starts all processes and resolves when the cluster is ready. A failure stops what was started, and says which process failed why. */
  static async start(options: LocalClusterOptions): Promise<LocalCluster> {
    const { tokens = {}, tls = null } = options;
    const launch = (role: 'coordinator' | 'router' | 'worker', name: string, flags: Flags) => {
      const known = role === 'worker' ? { ...tokens, client: null } : tokens;
      const all = { ...flags, ...tlsFlags(tls) };
      const environment = { ...options.environment, ...tokenEnvironment(known) };
      return new LocalProcess(role, name, all, environment, options.onLine ?? (() => {}));
    };
    const coordinator = launch('coordinator', 'coordinator', {
      ...options.coordinator,
      workers: options.workers,
    });
    const started = [coordinator];
    let client: SwitchyardClient | null = null;
    try {
      const { address, metricsUrl } = await within(options, coordinator.listening);
      const token = tokens.operator ?? tokens.client ?? null;
      const credential = { token, tls: presentedFiles(tls) };
      client = await within(options, SwitchyardClient.connect(address, credential));
      const cluster = new LocalCluster(address, metricsUrl, client, credential);
      cluster.processes.push(coordinator);
      const threads = options.threads ?? Math.max(1, Math.floor(usableCores() / options.workers));
      for (const name of namesOf(options).slice(1)) {
        const flags = { coordinator: address, name };
        cluster.processes.push(
          name.startsWith('worker')
            ? launch('worker', name, { ...options.worker, ...flags, threads })
            : launch('router', name, { ...options.router, ...flags }),
        );
      }
      started.push(...cluster.processes.slice(1));
      await cluster.untilReady(options);
      options.signal?.throwIfAborted();
      if (options.signal) onAbort(options.signal, () => cluster.stop());
      return cluster;
    } catch (error) {
      client?.destroy();
      // A process that failed tells more than what could not reach it; on a busy machine it takes its time to say so.
      const graceMs = options.signal?.aborted ? stopMs : drainMs;
      const exits = await Promise.all(started.map((process) => process.stop(graceMs)));
      const failed = exits.findIndex((exit, index) => started[index]!.failed(exit));
      throw failed < 0 ? error : started[failed]!.exitError(exits[failed]!);
    }
  }

  /** Whether `stop` was called: from then on processes end because they were told to. */
  get stopped(): boolean {
    return this.stopping !== null;
  }

  /** Routers first, so that they drain while the workers still compute; then the workers. Idempotent. */
  stop(): Promise<void> {
    this.stopping ??= this.stopAll();
    return this.stopping;
  }

  private async stopAll(): Promise<void> {
    this.client.destroy();
    const workers = this.processes.filter((process) => process.role === 'worker');
    const others = this.processes.filter((process) => process.role !== 'worker');
    await Promise.all(others.map((process) => process.stop(drainMs)));
    await Promise.all(workers.map((process) => process.stop(stopMs)));
  }

  private async untilReady(options: LocalClusterOptions): Promise<void> {
    const { readyTimeoutMs, coordinator, signal } = options;
    const ended = this.processes.map(async (process) => {
      throw process.exitError(await process.exited);
    });
    for (const end of ended) end.catch(() => {});
    const routers = this.processes.filter((process) => process.role === 'router').length;
    const routersWanted = routers + (coordinator.router === false ? 0 : 1);
    await Promise.race([this.client.waitUntilReady(readyTimeoutMs, routersWanted, signal), ...ended]);
    await within(options, Promise.all(this.processes.map((process) => process.listening)));
  }
}

/** The files of all processes as flags of each. */
export function tlsFlags(files: TlsSettings | null): Flags {
  if (files === null) return {};
  const { ca, cert, key, clientCa } = files;
  return { tlsCa: ca, tlsCert: cert, tlsKey: key, tlsClientCa: clientCa };
}

/** Tokens as servers read them from their environment, instead of files that this process's own names. */
export function tokenEnvironment(tokens: Tokens): Record<string, string> {
  return Object.fromEntries(
    accessRoles.flatMap((role) => {
      const token = tokens[role] ?? null;
      const name = `SWITCHYARD_${role.toUpperCase()}_TOKEN`;
      return token === null ? [] : [[name, token] as const, [`${name}_FILE`, ''] as const];
    }),
  );
}

/** Rejects with NOT_READY if `work` takes too long, and with the signal's reason. */
async function within<T>(
  { readyTimeoutMs, signal }: Pick<LocalClusterOptions, 'readyTimeoutMs' | 'signal'>,
  work: Promise<T>,
): Promise<T> {
  const done = new AbortController();
  const givenUp = signal ? AbortSignal.any([done.signal, signal]) : done.signal;
  const late = sleep(readyTimeoutMs, givenUp).then(() => {
    const text = `a process of the cluster does not listen after ${readyTimeoutMs} ms`;
    throw new SwitchyardError('NOT_READY', text);
  });
  late.catch(() => {});
  try {
    return await Promise.race([work, late]);
  } finally {
    done.abort();
  }
}
