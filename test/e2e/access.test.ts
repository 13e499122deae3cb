import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { type Flags, LocalProcess, type ProcessRole } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { probe } from '../support/probe.js';
import { testRows } from '../support/rows.js';

const tokens = { client: 'a-client-token', node: 'a-node-token', operator: 'an-operator-token' };
const everywhere = { host: '0.0.0.0', advertiseHost: '127.0.0.1' };

let directory: string;
const started: LocalProcess[] = [];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-access-'));
});

afterEach(async () => {
  await Promise.all(started.splice(0).map((process) => process.stop(5_000)));
});

afterAll(() => rm(directory, { recursive: true }));

function start(role: ProcessRole, flags: Flags): LocalProcess {
  const all = { port: 0, metricsPort: 0, threads: 1, ...flags };
  const process = new LocalProcess(role, role, all, {}, () => {});
  started.push(process);
  return process;
}

describe('a cluster with tokens that listens on every address', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startCluster({
      workers: 1,
      routers: 1,
      tokens,
      coordinator: everywhere,
      worker: everywhere,
      router: everywhere,
    });
  });

  test('serves batches to clients and operators with their token, and tells the others why not', async () => {
    const call = await cluster.client.forward(testRows(8, 256), { sequences: 2 });
    expect((await call.collect()).summary).toMatchObject({ tokens: 8 });
    for (const wrong of [null, 'wrong']) {
      const connecting = SwitchyardClient.connect(cluster.address, { token: wrong });
      await expect(connecting).rejects.toMatchObject({ code: 'UNAUTHENTICATED' });
    }
    const refused = await switchyard(['status', '--address', cluster.address]);
    expect(refused.stderr).toMatch(
      /^switchyard: UNAUTHENTICATED: .*allowed: the client or the operator token/,
    );
    expect(refused.status).toBe(1);
    const args = ['status', '--address', cluster.address, '--json'];
    for (const token of [tokens.client, tokens.operator]) {
      const allowed = await switchyard(args, { SWITCHYARD_TOKEN: token });
      expect(JSON.parse(allowed.stdout).view.ready).toBe(true);
    }
  });

  test.each<[ProcessRole, string, RegExp]>([
    ['worker', 'wrong', /UNAUTHENTICATED: .*allowed: the node token/],
    ['router', 'wrong', /UNAUTHENTICATED: .*allowed: the node token/],
    ['worker', tokens.client, /PERMISSION_DENIED: .*the client token; allowed: the node token/],
    ['router', tokens.operator, /PERMISSION_DENIED: .*the operator token; allowed: the node token/],
  ])('a %s with a wrong token ends with the reason', async (role, nodeToken, reason) => {
    const stranger = start(role, { coordinator: cluster.address, name: 'stranger', nodeToken });
    expect(await stranger.exited).toEqual({ code: 1, signal: null });
    const error = stranger.exitError(await stranger.exited);
    expect(`${error.code}: ${error.message}`).toMatch(reason);
    const { view } = await cluster.client.describeCluster();
    expect(view?.nodes.map(({ name }) => name)).not.toContain('stranger');
  });

  test('never prints a token', () => {
    expect(cluster.lines.length).toBeGreaterThan(0);
    for (const token of Object.values(tokens))
      expect(cluster.lines.filter((line) => line.includes(token))).toEqual([]);
  });
});

describe('a server told to listen beyond this machine', () => {
  const nowhere = '--coordinator=127.0.0.1:1';
  test.each([
    [
      'coordinator',
      '--preset=tiny --port=0 --metrics-port=0',
      '--client-token-file and --node-token-file and --operator-token-file',
    ],
    [
      'coordinator',
      '--node-token=n --port=0 --metrics-port=0',
      '--client-token-file and --operator-token-file',
    ],
    ['router', nowhere, '--client-token-file and --operator-token-file'],
    ['router', `${nowhere} --client-token=c`, '--operator-token-file'],
    ['worker', nowhere, '--operator-token-file'],
  ])('%s %s refuses without its tokens', async (role, flags, missing) => {
    const args = [role, ...flags.split(' '), '--host', '0.0.0.0'];
    const { status: code, stdout, stderr } = await switchyard(args);
    expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: host is "0\.0\.0\.0"/);
    expect(stderr).toContain(`allowed: a loopback address, or ${missing}, or --tls-client-ca, or --insecure`);
    expect(stdout).not.toContain('listening');
    expect(code).toBe(2);
  });

  test('takes its tokens from files', async () => {
    const files: Flags = Object.fromEntries(
      await Promise.all(
        Object.entries(tokens).map(async ([role, token]) => {
          const file = join(directory, role);
          await writeFile(file, `${token}\n`);
          return [`${role}TokenFile`, file] as const;
        }),
      ),
    );
    const coordinator = start('coordinator', { ...everywhere, preset: 'tiny', ...files });
    const { address } = await coordinator.listening;
    const path = '/switchyard.v1.Inference/DescribeModel';
    expect((await probe(address, path, null)).code).toBe(status.UNAUTHENTICATED);
    expect((await probe(address, path, `Bearer ${tokens.node}`)).code).toBe(status.PERMISSION_DENIED);
    for (const scheme of ['Bearer', 'bearer'])
      expect((await probe(address, path, `${scheme}  ${tokens.client}`)).code).not.toBe(
        status.UNAUTHENTICATED,
      );
  });

  test('gives processes that it starts its own tokens in place of the files of its environment', async () => {
    const files = await Promise.all(
      Object.entries(tokens).map(async ([role, token]) => {
        const file = join(directory, `${role}-of-all`);
        await writeFile(file, token);
        return [`SWITCHYARD_${role.toUpperCase()}_TOKEN_FILE`, file] as const;
      }),
    );
    const batch = ['--sequences', '1', '--length', '8', '--workers', '1', '--preset', 'tiny'];
    const { status: code, stderr } = await switchyard(['run', ...batch], Object.fromEntries(files));
    expect([code, stderr]).toEqual([0, expect.not.stringContaining('CONFIG_INVALID')]);
  });

  test('serves everyone if it is told to be insecure', async () => {
    const coordinator = start('coordinator', { ...everywhere, preset: 'tiny', insecure: true });
    const { address, metricsUrl } = await coordinator.listening;
    expect((await probe(address, '/switchyard.v1.Coordinator/Join', null)).code).toBe(
      status.INVALID_ARGUMENT,
    );
    expect((await fetch(`${metricsUrl}/metrics`)).status).toBe(200);
  });

  test.each([
    ['two words', 'not a-token'],
    ['nothing', '\n'],
    ['what no header can carry', 'tökén'],
  ])('refuses a token file that holds %s', async (_what, content) => {
    const tokenFile = join(directory, 'bad-token');
    await writeFile(tokenFile, content);
    const args = ['coordinator', '--preset', 'tiny', '--host', '0.0.0.0', '--node-token-file', tokenFile];
    const { status: code, stderr } = await switchyard(args);
    expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: nodeTokenFile is .*one word of printable ASCII/);
    if (content.trim() !== '') expect(stderr).not.toContain(content);
    expect(code).toBe(2);
  });

  test('refuses a token file that is not there', async () => {
    const tokenFile = join(directory, 'nowhere');
    const { status: code, stderr } = await switchyard(['worker', '--operator-token-file', tokenFile]);
    expect(stderr).toContain(`CONFIG_INVALID: operatorTokenFile is "${tokenFile}": ENOENT`);
    expect(code).toBe(2);
  });
});
