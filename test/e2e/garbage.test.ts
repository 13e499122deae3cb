import { afterEach, expect, test } from '@jest/globals';
import { faultsOf, runGarbage } from '../../bench/garbage.js';
import { Authority, nodeNameOf, operatorName } from '../support/certificates.js';

const authority = new Authority();
const { ca } = authority;
const server = authority.issue('server', ['IP:127.0.0.1', nodeNameOf('*'), operatorName]);
const { NODE_OPTIONS } = process.env;

afterEach(() => {
  if (NODE_OPTIONS === undefined) delete process.env.NODE_OPTIONS;
  else process.env.NODE_OPTIONS = NODE_OPTIONS;
});

/** scripts/check-garbage.mjs does it with 100,000 requests to each port. */
test.each([
  ['without TLS', null],
  ['with TLS', { ca, ...server, clientCa: ca }],
])('garbage at every port, with and without a credential, harms nobody %s', async (_, tls) => {
  const report = await runGarbage({ requests: 200, tls, log: () => {} });
  expect(faultsOf(report)).toEqual([]);
});

/** What every process of a cluster does beside its work when an HTTP request comes. */
function atEachRequest(statement: string): void {
  const program = `import { subscribe } from 'node:diagnostics_channel';
    const kept = [];
    subscribe('http.server.request.start', () => { ${statement} });`;
  process.env.NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(program)}`;
}

test('a process that keeps something of each request is found out', async () => {
  atEachRequest('kept.push(new Array(16_384).fill(0.5))');
  const faults = faultsOf(await runGarbage({ requests: 200, tls: null, log: () => {} }));
  expect(faults.map((fault) => fault.slice(0, fault.indexOf(' and')))).toEqual(
    ['coordinator', 'worker-0', 'router-0'].map((name) => expect.stringContaining(`${name}: heapMiB`)),
  );
});

test('what has not been collected yet is not held', async () => {
  atEachRequest('new Array(131_072).fill(0.5)');
  expect(faultsOf(await runGarbage({ requests: 200, tls: null, log: () => {} }))).toEqual([]);
});
