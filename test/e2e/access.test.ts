import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, describe, expect, jest, test } from '@jest/globals';
import { type Flags, LocalProcess, type ProcessRole } from '../../services/cli/local-process.js';
import { SwitchyardClient } from '../../services/client/index.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { probe } from '../support/probe.js';
import { testRows } from '../support/rows.js';

jest.setTimeout(180_000);

const token = 'a-token-of-the-test';
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

describe('a cluster with a token that listens on every address', () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startCluster({
      workers: 1,
      routers: 1,
      token,
      coordinator: everywhere,
      worker: everywhere,
      router: everywhere,
    });
  });

  const every: [path: string, allowed: status][] = [
    ['/grpc.health.v1.Health/Check', status.OK],
    ['/grpc.reflection.v1.ServerReflection/ServerReflectionInfo', status.OK],
    ['/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo', status.OK],
  ];
  const inference: [path: string, allowed: status][] = [
    ['/switchyard.v1.Inference/DescribeCluster', status.OK],
    ['/switchyard.v1.Inference/DescribeModel', status.OK],
    ['/switchyard.v1.Inference/Forward', status.INVALID_ARGUMENT],
  ];
  /** With the token an empty message is served, or refused for what it lacks. */
  const methods: [process: string, path: string, allowed: status][] = [
    ...[...every, ...inference, ['/switchyard.v1.Coordinator/Join', status.INVALID_ARGUMENT] as const].map(
      ([path, allowed]): [string, string, status] => ['coordinator', path, allowed],
    ),
    ...[...every, ...inference].map(([path, allowed]): [string, string, status] => [
      'router-0',
      path,
      allowed,
    ]),
    ...[...every, ['/switchyard.v1.Experts/Exchange', status.INVALID_ARGUMENT] as const].map(
      ([path, allowed]): [string, string, status] => ['worker-0', path, allowed],
    ),
  ];

  test.each(methods)('%s serves %s to the token only', async (name, path, allowed) => {
    const { address } = await cluster.process(name).listening;
    for (const wrong of [null, 'Bearer wrong', `Bearer ${token}x`, token, `Basic ${token}`, 'Bearer ']) {
      const refused = await probe(address, path, wrong);
      expect(refused).toMatchObject({ code: status.UNAUTHENTICATED, answers: 0 });
      expect(refused.details).toBe('the call carries no valid bearer token');
      expect(refused.metadata.get('switchyard-code')).toEqual(['UNAUTHENTICATED']);
    }
    for (const right of [`Bearer ${token}`, `bearer ${token}`, `BEARER  ${token}`]) {
      expect((await probe(address, path, right)).code).toBe(allowed);
    }
  });

  test.each(['coordinator', 'router-0', 'worker-0'])(
    '%s shows metrics and state to the token only, and its health to all',
    async (name) => {
      const { metricsUrl } = await cluster.process(name).listening;
      const get = (path: string, authorization: string | null) =>
        fetch(`${metricsUrl}${path}`, { headers: authorization === null ? {} : { authorization } });
      for (const path of ['/metrics', '/state']) {
        for (const wrong of [null, 'Bearer wrong', token]) {
          const refused = await get(path, wrong);
          expect(refused.status).toBe(401);
          expect(refused.headers.get('www-authenticate')).toBe('Bearer');
          expect(await refused.json()).toEqual({ error: 'a bearer token is needed' });
        }
        for (const right of [`Bearer ${token}`, `bearer ${token}`, `BEARER  ${token} `]) {
          expect((await get(path, right)).status).toBe(200);
        }
      }
      for (const path of ['/healthz', '/readyz']) expect((await get(path, null)).status).toBe(200);
      expect((await get('/etc/passwd', `Bearer ${token}`)).status).toBe(404);
    },
  );

  test('serves batches to clients with the token, and tells the others why not', async () => {
    const call = await cluster.client.forward(testRows(8, 256), { sequences: 2 });
    expect((await call.collect()).summary).toMatchObject({ tokens: 8 });
    for (const wrong of [null, 'wrong']) {
      const connecting = SwitchyardClient.connect(cluster.address, { token: wrong });
      await expect(connecting).rejects.toMatchObject({ code: 'UNAUTHENTICATED' });
    }
    const refused = await switchyard(['status', '--address', cluster.address]);
    expect(refused.stderr).toMatch(/^switchyard: UNAUTHENTICATED: .*bearer token/);
    expect(refused.status).toBe(1);
    const args = ['status', '--address', cluster.address, '--json'];
    const allowed = await switchyard(args, { SWITCHYARD_TOKEN: token });
    expect(JSON.parse(allowed.stdout).view.ready).toBe(true);
  });

  test.each<ProcessRole>(['worker', 'router'])(
    'a %s with a wrong token ends with the reason',
    async (role) => {
      const stranger = start(role, { coordinator: cluster.address, name: 'stranger', token: 'wrong' });
      expect(await stranger.exited).toEqual({ code: 1, signal: null });
      const error = stranger.exitError(await stranger.exited);
      expect(error.message).toMatch(/UNAUTHENTICATED: .*no valid bearer token/);
      const { view } = await cluster.client.describeCluster();
      expect(view?.nodes.map(({ name }) => name)).not.toContain('stranger');
    },
  );

  test('never prints the token', () => {
    expect(cluster.lines.length).toBeGreaterThan(0);
    for (const line of cluster.lines) expect(line).not.toContain(token);
  });
});

