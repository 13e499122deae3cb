import { spawn } from 'node:child_process';
import { afterEach, expect, jest, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { builtFile } from '../../native/locate.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { UnreachableByUcx } from '../../services/client/ucx.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { UcxPort } from '../../services/transport/ucx/port.js';
import { startCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';
import { standStill } from '../support/stand-still.js';
import { until } from '../support/until.js';

const onUcx = native.ucx === null ? test.skip : test;
const hidden = 64;
const rows = Buffer.from(testRows(16, hidden).buffer);
const options = { feedback: false } as const;
const clients: SwitchyardClient[] = [];

afterEach(() => {
  jest.restoreAllMocks();
  for (const client of clients.splice(0)) client.destroy();
});

async function connected(address: string): Promise<SwitchyardClient> {
  const client = await SwitchyardClient.connect(address, { transport: 'auto' });
  clients.push(client);
  await client.waitUntilReady(60_000);
  return client;
}

/** Does something before this process's next channel connects, which is a client's. */
function beforeConnect(act: () => Promise<void> | void): void {
  const { connect } = UcxPort.prototype;
  jest.spyOn(UcxPort.prototype, 'connect').mockImplementationOnce(async function (
    this: UcxPort<unknown, unknown>,
    end,
  ) {
    await act();
    await connect.call(this, end);
  });
}

function clusterOfOneRouter() {
  const nodes = { transport: 'auto' };
  return startCluster({
    workers: 1,
    routers: 1,
    coordinator: { preset: 'tiny', hidden, router: false },
    router: nodes,
    worker: nodes,
  });
}

onUcx(
  'a session whose router stood still as UCX was tried begins over gRPC, and goes on over UCX',
  async () => {
    const cluster = await clusterOfOneRouter();
    const router = cluster.process('router-0');
    const client = await connected(cluster.address);
    beforeConnect(() => standStill(router));
    jest.spyOn(UnreachableByUcx.prototype, 'add').mockImplementationOnce(function (
      this: UnreachableByUcx,
      name,
    ) {
      this.add(name);
      router.kill('SIGCONT');
    });
    const session = client.session();
    const first = await session.forward(rows, options);
    expect(first.summary.routers).toMatchObject([{ transport: 'grpc' }]);
    const ways = new Set<string>();
    // Always several under way: none is lost as the session moves.
    const lane = async () => {
      for (let since = 0; since < 20; ) {
        const { rows: answers, summary } = await session.forward(rows, options);
        expect(Buffer.compare(answers, first.rows)).toBe(0);
        const { transport } = summary.routers[0]!;
        ways.add(transport);
        if (transport === 'ucx') since += 1;
      }
    };
    await Promise.all(Array.from({ length: 4 }, lane));
    expect(ways).toEqual(new Set(['grpc', 'ucx']));
    const sessions = async () => {
      const { metricsUrl } = await router.listening;
      return ((await (await fetch(`${metricsUrl}/state`)).json()) as { sessions: number }).sessions;
    };
    // The one without UCX has ended.
    await until(sessions, (count) => count === 1);
    // Calls of their own take UCX too, without waiting for the minute in which they would have left it alone.
    const { summary } = await (await client.forward(Buffer.concat(Array(128).fill(rows)), options)).collect();
    expect(summary.routers).toMatchObject([{ transport: 'ucx' }]);
    await session.close();
    await until(sessions, (count) => count === 0);
  },
);

onUcx('small batches of forward() come to UCX later, too', async () => {
  const cluster = await clusterOfOneRouter();
  const client = await connected(cluster.address);
  beforeConnect(() => {
    throw new SwitchyardError('LINK_LOST', 'it was slow');
  });
  const transport = async () => {
    const { summary } = await (await client.forward(rows, options)).collect();
    return summary.routers[0]!.transport;
  };
  expect(await transport()).toBe('grpc');
  await until(transport, (by) => by === 'ucx');
});

/** A program whose session began over gRPC, and which has nothing more to do while UCX is tried again, or once it was. */
const program = `
  const [client, port, address, then] = process.argv.slice(1);
  const { SwitchyardClient } = await import(client);
  const { UcxPort } = await import(port);
  const { connect } = UcxPort.prototype;
  let again = null;
  UcxPort.prototype.connect = function (end) {
    if (again === null) throw Object.assign(new Error('it was slow'), { code: 'LINK_LOST' });
    again();
    return then === 'hangs' ? new Promise(() => {}) : connect.call(this, end);
  };
  const session = (await SwitchyardClient.connect(address, { transport: 'auto' })).session();
  const by = async () => (await session.forward(new Uint8Array(512))).summary.routers[0].transport;
  console.log(await by());
  const tried = new Promise((resolve) => { again = resolve; });
  const trying = setInterval(by, 100);
  await tried;
  clearInterval(trying);
`;

onUcx.each(['hangs', 'comes'])('a try that %s keeps no process alive', async (then) => {
  const { address } = await clusterOfOneRouter();
  const modules = [
    builtFile('services', 'client', 'index.js'),
    builtFile('services', 'transport', 'ucx', 'port.js'),
  ];
  const args = ['--input-type=module', '-e', program, ...modules, address, then];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (text) => {
    said += text;
  });
  const code = await new Promise((resolve) => child.once('exit', resolve));
  expect([code, said.trim()]).toEqual([0, 'grpc']);
});
