import { sleep } from '../../services/common/lifecycle.js';
import type { ChaosCluster } from './cluster.js';

/** What happens to a process: `forMs` later it is started again, or goes on. */
export interface Fault {
  kind: 'kill' | 'stop' | 'end' | 'cut';
  process: string;
  forMs: number;
}

const signals = { kill: 'SIGKILL', stop: 'SIGSTOP', end: 'SIGTERM' } as const;
const kinds = ['kill', 'kill', 'stop', 'stop', 'end'] as const;
const kindsWithCables = [...kinds, 'cut', 'cut', 'cut'] as const;
/** A process that is stopped for longer than its lease is dead, and has to find back. */
const longestOfLeases = 3;

/** One of the cluster's workers, or its coordinator, by chance. Routers stay: a batch lives in one of them. */
export function drawFault(
  random: () => number,
  workers: readonly string[],
  { leaseMs, cables }: { leaseMs: number; cables: boolean },
): Fault {
  const among = [...workers, 'coordinator'];
  const drawn = cables ? kindsWithCables : kinds;
  const kind = drawn[Math.floor(random() * drawn.length)]!;
  const process = among[Math.floor(random() * among.length)]!;
  return { kind, process, forMs: Math.round(random() * leaseMs * longestOfLeases) };
}

/** Resolves when the process runs again. */
export async function inject({ kind, process, forMs }: Fault, cluster: ChaosCluster): Promise<void> {
  if (kind === 'cut') {
    await cluster.plug(process, 'down');
    await sleep(forMs);
    await cluster.plug(process, 'up');
    return;
  }
  cluster.signal(process, signals[kind]);
  if (kind === 'stop') {
    await sleep(forMs);
    cluster.signal(process, 'SIGCONT');
    return;
  }
  await cluster.ended(process);
  await sleep(forMs);
  cluster.launch(process);
}

export function describeFault({ kind, process, forMs }: Fault): string {
  const what = kind === 'cut' ? 'cable of' : signals[kind];
  return `${what} ${process}, ${kind === 'stop' ? 'on' : 'again'} after ${forMs} ms`;
}
