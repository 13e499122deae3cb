import { type ClusterDescription, SwitchyardClient } from '../client/index.js';
import { sleep } from '../common/lifecycle.js';
import type { PresentedCredential } from './connection.js';
import { type ClusterRules, rulesOf } from './plan-input.js';
import { describeMeasured, type Recording, recordCluster } from './recording.js';

/** Rows of each expert, by layer. */
type Rows = Map<number, number[]>;

interface Snapshot {
  atMs: number;
  /** By router. */
  routed: Map<string, Rows>;
}

/** What all routers of a cluster send to its experts within some seconds, where the experts are then, and what it says of its plans. */
export async function measureLoad(
  client: SwitchyardClient,
  credential: PresentedCredential,
  seconds: number,
): Promise<{ recording: Recording; rules: ClusterRules }> {
  const before = await lookAt(client, credential);
  await sleep(seconds * 1000);
  const after = await lookAt(client, credential);
  const cluster = await describeMeasured(client);
  const recorded = recordCluster(cluster);
  const layers = recorded.layers.map((layer) => {
    const rows = new Array<number>(layer.workersOf.length).fill(0);
    for (const [router, routed] of after.routed) {
      const known = before.routed.get(router)?.get(layer.layer);
      for (const [expert, count] of routed.get(layer.layer)?.entries() ?? []) {
        const grown = count - (known?.[expert] ?? 0);
        // A router that was started anew counts from 0.
        rows[expert]! += grown < 0 ? count : grown;
      }
    }
    return { ...layer, rows, choices: null };
  });
  const recording = { ...recorded, layers, seconds: (after.atMs - before.atMs) / 1000 };
  return { recording, rules: rulesOf(cluster.view) };
}

/** Every router tells of itself; the one that answers does so at once. */
async function lookAt(client: SwitchyardClient, credential: PresentedCredential): Promise<Snapshot> {
  const cluster = await client.describeCluster({ placement: true });
  const routed = new Map<string, Rows>();
  const take = ({ router, routed: layers }: ClusterDescription) =>
    routed.set(router, new Map(layers.map(({ layer, rows }) => [layer, rows])));
  if (cluster.router !== '') take(cluster);
  const others = (cluster.view?.nodes ?? []).filter(
    ({ role, state, name }) =>
      role === 'ROUTER' && (state === 'READY' || state === 'JOINING') && name !== cluster.router,
  );
  await Promise.all(
    others.map(async ({ address }) => {
      const router = await SwitchyardClient.connect(address, credential);
      try {
        take(await router.describeCluster({ placement: true }));
      } finally {
        router.destroy();
      }
    }),
  );
  return { atMs: performance.now(), routed };
}
