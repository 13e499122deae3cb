import { afterAll, afterEach, expect, jest, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { LocalProcess } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { UcxPort } from '../../services/transport/ucx/port.js';
import { standStill } from '../support/stand-still.js';
import { until } from '../support/until.js';
import { forward, rowBytes, startCluster, tokens } from './cluster.js';

/** The worker stands still for some seconds, and nobody takes it for dead. */
const leaseMs = 60_000;
const started: LocalProcess[] = [];
afterAll(() => Promise.all(started.map((process) => process.stop(5_000))));
afterEach(() => {
  jest.restoreAllMocks();
});

(native.ucx === null ? test.skip : test)(
  'batches go on while a link that began on gRPC moves to UCX, and logs, metrics and the cluster tell so',
  async () => {
    const { coordinator, routers } = await startCluster({
      workers: 0,
      coordinator: { workers: 1, leaseMs, feedback: false },
      router: { leaseMs },
    });
    const router = routers[0]!;
    const { connect } = UcxPort.prototype;
    // The router's, in this process: the worker is one of its own.
    jest.spyOn(UcxPort.prototype, 'connect').mockImplementationOnce(async function (
      this: UcxPort<unknown, unknown>,
      end,
    ) {
      await standStill(worker);
      await connect.call(this, end);
    });
    const flags = {
      coordinator: coordinator.address,
      name: 'worker-0',
      port: 0,
      metricsPort: 0,
      threads: 1,
      leaseMs,
    };
    const lines: string[] = [];
    const worker = new LocalProcess('worker', 'worker-0', flags, {}, (_, line) => lines.push(line));
    started.push(worker);
    const exposition = async () => (await fetch(`${router.metricsUrl}/metrics`)).text();
    const info = async () => /^switchyard_link_info\{(.*)\} 1$/m.exec(await exposition())?.[1] ?? '';
    // It welcomes the router, stands still, and goes on once the link is open without UCX.
    await until(info, (labels) => labels !== '');
    const before = await info();
    worker.kill('SIGCONT');
    expect(before).toMatch(/transport="grpc",lanes="http2",reason="no way over UCX: no welcome from /);
    const rows = await tokens(256);
    const expected = await forward(router, rows);
    expect(expected.rows.byteLength).toBe(256 * rowBytes);
    for (let moved = false; !moved; ) {
      moved = (await info()).includes('transport="ucx"');
      expect(Buffer.compare((await forward(router, rows)).rows, expected.rows)).toBe(0);
    }
    expect(await info()).toMatch(/transport="ucx",lanes="\w+[^"]*",reason="both ends have UCX"/);
    const text = await exposition();
    for (const transport of ['grpc', 'ucx'])
      for (const direction of ['sent', 'returned'])
        expect(text).toMatch(
          new RegExp(
            `^switchyard_link_messages_total\\{worker="worker-0",direction="${direction}",transport="${transport}"`,
            'm',
          ),
        );
    expect(text).toMatch(/^switchyard_retries_total\S* 0$/m);
    const client = await SwitchyardClient.connect(router.address);
    const links = async () => {
      const { view } = await client.describeCluster();
      return view!.nodes.flatMap(({ links }) => links.map(({ transport }) => transport));
    };
    await until(links, (all) => all.join() === 'UCX');
    await client.close();
    const said = lines.flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []));
    expect(said.filter(({ event }) => event === 'link-moved').at(-1)).toMatchObject({ transport: 'ucx' });
  },
);
