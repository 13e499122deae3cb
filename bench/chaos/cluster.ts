import { type Flags, LocalProcess } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { sleep } from '../../services/common/lifecycle.js';
import { fixedPort } from '../fixed-port.js';
import { Cables } from './cables.js';

export interface ChaosClusterOptions {
  workers: number;
  routers: number;
  /** Serving copies of each expert, at least. */
  copies: number;
  preset: string;
  transport: 'auto' | 'ucx' | 'grpc';
  leaseMs: number;
  /** Each process has a network of its own, and a cable that can be pulled. */
  cables: boolean;
  /** Further flags of the coordinator, and of each worker. */
  coordinator?: Flags;
  worker?: Flags;
  onLine: (process: string, line: string) => void;
}

const readyMsMax = 60_000;
const stopMsMax = 10_000;
const pollMs = 50;

/** A coordinator that routes nothing, routers and workers as processes, each of which can be ended and started again under its name. */
export class ChaosCluster {
  /** By name. */
  readonly processes = new Map<string, LocalProcess>();
  /** host:port of the coordinator, the same for each that is started. */
  address = '';
  private port = 0;
  private client: SwitchyardClient | null = null;
  private cables: Cables | null = null;

  private constructor(private readonly options: ChaosClusterOptions) {}

  static async start(options: ChaosClusterOptions): Promise<ChaosCluster> {
    const cluster = new ChaosCluster(options);
    try {
      const names = ['coordinator', ...cluster.workers, ...cluster.routers];
      if (options.cables) cluster.cables = await Cables.lay(names);
      cluster.port = await fixedPort();
      cluster.launch('coordinator');
      cluster.address = (await cluster.processes.get('coordinator')!.listening).address;
      for (const name of [...cluster.workers, ...cluster.routers]) cluster.launch(name);
      await cluster.untilWhole(readyMsMax);
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  get workers(): string[] {
    return Array.from({ length: this.options.workers }, (_, index) => `worker-${index}`);
  }

  get routers(): string[] {
    return Array.from({ length: this.options.routers }, (_, index) => `router-${index}`);
  }

  /** A client of the cluster's routers, whatever becomes of the coordinator. */
  async connect(): Promise<SwitchyardClient> {
    const addresses = await Promise.all(
      this.routers.map(async (name) => (await this.processes.get(name)!.listening).address),
    );
    return SwitchyardClient.connect(addresses, { timeoutMs: readyMsMax });
  }

  /** Starts a process that has ended, or was never there. `extra`: flags of its own, which win. */
  launch(name: string, extra: Flags = {}): void {
    const { copies, leaseMs, preset, transport, workers, onLine } = this.options;
    const kind = name === 'coordinator' ? name : name.startsWith('worker') ? 'worker' : 'router';
    const { cables } = this;
    const place = cables === null ? {} : { host: cables.addressOf(name), insecure: true };
    const own: Flags = { name, port: 0, metricsPort: 0, leaseMs, ...place };
    const flags: Flags =
      kind === 'coordinator'
        ? {
            ...own,
            port: this.port,
            preset,
            workers,
            ...(copies > 1 && { copies }),
            router: false,
            heartbeatMs: Math.floor(leaseMs / 5),
            ...this.options.coordinator,
          }
        : {
            ...own,
            coordinator: this.address,
            transport,
            ...(kind === 'worker' && { threads: 1, ...this.options.worker }),
          };
    const wrapper = cables?.wrapperOf(name) ?? [];
    const all = { ...flags, ...extra };
    const process = new LocalProcess(kind, name, all, {}, (_, line) => onLine(name, line), wrapper);
    this.processes.set(name, process);
  }

  signal(name: string, signal: NodeJS.Signals): void {
    this.processes.get(name)!.kill(signal);
  }

  /** Pulls a process's cable, or puts it in again. */
  plug(name: string, state: 'up' | 'down'): Promise<void> {
    return this.cables!.plug(name, state);
  }

  /** Resolves when a process has ended. */
  async ended(name: string): Promise<void> {
    await this.processes.get(name)!.exited;
  }

  /** Resolves with the milliseconds until every expert has its copies and every router is ready; rejects after `withinMs` with what is missing. */
  async untilWhole(withinMs: number): Promise<number> {
    const started = performance.now();
    for (;;) {
      const missing = await this.whyNotWhole();
      const waitedMs = performance.now() - started;
      if (missing === '') return waitedMs;
      if (waitedMs > withinMs) throw new Error(`not whole after ${Math.round(waitedMs)} ms: ${missing}`);
      await sleep(pollMs);
    }
  }

  async stop(): Promise<void> {
    this.client?.destroy();
    const all = [...this.processes.values()];
    for (const process of all) process.kill('SIGCONT');
    await Promise.all(all.map((process) => process.stop(stopMsMax)));
    await this.cables?.close();
  }

  private async whyNotWhole(): Promise<string> {
    const { copies, workers, routers } = this.options;
    const ended = [...this.processes.values()].find(({ running }) => !running);
    if (ended !== undefined)
      return `${ended.name} has ended: ${ended.recentLines.at(-1) ?? 'it said nothing'}`;
    try {
      this.client ??= await SwitchyardClient.connect(this.address, { timeoutMs: pollMs * 20 });
      const { view } = await this.client.describeCluster({ placement: true });
      const ready = (role: 'WORKER' | 'ROUTER') =>
        view?.nodes.filter((node) => node.role === role && node.state === 'READY').length ?? 0;
      if (ready('WORKER') < workers) return `${ready('WORKER')} of ${workers} workers are ready`;
      if (ready('ROUTER') < routers) return `${ready('ROUTER')} of ${routers} routers are ready`;
      const least = Math.min(...(view?.placement?.layers ?? []).flatMap((layer) => layer.copies ?? []));
      return least >= copies ? '' : `an expert has ${least} of ${copies} copies`;
    } catch (error) {
      this.client?.destroy();
      this.client = null;
      return (error as Error).message;
    }
  }
}
