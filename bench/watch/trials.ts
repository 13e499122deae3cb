import { sleep } from '../../services/common/lifecycle.js';
import type { ChaosCluster } from '../chaos/cluster.js';
import type { Prometheus } from './prometheus.js';
import type { Traffic } from './traffic.js';

/** A fault by which an alert is made to fire, and what mends it. */
export interface Trial {
  alerts: readonly string[];
  fault: string;
  inject(): Promise<void>;
  mend(): Promise<void>;
}

/** What a worker with room for two thirds of the experts of the preset `tiny` has for weights, and a little more. */
export const tightMemory = '9MB';

/** Shorter than the lease, and longer than any answer takes: others get the rows. */
const pauseMs = 1_300;

/** A cluster that Prometheus scrapes. */
export interface Watched {
  cluster: ChaosCluster;
  traffic: Traffic;
  prometheus: Prometheus;
  /** Scrapes the processes that there are now. */
  retarget: () => Promise<void>;
}

/** On a cluster of three workers with two copies of each expert, one router, and `tightMemory`. */
export function faultTrials({ cluster, traffic, retarget }: Watched): Trial[] {
  const [first, second, third] = cluster.workers as [string, string, string];
  const [router] = cluster.routers as [string];
  const end = async (signal: NodeJS.Signals, names: readonly string[]) => {
    for (const name of names) cluster.signal(name, signal);
    await Promise.all(names.map((name) => cluster.ended(name)));
  };
  const launch = async (names: readonly string[], extra = {}) => {
    for (const name of names) cluster.launch(name, extra);
    await retarget();
  };
  const restart = async (name: string, extra = {}) => {
    await end('SIGTERM', [name]);
    await launch([name], extra);
  };
  return [
    {
      alerts: ['SwitchyardWorkerLost'],
      fault: `SIGKILL ${first}`,
      inject: () => end('SIGKILL', [first]),
      mend: () => launch([first]),
    },
    {
      alerts: ['SwitchyardExpertWithoutCopy', 'SwitchyardNotReady'],
      fault: `SIGKILL ${first} and ${second}, and the third has no memory for all experts`,
      inject: () => end('SIGKILL', [first, second]),
      mend: () => launch([first, second]),
    },
    {
      alerts: ['SwitchyardRowsDropped'],
      fault: `SIGSTOP ${third} for ${pauseMs} ms under load`,
      inject: async () => {
        traffic.start(2);
        await sleep(pauseMs);
        cluster.signal(third, 'SIGSTOP');
        await sleep(pauseMs);
        cluster.signal(third, 'SIGCONT');
      },
      mend: () => traffic.stop(),
    },
    {
      alerts: ['SwitchyardNothingMoves'],
      fault: 'SIGSTOP all workers, with batches under way',
      inject: async () => {
        traffic.start(2);
        await sleep(pauseMs);
        for (const worker of cluster.workers) cluster.signal(worker, 'SIGSTOP');
      },
      mend: async () => {
        for (const worker of cluster.workers) cluster.signal(worker, 'SIGCONT');
        await traffic.stop();
      },
    },
    {
      alerts: ['SwitchyardWithoutLeader'],
      fault: 'SIGKILL coordinator',
      inject: () => end('SIGKILL', ['coordinator']),
      mend: () => launch(['coordinator']),
    },
    {
      alerts: ['SwitchyardLinkSlower'],
      fault: `${second} is started again with --transport grpc`,
      inject: () => restart(second, { transport: 'grpc' }),
      mend: () => restart(second),
    },
    {
      alerts: ['SwitchyardCreditStarvation'],
      fault: `${third} is started again with little credit, under load`,
      inject: async () => {
        await restart(third, { linkWindowBytes: '512KiB' });
        traffic.start(4);
      },
      mend: async () => {
        await traffic.stop();
        await restart(third);
      },
    },
    {
      alerts: ['SwitchyardEventLoopBusy'],
      fault: `many clients with chunks of 4 tokens over gRPC at ${router}`,
      inject: async () => traffic.start(16, { chunkTokens: 4, transport: 'grpc' }),
      mend: () => traffic.stop(),
    },
  ];
}
