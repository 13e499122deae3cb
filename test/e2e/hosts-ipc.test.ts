import { describe, expect, test } from '@jest/globals';
import { HostCluster } from '../../bench/hosts/cluster.js';
import { whyNoHosts } from '../../bench/hosts/host.js';
import { native } from '../../native/index.js';
import { Authority, clientName, nodeNameOf } from '../support/certificates.js';

const obstacle = native.ucx === null ? 'the addon is built without UCX' : whyNoHosts();
if (obstacle !== null) process.stderr.write(`two hosts that share memory are not tested: ${obstacle}\n`);

const authority = new Authority();
const names = ['IP:10.77.0.1', 'IP:10.77.0.2', clientName, nodeNameOf('*')];
const tls = { ca: authority.ca, ...authority.issue('all', names), clientCa: authority.ca };

/** As containers with the machine's IPC namespace and a network each: UCX's shared memory joins them, and wakes neither. */
(obstacle === null ? describe : describe.skip)('two hosts that share memory and no network namespace', () => {
  test.each([
    { lanes: 'stream tcp', settings: {} },
    { lanes: 'tls tcp', settings: { tls } },
  ])(
    'reach each other by $lanes, and each its own processes by shared memory',
    async ({ lanes, settings }) => {
      const cluster = await HostCluster.start({
        preset: 'tiny',
        sharesIpc: true,
        flags: { transport: 'ucx' },
        ...settings,
      });
      try {
        const { hosts } = cluster;
        await Promise.all(hosts.map((host) => host.call('prepare', 'tiny', 64)));
        const batch = { chunkTokens: 64, combine: 'exact', feedback: false } as const;
        const digests = await Promise.all(hosts.map((host) => host.call('digest', batch)));
        expect(digests[0]).toBe(digests[1]);
        for (const [index, own] of ['a', 'b'].entries()) {
          const lines = (await hosts[index]!.call('lines', `router-${own}`)).map((line) => JSON.parse(line));
          const open = lines.filter(({ event }) => event === 'link-open');
          const found = new Map<string, string>(open.map(({ worker, lanes }) => [worker, lanes]));
          expect(found.size).toBe(2);
          for (const [worker, names] of found)
            if (worker === `worker-${own}`) expect(names).toMatch(/sysv|posix/);
            else expect(names).toBe(lanes);
        }
      } finally {
        await cluster.stop();
      }
    },
  );
});
