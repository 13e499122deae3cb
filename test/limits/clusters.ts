import { native } from '../../native/index.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { asSwitchyardError, type SwitchyardError } from '../../services/common/errors.js';
import type { Running } from '../../services/common/lifecycle.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { startCoordinator } from '../../services/coordinator/main.js';
import { routerSchema } from '../../services/router/config.js';
import { startRouter } from '../../services/router/main.js';
import { until } from '../support/until.js';
import { WorkerProcess } from '../support/worker-process.js';
import { type BatchWishes, type ClusterWishes, lengthOf, models } from './extremes.js';

const quiet = { port: 0, metricsPort: 0, logLevel: 'silent', threads: 2 } as const;
const routerTimes = { drainMs: 1_000, readyWaitMs: 2_000 };
/** One for each worker that a cluster may have: its slabs are limited as it is told, and it is started but once. */
const hosts: WorkerProcess[] = [];

export async function endHosts(): Promise<void> {
  await Promise.all(hosts.splice(0).map((host) => host.kill()));
}

/** What came of a batch: its answer, or why there is none. */
export interface Outcome {
  rows: Buffer;
  experts: Uint32Array;
  weights: Float32Array;
  messages: number;
  error: SwitchyardError | null;
}

interface RouterState {
  ready: boolean;
  reason: string;
  batches: number;
  budget: { used: number };
  links: { messagesSent: number; bytesOutstanding: number }[];
}

export interface Cluster {
  wishes: ClusterWishes;
  routers: Running[];
  workersAt: string[];
}

/** Starts a cluster, lets `use` have it when its routers are ready or say why not, and stops it. */
export async function withCluster<T>(
  wishes: ClusterWishes,
  use: (cluster: Cluster) => Promise<T>,
): Promise<T> {
  const { tokensMax: _, ...model } = models[wishes.model]!;
  const { workers } = wishes;
  const cluster: Cluster = { wishes, routers: [], workersAt: [] };
  const coordinator = await startCoordinator(
    coordinatorSchema.parse({ ...quiet, ...model, workers, router: false, feedback: false }),
  );
  try {
    while (hosts.length < workers) hosts.push(new WorkerProcess());
    const of = { ...quiet, coordinator: coordinator.address };
    for (const [index, host] of hosts.slice(0, workers).entries()) {
      const config = { ...of, drainMs: 1_000, ...wishes.worker, threads: 1, name: `worker-${index}` };
      cluster.workersAt.push((await host.start(config)).metricsUrl);
    }
    for (let index = 0; index < wishes.routers; index += 1) {
      const config = { ...of, ...routerTimes, ...wishes.router, name: `router-${index}` };
      cluster.routers.push(await startRouter(routerSchema.parse(config)));
    }
    await untilReady(cluster);
    return await use(cluster);
  } finally {
    await Promise.all(cluster.routers.map((router) => router.stop('the test is over')));
    await Promise.all(hosts.slice(0, cluster.workersAt.length).map((host) => host.stop()));
    await coordinator.stop('the test is over');
  }
}

/** Every router is ready, or has no window at a worker and says so. */
async function untilReady({ routers }: Cluster): Promise<void> {
  await until(
    () => Promise.all(routers.map((router) => read<RouterState>(router.metricsUrl))),
    (all) => all.every(({ ready, reason }) => ready || reason.includes('slabBytes')),
  );
}

/** Nothing is held for anybody any more. Resolves with the token batches that were sent. */
export async function untilIdle({ routers, workersAt }: Cluster): Promise<number> {
  const states = await until(
    () => Promise.all(routers.map((router) => read<RouterState>(router.metricsUrl))),
    (all) =>
      all.every(
        ({ batches, budget, links }) =>
          batches === 0 && budget.used === 0 && links.every(({ bytesOutstanding }) => bytesOutstanding === 0),
      ),
  );
  await until(
    () => Promise.all(workersAt.map((url) => read<{ slabs: { bytesInUse: number } }>(url))),
    (all) => all.every(({ slabs }) => slabs.bytesInUse === 0),
  );
  return states.flatMap(({ links }) => links).reduce((sum, { messagesSent }) => sum + messagesSent, 0);
}

async function read<T>(url: string): Promise<T> {
  return (await (await fetch(`${url}/state`)).json()) as T;
}

/** The tokens that all batches of a model have, from the first on. */
export async function inputOf(model: number): Promise<Buffer> {
  const { hidden, tokensMax: count } = models[model]!;
  const slab = await native.synthesizeTokens({
    seed: 3,
    firstToken: 0,
    count,
    hidden,
    skew: 1.2,
    topics: 16,
  });
  const rows = Buffer.from(slab.view());
  slab.release();
  return rows;
}

/** Sends one batch through the first router that takes it, by a client of its own. */
export async function send(
  { wishes, routers }: Cluster,
  batch: BatchWishes,
  input: Buffer,
  reference: Outcome | null,
): Promise<Outcome> {
  const { hidden, topK, layers } = models[wishes.model]!;
  const perToken = topK * layers;
  const { sequences, combine, given, returnRouting, chunkTokens, transport } = batch;
  const length = lengthOf(wishes, batch);
  const count = sequences * length;
  const outcome: Outcome = {
    rows: Buffer.alloc(count * hidden * 2),
    experts: new Uint32Array(count * perToken),
    weights: new Float32Array(count * perToken),
    messages: 0,
    error: null,
  };
  const client = await SwitchyardClient.connect(routers[0]!.address, { transport });
  try {
    const call = await client.forward(new Uint8Array(input.subarray(0, outcome.rows.byteLength)), {
      sequences,
      length,
      combine,
      returnRouting,
      chunkTokens,
      ...(given &&
        reference && {
          given: (first: number, tokens: number) => ({
            experts: reference.experts.slice(first * perToken, (first + tokens) * perToken),
            weights: reference.weights.slice(first * perToken, (first + tokens) * perToken),
          }),
        }),
    });
    const summary = await call.into({
      write: (first, rows, routing) => {
        outcome.rows.set(rows, first * hidden * 2);
        if (routing === null) return;
        outcome.experts.set(routing.experts, first * perToken);
        outcome.weights.set(routing.weights, first * perToken);
      },
    });
    outcome.messages = summary.messagesSent;
  } catch (error) {
    outcome.error = asSwitchyardError(error);
  } finally {
    await client.close();
  }
  return outcome;
}
