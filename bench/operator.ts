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
const pollMs = 50;

/** Has the coordinator plan for the load that it knows, and resolves when as many copies serve as it wants. */
export async function rebalanceByLoad(
  client: SwitchyardClient,
  coordinator: string,
  token: string | null,
): Promise<void> {
  const { toLoad, toDrop } = await ask<RebalanceAnswer>(coordinator, token, (operator, options, answer) =>
    operator.Rebalance({}, options, answer),
  );
  const placed = async () => {
    const { layers } = (await client.describeCluster({ placement: true })).view!.placement!;
    return layers.flatMap(({ copies }) => copies).reduce((sum, one) => sum + one, 0);
  };
  const isMoving = async () => {
    const { view } = await client.describeCluster();
    return view!.nodes.some(({ loading, draining }) => loading + draining > 0);
  };
  const wanted = (await placed()) + toLoad - toDrop;
  while ((await placed()) !== wanted || (await isMoving())) await sleep(pollMs);
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
  const wanted = JSON.stringify(target);
  for (const end = performance.now() + withinMs; ; await sleep(pollMs)) {
    const { view } = await client.describeCluster({ placement: true });
    const { workers = [], layers = [] } = view?.placement ?? {};
    const present = layers.map((layer) => ({
      layer: layer.layer,
      workersOf: listCopies(layer).map((holders) => holders.map((worker) => workers[worker]!).sort()),
    }));
    if (JSON.stringify(present) === wanted) return;
    if (performance.now() > end) throw new Error(`copies are not where they shall be after ${withinMs} ms`);
  }
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
