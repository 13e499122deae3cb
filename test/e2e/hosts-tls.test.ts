import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { repeatedRows } from '../../bench/batch.js';
import { linkDevice } from '../../bench/hosts/calls.js';
import { HostCluster } from '../../bench/hosts/cluster.js';
import { type Host, whyNoHosts } from '../../bench/hosts/host.js';
import type { TlsSettings } from '../../services/common/tls.js';
import { presets } from '../../services/model/synthetic.js';
import { Authority, clientName, nodeNameOf } from '../support/certificates.js';
import { works } from '../support/services.js';
import { until } from '../support/until.js';

const obstacle = whyNoHosts();
if (obstacle !== null) process.stderr.write(`rows between two hosts are not looked at: ${obstacle}\n`);
const able =
  obstacle === null && works('what two hosts send each other, as the wire shows it', 'tcpdump', '--version');

const tokens = 256;
const batchName = 'a-name-in-the-clear';
const authority = new Authority();

/** Everything that a host's cable carries, as bytes, while `work` goes on. */
async function captured(host: Host, file: string, work: () => Promise<unknown>): Promise<Buffer> {
  const capture = ['-i', linkDevice, '-s', '0', '-U', '--immediate-mode', '-B', '65536', '-w', file];
  const reader = spawn('nsenter', ['-t', String(host.pid), '-n', 'tcpdump', ...capture], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  await said(reader, 'listening on');
  await work();
  // The last packets may be on their way to the file.
  let size = -1;
  await until(async () => {
    const before = size;
    size = readFileSync(file).byteLength;
    return size > 0 && size === before;
  });
  reader.kill();
  await once(reader, 'exit');
  return readFileSync(file);
}

async function said(child: ChildProcess, words: string): Promise<void> {
  let text = '';
  child.stderr!.on('data', (data) => {
    text += data;
  });
  await until(() => text.includes(words));
}

/** What the router of the second host uses to reach the worker of the first, and what the cable shows of a batch. */
async function run(settings: { tls?: TlsSettings; flags?: Record<string, boolean | string> }) {
  const cluster = await HostCluster.start({ preset: 'tiny', ...settings });
  try {
    const { hosts } = cluster;
    await Promise.all(hosts.map((host) => host.call('prepare', 'tiny', tokens)));
    const batch = { chunkTokens: 64, combine: 'exact', feedback: false, norm: false } as const;
    let digests: string[] = [];
    const file = join(authority.directory, 'wire');
    const wire = await captured(hosts[0], file, async () => {
      const named = (host: Host) => ({ ...batch, batchId: `${batchName}-${host.name}` });
      digests = await Promise.all(hosts.map((host) => host.call('digest', named(host))));
    });
    const lines = (await hosts[1].call('lines', 'router-b')).map((line) => JSON.parse(line));
    const link = lines.find(({ event, worker }) => event === 'link-open' && worker === 'worker-a');
    return { wire, digest: digests[0], same: digests[0] === digests[1], link };
  } finally {
    await cluster.stop();
  }
}

(able ? describe : describe.skip)('what two hosts send each other', () => {
  test('shows rows without TLS, and none with it', async () => {
    const { hidden } = presets.tiny.model;
    const rows = await (await repeatedRows(hidden, tokens)).read(0, tokens);
    const parts = Array.from({ length: tokens }, (_, row) =>
      Buffer.from(rows.buffer, rows.byteOffset + row * hidden * 2 + 64, 32),
    );
    const seen = (wire: Buffer) => parts.filter((part) => wire.includes(part)).length;
    const plain = await run({});
    expect(plain.same).toBe(true);
    expect(seen(plain.wire)).toBeGreaterThan(tokens / 2);

    const names = ['IP:10.77.0.1', 'IP:10.77.0.2', clientName, nodeNameOf('*')];
    const tls = { ca: authority.ca, ...authority.issue('all', names), clientCa: authority.ca };
    const encrypted = await run({ tls });
    expect(encrypted).toMatchObject({ digest: plain.digest, same: true });
    if (plain.link.transport === 'ucx') expect(encrypted.link.lanes).toBe('tls tcp');
    expect(encrypted.wire.byteLength).toBeGreaterThan(tokens * hidden * 2);
    expect(seen(encrypted.wire)).toBe(0);
    // Nor what goes with them.
    expect([plain.wire, encrypted.wire].map((wire) => wire.includes(batchName))).toEqual([true, false]);
  });
});
