import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { beforeAll, describe, expect, test } from '@jest/globals';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';

let cluster: TestCluster;
const at = { router: '', worker: '' };

beforeAll(async () => {
  cluster = await startCluster({ workers: 1, routers: 1 });
  const { view } = await cluster.client.describeCluster();
  // One router is embedded in the coordinator.
  const apart = (role: string) =>
    view!.nodes.find((node) => node.role === role && node.address !== cluster.address)!;
  at.router = apart('ROUTER').address;
  at.worker = apart('WORKER').address;
});

async function refusal(...args: string[]): Promise<string> {
  const startedMs = performance.now();
  const { status, stderr } = await switchyard(args);
  expect(stderr).toMatch(/^switchyard: [^\n]*\n$/);
  expect(status).toBe(1);
  expect(performance.now() - startedMs).toBeLessThan(20_000);
  return stderr;
}

describe('a server of another role', () => {
  test.each([
    ['router', 'a coordinator', ['drain', 'worker-0']],
    ['router', 'a coordinator', ['rebalance']],
    ['worker', 'a coordinator', ['cordon', 'worker-0']],
    ['worker', 'a coordinator or a router', ['status']],
    ['worker', 'a coordinator or a router', ['forward']],
  ] as const)('at the address: a %s, %s is wanted for %j', async (role, wanted, args) => {
    const stderr = await refusal(...args, '--address', at[role]);
    expect(stderr).toContain(
      `NOT_READY: another kind of server is at ${at[role]}: what listens there does not do this: `,
    );
    expect(stderr.trimEnd().endsWith(`; allowed: the address of ${wanted}`)).toBe(true);
  });

  test.each(['worker', 'router'])('ends a %s that would join it', async (role) => {
    const args = ['--coordinator', at.router, '--port', '0', '--metrics-port', '0', '--log-level', 'silent'];
    const { status, stderr } = await switchyard([role, ...args]);
    expect(stderr).toContain('; allowed: the address of a coordinator\n');
    expect(status).toBe(1);
  });
});

describe('an operator is told', () => {
  test.each([['drain', 'worker-0'], ['rebalance']])('that nobody listens: %s', async (...args) => {
    const stderr = await refusal(...args, '--address', '127.0.0.1:1');
    expect(stderr).toMatch(/NOT_READY: nothing answers at 127\.0\.0\.1:1: .*ECONNREFUSED/);
  });

  test.each([
    ['status'],
    ['plan'],
    ['forward'],
    ['rebalance'],
    ['drain', 'worker-0'],
    ['undrain', 'worker-0'],
    ['cordon', 'worker-0'],
  ])('why each of several addresses does not do: %s', async (...args) => {
    const nobody = ['127.0.0.1:1', '127.0.0.1:2'];
    const stderr = await refusal(...args, '--address', [nobody[0], at.worker, nobody[1]].join(','));
    for (const address of nobody) expect(stderr).toContain(`nothing answers at ${address}: `);
    expect(stderr).toContain(`another kind of server is at ${at.worker}: `);
  });

  test.each([['undrain', 'worker-0'], ['rebalance']])(
    'that what listens says nothing: %s',
    async (...args) => {
      const frozen = createServer(() => {}).listen(0, '127.0.0.1');
      await once(frozen, 'listening');
      const address = `127.0.0.1:${(frozen.address() as AddressInfo).port}`;
      try {
        const stderr = await refusal(...args, '--address', address);
        expect(stderr).toContain(`NOT_READY: nothing answers at ${address}: no answer within 5000 ms`);
      } finally {
        frozen.close();
      }
    },
  );
});
