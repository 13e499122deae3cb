import { randomBytes } from 'node:crypto';
import { tokenEnvironment } from '../../services/cli/local-cluster.js';
import type { Flags } from '../../services/cli/local-process.js';
import type { PresetName } from '../../services/model/synthetic.js';
import { Host, joinHosts } from './host.js';

export interface HostClusterOptions {
  preset: PresetName;
  /** Further flags of all processes, and of the second host's worker. */
  flags?: Flags;
  workerB?: Flags;
}

const readyTimeoutMs = 120_000;
const stopMs = 5_000;
const secret = () => randomBytes(16).toString('hex');
const port = 7070;

/**
 * A cluster of two hosts: each has one core, a router, a worker with one thread, and a client. The coordinator embeds the
 * first host's router.
 */
export class HostCluster {
  /** An operator's. */
  readonly token = secret();
  private readonly tokens = { client: secret(), node: secret(), operator: this.token };

  private constructor(readonly hosts: readonly [Host, Host]) {}

  static async start(options: HostClusterOptions): Promise<HostCluster> {
    const [a, b] = await Promise.all([
      Host.start('host-a', '10.77.0.1', 0),
      Host.start('host-b', '10.77.0.2', 1),
    ]);
    const cluster = new HostCluster([a, b]);
    try {
      await joinHosts(a, b);
      await cluster.launch(options);
      return cluster;
    } catch (error) {
      await cluster.close();
      throw error;
    }
  }

  private async launch({ preset, flags = {}, workerB = {} }: HostClusterOptions): Promise<void> {
    const [a, b] = this.hosts;
    const environment = tokenEnvironment(this.tokens);
    const coordinator = `${a.address}:${port}`;
    const node = (host: Host) => ({ host: host.address, threads: 1, ...flags });
    const coordinatorFlags = { ...node(a), port, metricsPort: 0, preset, workers: 2 };
    await a.call('start', {
      role: 'coordinator',
      name: 'router-a',
      flags: { ...coordinatorFlags, name: 'router-a' },
      environment,
    });
    const names: [Host, 'router' | 'worker', string][] = [
      [a, 'worker', 'worker-a'],
      [b, 'worker', 'worker-b'],
      [b, 'router', 'router-b'],
    ];
    const started = names.map(async ([host, role, name]) => {
      const own = name === 'worker-b' ? workerB : {};
      const nodeFlags = { ...node(host), coordinator, name, ...own };
      return host.call('start', { role, name, flags: nodeFlags, environment });
    });
    const [, , { address: routerB }] = (await Promise.all(started)) as [
      unknown,
      unknown,
      { address: string },
    ];
    await Promise.all([
      a.call('connect', coordinator, this.token, 2, readyTimeoutMs),
      b.call('connect', routerB, this.token, 2, readyTimeoutMs),
    ]);
  }

  /** Routers first, so that they drain; then the workers, then the hosts. */
  async stop(): Promise<void> {
    const [a, b] = this.hosts;
    await Promise.allSettled([a.call('stop', 'router-a', stopMs), b.call('stop', 'router-b', stopMs)]);
    await Promise.allSettled([a.call('stop', 'worker-a', stopMs), b.call('stop', 'worker-b', stopMs)]);
    await this.close();
  }

  async close(): Promise<void> {
    await Promise.all(this.hosts.map((host) => host.close()));
  }
}
