import { randomBytes } from 'node:crypto';
import { presentedFiles } from '../../services/cli/connection.js';
import { tlsFlags, tokenEnvironment } from '../../services/cli/local-cluster.js';
import type { Flags } from '../../services/cli/local-process.js';
import type { TlsSettings } from '../../services/common/tls.js';
import type { PresetName } from '../../services/model/synthetic.js';
import { Host, joinHosts } from './host.js';

export interface HostClusterOptions {
  preset: PresetName;
  /** Default: 1. */
  workersPerHost?: number;
  /** Further flags of all processes, of the coordinator, and of the second host's workers. */
  flags?: Flags;
  coordinator?: Flags;
  workerB?: Flags;
  /** Of all processes and clients. Default: tokens, and nothing is encrypted. */
  tls?: TlsSettings;
  /** The hosts have one IPC namespace, as containers can. Default: no. */
  sharesIpc?: boolean;
}

const readyTimeoutMs = 120_000;
const stopMs = 5_000;
const secret = () => randomBytes(16).toString('hex');
const port = 7070;

/**
 * A cluster of two hosts: each has one core, a router, workers with one thread, and a client. The coordinator embeds the
 * first host's router.
 */
export class HostCluster {
  /** An operator's. */
  readonly token = secret();
  private readonly tokens = { client: secret(), node: secret(), operator: this.token };

  /** By host. */
  private readonly workers: readonly [string[], string[]];

  private constructor(
    readonly hosts: readonly [Host, Host],
    workersPerHost: number,
  ) {
    const names = (host: string) =>
      workersPerHost === 1
        ? [`worker-${host}`]
        : Array.from({ length: workersPerHost }, (_, index) => `worker-${host}${index}`);
    this.workers = [names('a'), names('b')];
  }

  /** host:port of the coordinator, from both hosts. */
  get address(): string {
    return `${this.hosts[0].address}:${port}`;
  }

  static async start(options: HostClusterOptions): Promise<HostCluster> {
    const [a, b] = await Promise.all([
      Host.start('host-a', '10.77.0.1', 0, options.sharesIpc),
      Host.start('host-b', '10.77.0.2', 1, options.sharesIpc),
    ]);
    const cluster = new HostCluster([a, b], options.workersPerHost ?? 1);
    try {
      await joinHosts(a, b);
      await cluster.launch(options);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  private async launch(options: HostClusterOptions): Promise<void> {
    const { preset, flags = {}, coordinator: ofCoordinator = {}, workerB = {}, tls = null } = options;
    const [a, b] = this.hosts;
    const environment = tls === null ? tokenEnvironment(this.tokens) : {};
    const credential = { token: tls === null ? this.token : null, tls: presentedFiles(tls) };
    const coordinator = this.address;
    const node = (host: Host) => ({ host: host.address, threads: 1, ...tlsFlags(tls), ...flags });
    const workers = this.workers.flat().length;
    const coordinatorFlags = { ...node(a), port, metricsPort: 0, preset, workers, ...ofCoordinator };
    await a.call('start', {
      role: 'coordinator',
      name: 'router-a',
      flags: { ...coordinatorFlags, name: 'router-a' },
      environment,
    });
    const start = (host: Host, role: 'router' | 'worker', name: string, own: Flags = {}) =>
      host.call('start', { role, name, flags: { ...node(host), coordinator, name, ...own }, environment });
    const [{ address: routerB }] = await Promise.all([
      start(b, 'router', 'router-b'),
      ...this.workers[0].map((name) => start(a, 'worker', name)),
      ...this.workers[1].map((name) => start(b, 'worker', name, workerB)),
    ]);
    await Promise.all([
      a.call('connect', coordinator, credential, 2, readyTimeoutMs),
      b.call('connect', routerB, credential, 2, readyTimeoutMs),
    ]);
  }

  /** Routers first, so that they drain; then the workers, then the hosts. */
  async stop(): Promise<void> {
    const [a, b] = this.hosts;
    await Promise.allSettled([a.call('stop', 'router-a', stopMs), b.call('stop', 'router-b', stopMs)]);
    const workers = [a, b].flatMap((host, index) =>
      this.workers[index]!.map((name) => host.call('stop', name, stopMs)),
    );
    await Promise.allSettled(workers);
    await this.close();
  }

  async close(): Promise<void> {
    await Promise.all(this.hosts.map((host) => host.close()));
  }
}
