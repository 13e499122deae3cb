import { afterAll } from '@jest/globals';
import { LocalCluster, type LocalClusterOptions } from '../../services/cli/local-cluster.js';
import type { Flags, LocalProcess } from '../../services/cli/local-process.js';
import type { SwitchyardClient } from '../../services/client/index.js';
import type { Tokens } from '../../services/common/access.js';
import type { LinkDescription } from '../../services/common/generated/switchyard/v1/LinkDescription.js';
import type { TlsSettings } from '../../services/common/tls.js';

export interface TestClusterOptions {
  /** Flags of the coordinator: model, sizes, feedback. Default: the preset `tiny`. */
  coordinator?: Flags;
  worker?: Flags;
  router?: Flags;
  workers?: number;
  /** Router processes beside the embedded one. */
  routers?: number;
  tokens?: Tokens;
  tls?: TlsSettings;
}

const readyTimeoutMs = 60_000;
/** How long a machine that is busy with other things may keep a process from running. Tests of leases have their own. */
const leaseMs = 60_000;
const running = new Set<TestCluster>();

/** A real cluster of processes from dist/, on free ports. A test file's clusters are stopped after its last test. */
export async function startCluster(options: TestClusterOptions = {}): Promise<TestCluster> {
  const lines: string[] = [];
  const node = { port: 0, metricsPort: 0, leaseMs };
  const all: LocalClusterOptions = {
    workers: options.workers ?? 2,
    routers: options.routers ?? 0,
    threads: 1,
    coordinator: { preset: 'tiny', ...node, ...options.coordinator },
    router: { ...node, ...options.router },
    worker: { ...node, ...options.worker },
    ...(options.tokens && { tokens: options.tokens }),
    ...(options.tls && { tls: options.tls }),
    readyTimeoutMs,
    onLine: (process, line) => lines.push(`${process.name} ${line}`),
  };
  try {
    const cluster = new TestCluster(await LocalCluster.start(all), lines);
    running.add(cluster);
    return cluster;
  } catch (error) {
    process.stderr.write(`${lines.join('\n')}\n`);
    throw error;
  }
}

afterAll(async () => {
  await Promise.all([...running].map((cluster) => cluster.stop()));
});

export class TestCluster {
  constructor(
    private readonly cluster: LocalCluster,
    /** Everything the processes printed, each line behind the process's name. */
    readonly lines: readonly string[],
  ) {}

  get client(): SwitchyardClient {
    return this.cluster.client;
  }

  /** host:port of the coordinator. */
  get address(): string {
    return this.cluster.address;
  }

  get metricsUrl(): string {
    return this.cluster.metricsUrl;
  }

  get processes(): readonly LocalProcess[] {
    return this.cluster.processes;
  }

  /** The process of that name: coordinator, worker-0, router-0 … */
  process(name: string): LocalProcess {
    const found = this.processes.find((process) => process.name === name);
    if (!found)
      throw new Error(`no process ${name}; there are ${this.processes.map(({ name }) => name).join(' ')}`);
    return found;
  }

  /** The links of all routers, once the coordinator knows that they are open. */
  async links(): Promise<({ router: string } & LinkDescription)[]> {
    const counts = { router: 0, worker: 0 };
    for (const { role } of this.processes) counts[role === 'worker' ? 'worker' : 'router'] += 1;
    for (let tries = 0; tries < 200; tries += 1) {
      const { view } = await this.client.describeCluster();
      const links = view!.nodes.flatMap((node) => node.links.map((link) => ({ router: node.name, ...link })));
      const open = links.filter(({ transport }) => transport !== 'NO_LINK');
      if (open.length === counts.router * counts.worker) return open;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    throw new Error('not every router has a link to every worker, or the coordinator does not know it');
  }

  /** Sends the signal and resolves when the process has ended. */
  async kill(name: string, signal: NodeJS.Signals = 'SIGKILL') {
    const process = this.process(name);
    process.kill(signal);
    return process.exited;
  }

  async stop(): Promise<void> {
    running.delete(this);
    await this.cluster.stop();
  }

  /** Prints what the processes said; for a test that is about to fail. */
  dump(): void {
    process.stderr.write(`${this.lines.join('\n')}\n`);
  }
}
