import type { SwitchyardClient } from '../services/client/index.js';
import { listCopies } from '../services/common/expert-copies.js';
import type { PlacementInput } from '../services/common/generated/switchyard/v1/Placement.js';
import type { RebalanceAnswer } from '../services/common/generated/switchyard/v1/RebalanceAnswer.js';
import type { WorkerMark } from '../services/common/generated/switchyard/v1/WorkerMark.js';
import { connect } from '../services/common/grpc-channel.js';
import { sleep } from '../services/common/lifecycle.js';
import { clients } from '../services/common/protocol.js';
import type { CopiesByName } from './hosts/calls.js';

const messageBytesMax = 1024 * 1024;
const withinMs = 60_000;
/** Rarely, since who asks shares the cores with what is measured. */
const pollMs = 500;

/** Has the coordinator plan for the load that it knows, and resolves when the copies that it wants serve, and no others. */
export async function rebalanceByLoad(
  client: SwitchyardClient,
  coordinator: string,
  token: string | null,
): Promise<void> {
  const before = await servingCopies(client);
  const { toLoad, toDrop } = await ask<RebalanceAnswer>(coordinator, token, (operator, options, answer) =>
    operator.Rebalance({}, options, answer),
  );
  await untilPlaced(async () => {
    const now = await servingCopies(client);
    return missing(now, before) === toLoad && missing(before, now) === toDrop;
  });
}

/** Asks the coordinator for these copies, and resolves when they serve, and no others. */
export async function rebalance(
  client: SwitchyardClient,
  coordinator: string,
  token: string | null,
  target: readonly CopiesByName[],
): Promise<void> {
  await ask<RebalanceAnswer>(coordinator, token, (operator, options, answer) =>
    operator.Rebalance({ target: placementOf(target) }, options, answer),
  );
  const wanted = new Set(
    target.flatMap(({ layer, workersOf }) =>
      workersOf.flatMap((workers, expert) => workers.map((worker) => nameOf(layer, expert, worker))),
    ),
  );
  await untilPlaced(async () => {
    const now = await servingCopies(client);
    return missing(now, wanted) + missing(wanted, now) === 0;
  });
}

const nameOf = (layer: number, expert: number, worker: string) => `${layer}/${expert}/${worker}`;

async function servingCopies(client: SwitchyardClient): Promise<Set<string>> {
  const { view } = await client.describeCluster({ placement: true });
  const { workers = [], layers = [] } = view?.placement ?? {};
  const copies = layers.flatMap((layer) =>
    listCopies(layer).flatMap((holders, expert) =>
      holders.map((worker) => nameOf(layer.layer, expert, workers[worker]!)),
    ),
  );
  return new Set(copies);
}

/** How many of `some` are not in `others`. */
const missing = (some: Set<string>, others: Set<string>) =>
  [...some].filter((copy) => !others.has(copy)).length;

async function untilPlaced(placed: () => Promise<boolean>): Promise<void> {
  for (const end = performance.now() + withinMs; !(await placed()); await sleep(pollMs))
    if (performance.now() > end) throw new Error(`copies are not where they shall be after ${withinMs} ms`);
}

/** Says what an operator wants of a worker. */
export function mark(
  coordinator: string,
  token: string | null,
  worker: string,
  wanted: WorkerMark,
): Promise<unknown> {
  return ask(coordinator, token, (operator, options, answer) =>
    operator.MarkWorker({ worker, mark: wanted }, options, answer),
  );
}

async function ask<Answer>(
  coordinator: string,
  token: string | null,
  call: (
    operator: InstanceType<typeof clients.Operator>,
    options: { deadline: number },
    answer: (error: Error | null, value?: Answer) => void,
  ) => unknown,
): Promise<Answer> {
  const operator = connect(clients.Operator, coordinator, { token, messageBytesMax });
  try {
    return await new Promise((resolve, reject) => {
      const answer = (error: Error | null, value?: Answer) =>
        error === null ? resolve(value!) : reject(error);
      call(operator, { deadline: Date.now() + withinMs }, answer);
    });
  } finally {
    operator.close();
  }
}

function placementOf(target: readonly CopiesByName[]): PlacementInput {
  const workers = [...new Set(target.flatMap(({ workersOf }) => workersOf.flat()))].sort();
  return {
    workers,
    layers: target.map(({ layer, workersOf }) => ({
      layer,
      copies: workersOf.map(({ length }) => length),
      workers: workersOf.flat().map((name) => workers.indexOf(name)),
    })),
  };
}
