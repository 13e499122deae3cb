import { afterEach, expect, test } from '@jest/globals';
import { fixedPort } from '../../bench/fixed-port.js';
import { type Flags, LocalProcess, type ProcessRole } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { Load } from '../support/load.js';
import { until } from '../support/until.js';

const started: LocalProcess[] = [];
const clients: SwitchyardClient[] = [];
const lines: string[] = [];

afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy();
  await Promise.all(started.splice(0).map((process) => process.stop(5_000)));
});

function start(role: ProcessRole, name: string, flags: Flags): LocalProcess {
  const all = { name, metricsPort: 0, port: 0, ...flags };
  const process = new LocalProcess(role, name, all, {}, (_, line) => lines.push(line));
  started.push(process);
  return process;
}

/** Of one of the coordinators: its log lines of an event. */
const logged = (event: string) =>
  lines
    .flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []))
    .filter((line) => line.event === event);

test.each(['SIGKILL', 'SIGTERM'] as const)(
  'a coordinator that ends by %s and is started again under load costs no batch, and no expert moves',
  async (signal) => {
    lines.length = 0;
    const workers = ['worker-0', 'worker-1', 'worker-2'];
    const port = await fixedPort();
    const flags = { preset: 'tiny', router: false, workers: workers.length, rebalanceSeconds: 3_600, port };
    const first = start('coordinator', 'coordinator', flags);
    const { address } = await first.listening;
    for (const name of workers) start('worker', name, { coordinator: address, threads: 1 });
    const router = start('router', 'router-0', { coordinator: address });
    const client = await SwitchyardClient.connect((await router.listening).address);
    clients.push(client);
    const state = async () => (await client.describeCluster({ placement: true })).view!;
    await client.waitUntilReady(120_000);
    const load = await Load.start(client);
    await load.more(4);
    const before = await state();
    first.kill(signal);
    await first.exited;
    await load.more(8);
    start('coordinator', 'coordinator', flags);
    const after = await until(state, ({ term, ready }) => term > before.term && ready);
    await load.more(8);
    await load.stop();

    const byName = ({ placement }: typeof before) => {
      const { workers: names, layers } = placement!;
      return layers.map(({ layer, copies, workers }) => ({
        layer,
        copies,
        workers: workers.map((at) => names[at]),
      }));
    };
    expect(byName(after)).toEqual(byName(before));
    // The same experts are told again; none is loaded, none is dropped.
    for (const name of workers)
      expect(logged('experts-loaded').filter(({ node, name: own }) => (own ?? node) === name)).toHaveLength(
        1,
      );
    expect(logged('expert-dropped')).toEqual([]);
  },
);
