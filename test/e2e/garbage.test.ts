import { expect, test } from '@jest/globals';
import { faultsOf, runGarbage } from '../../bench/garbage.js';
import { Authority, nodeNameOf, operatorName } from '../support/certificates.js';

const authority = new Authority();
const { ca } = authority;
const server = authority.issue('server', ['IP:127.0.0.1', nodeNameOf('*'), operatorName]);

/** scripts/check-garbage.mjs does it with 100,000 requests to each port. */
test.each([
  ['without TLS', null],
  ['with TLS', { ca, ...server, clientCa: ca }],
])('garbage at every port, with and without a credential, harms nobody %s', async (_, tls) => {
  const report = await runGarbage({ requests: 200, tls, log: () => {} });
  expect(faultsOf(report)).toEqual([]);
});