describe('a server told to listen beyond this machine', () => {
  const commands = [
    ['coordinator', '--preset', 'tiny', '--port', '0', '--metrics-port', '0'],
    ['router', '--coordinator', '127.0.0.1:1'],
    ['worker', '--coordinator', '127.0.0.1:1'],
  ];
  test.each(commands)('%s refuses without a token', async (...args) => {
    const { status: code, stdout, stderr } = await switchyard([...args, '--host', '0.0.0.0']);
    expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: host is "0\.0\.0\.0"/);
    expect(stderr).toMatch(/allowed: a loopback address, or --token-file or SWITCHYARD_TOKEN, or --insecure/);
    expect(stdout).not.toContain('listening');
    expect(code).toBe(2);
  });

  test('takes its token from a file', async () => {
    const tokenFile = join(directory, 'token');
    await writeFile(tokenFile, `${token}\n`);
    const coordinator = start('coordinator', { ...everywhere, preset: 'tiny', tokenFile });
    const { address } = await coordinator.listening;
    const path = '/grpc.health.v1.Health/Check';
    expect((await probe(address, path, null)).code).toBe(status.UNAUTHENTICATED);
    expect((await probe(address, path, `Bearer ${token}`)).code).toBe(status.OK);
  });

  test('serves everyone if it is told to be insecure', async () => {
    const coordinator = start('coordinator', { ...everywhere, preset: 'tiny', insecure: true });
    const { address, metricsUrl } = await coordinator.listening;
    expect((await probe(address, '/grpc.health.v1.Health/Check', null)).code).toBe(status.OK);
    expect((await fetch(`${metricsUrl}/metrics`)).status).toBe(200);
  });

  test.each([
    ['two words', 'not a-token'],
    ['nothing', '\n'],
    ['what no header can carry', 'tökén'],
  ])('refuses a token file that holds %s', async (_what, content) => {
    const tokenFile = join(directory, 'bad-token');
    await writeFile(tokenFile, content);
    const args = ['coordinator', '--preset', 'tiny', '--host', '0.0.0.0', '--token-file', tokenFile];
    const { status: code, stderr } = await switchyard(args);
    expect(stderr).toMatch(/^switchyard: CONFIG_INVALID: tokenFile is .*one word of printable ASCII/);
    if (content.trim() !== '') expect(stderr).not.toContain(content);
    expect(code).toBe(2);
  });

  test('refuses a token file that is not there', async () => {
    const tokenFile = join(directory, 'nowhere');
    const { status: code, stderr } = await switchyard(['worker', '--token-file', tokenFile]);
    expect(stderr).toContain(`CONFIG_INVALID: tokenFile is "${tokenFile}": ENOENT`);
    expect(code).toBe(2);
  });
});
