import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Metadata, type ServerDuplexStream, status } from '@grpc/grpc-js';
import { loadSync, type PackageDefinition, type ServiceDefinition } from '@grpc/proto-loader';
import { afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { protoPath as healthProtoPath } from 'grpc-health-check';
import { Access, accessRoles } from '../../services/common/access.js';
import { ControlSession } from '../../services/common/control-session.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import type { CoordinatorMessage } from '../../services/common/generated/switchyard/v1/CoordinatorMessage.js';
import type { NodeHelloInput } from '../../services/common/generated/switchyard/v1/NodeHello.js';
import { connect } from '../../services/common/grpc-channel.js';
import { coordinatorDialer } from '../../services/common/grpc-duplex.js';
import { startGrpcServer } from '../../services/common/grpc-server.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { createLogger } from '../../services/common/log.js';
import { clients, packageDefinition, services } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { systemRandom } from '../../services/runtime/system.js';
import { createLinkSecret, linkKey, proveLink } from '../../services/transport/link-key.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { probe } from '../support/probe.js';
import { testRows } from '../support/rows.js';

const tokens = { client: 'token-of-clients', node: 'token-of-nodes', operator: 'token-of-operators' };
const everywhere = { host: '0.0.0.0', advertiseHost: '127.0.0.1' };
const messageBytesMax = 2 ** 20;
const log = createLogger('test', 'test', 'silent');

let cluster: TestCluster;
beforeAll(async () => {
  cluster = await startCluster({
    workers: 2,
    routers: 1,
    tokens,
    coordinator: everywhere,
    worker: everywhere,
    router: everywhere,
  });
});

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const served = ['coordinator', 'router-0', 'worker-0'] as const;
const addressOf = async (name: string) => (await cluster.process(name).listening).address;

/** Every method of every service, one that is added later too. */
function methodsOf(definitions: PackageDefinition): string[] {
  return Object.values(definitions).flatMap((definition) =>
    'format' in definition ? [] : Object.values(definition as ServiceDefinition).map(({ path }) => path),
  );
}

const methods = [
  ...methodsOf({ ...packageDefinition, ...loadSync(healthProtoPath) }),
  '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo',
  '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo',
];
const isHealth = (path: string) =>
  /^\/(grpc\.health\.v1\.Health\/|inference\..*\/Server(Live|Ready)$)/.test(path);
/** What each credential opens beside health. */
const opens: Readonly<Record<string, RegExp>> = {
  none: /^$/,
  client: /^\/(switchyard\.v1\.Inference|inference\.GRPCInferenceService)\//,
  node: /^\/switchyard\.v1\.Coordinator\//,
  operator:
    /^\/(switchyard\.v1\.(Inference|Operator)|inference\.GRPCInferenceService|grpc\.reflection\.\w+\.ServerReflection)\//,
};
const headerOf = (who: string) =>
  who === 'none' ? null : `Bearer ${tokens[who as keyof typeof tokens] ?? who}`;
const refusals = [status.UNAUTHENTICATED, status.PERMISSION_DENIED];

describe.each(['none', ...accessRoles, 'a-guess'])('a caller with the credential %s', (who) => {
  test('reaches health and what its role is for; everything else is refused, unread', async () => {
    const reached = new Set<string>();
    for (const name of served) {
      const address = await addressOf(name);
      for (const path of methods) {
        const { code, answers, metadata, details } = await probe(address, path, headerOf(who));
        const allowed = isHealth(path) || (opens[who] ?? opens.none)!.test(path);
        if (code === status.UNIMPLEMENTED && answers === 0) continue;
        expect([name, path, allowed, details]).toEqual([name, path, !refusals.includes(code), details]);
        if (allowed) reached.add(path);
        if (allowed) continue;
        expect(answers).toBe(0);
        expect(metadata.get('switchyard-code')).toEqual([status[code]]);
        for (const token of Object.values(tokens)) expect(details).not.toContain(token);
        // The worker does not know the tokens of clients.
        const known = who in tokens && !(who === 'client' && name === 'worker-0');
        expect([name, path, status[code]]).toEqual([
          name,
          path,
          known ? 'PERMISSION_DENIED' : 'UNAUTHENTICATED',
        ]);
      }
    }
    const expected = methods.filter((path) => isHealth(path) || (opens[who] ?? opens.none)!.test(path));
    // Health of this version of the package may describe more than it serves.
    expect([...reached].filter((path) => !isHealth(path)).sort()).toEqual(
      expected.filter((path) => !isHealth(path)).sort(),
    );
    expect([...reached]).toEqual(expect.arrayContaining(['/grpc.health.v1.Health/Check']));
  });

  test('reads the probes over HTTP, and the rest as an operator only', async () => {
    for (const name of served) {
      const { metricsUrl } = await cluster.process(name).listening;
      const authorization = headerOf(who);
      const get = (path: string) =>
        fetch(`${metricsUrl}${path}`, { headers: authorization === null ? {} : { authorization } });
      for (const path of ['/healthz', '/readyz']) expect((await get(path)).status).toBe(200);
      for (const path of ['/metrics', '/state']) {
        const answer = await get(path);
        const known = who in tokens && !(who === 'client' && name === 'worker-0');
        expect(answer.status).toBe(who === 'operator' ? 200 : known ? 403 : 401);
        expect(answer.headers.get('www-authenticate')).toBe(answer.status === 401 ? 'Bearer' : null);
        if (who === 'operator') continue;
        expect(((await answer.json()) as { error: string }).error).toMatch(/allowed: the operator token$/);
      }
      expect((await get('/etc/passwd')).status).toBe(404);
    }
  });
});

/** A node that is none of the product's: it says hello, and then what it likes. */
function stranger(token: string | null, hello: NodeHelloInput) {
  const messages: CoordinatorMessage[] = [];
  const session = new ControlSession({
    coordinators: [cluster.address],
    token,
    dial: coordinatorDialer(null),
    runtime: nativeRuntime,
    hello: { device: 'cpu', threads: 1, pid: 1, ...hello },
    report: () => (hello.role === 'WORKER' ? { worker: {} } : { router: {} }),
    reportMs: 100,
    leaseMs: 10_000,
    onMessage: (message) => messages.push(message),
    log,
  });
  closers.push(() => session.leave('the test is over'));
  const heard = async (kind: NonNullable<CoordinatorMessage['kind']>) => {
    for (let tries = 0; tries < 1_000; tries += 1) {
      const found = messages.findLast((message) => message.kind === kind);
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`no ${kind} came`);
  };
  return { session, messages, heard };
}

const falseWorker = (name: string, address = '127.0.0.1:9'): NodeHelloInput => ({
  role: 'WORKER',
  name,
  address,
  linkSecret: createLinkSecret(systemRandom),
});
const falseRouter = (name: string): NodeHelloInput => ({ role: 'ROUTER', name, address: '127.0.0.1:9' });

/** How a call to a worker ends that shows this header and says hello. */
async function openLink(worker: string, header: string): Promise<SwitchyardError | 'welcome'> {
  const client = connect(clients.Experts, await addressOf(worker), { token: null, messageBytesMax });
  closers.push(() => client.close());
  const metadata = new Metadata();
  metadata.set('authorization', header);
  const { model } = await cluster.client.describeCluster();
  const call = client.Exchange(metadata);
  return new Promise((resolve) => {
    call.on('data', () => resolve('welcome'));
    call.on('error', (error) => resolve(fromServiceError(error)));
    call.write({ hello: { modelFingerprint: model!.fingerprint, epoch: 1 } });
  });
}

const rows = testRows(64, 256);
const answer = async () =>
  Buffer.from((await (await cluster.client.forward(rows, { feedback: false })).collect()).rows);

describe('with the token of clients', () => {
  test.each([
    ['a worker', falseWorker('evil')],
    ['a router', falseRouter('evil')],
    ['a router of a name that lives', falseRouter('router-0')],
  ])('%s does not join', async (_, hello) => {
    const { session, messages } = stranger(tokens.client, hello);
    expect(await session.ended).toMatchObject({
      code: 'PERMISSION_DENIED',
      message: 'the call carries the client token; allowed: the node token',
    });
    expect(messages).toEqual([]);
    const { view } = await cluster.client.describeCluster();
    expect(view!.nodes.map(({ name }) => name)).not.toContain('evil');
  });

  test('nobody opens a link in the name of a live router, whatever key is made up', async () => {
    const before = await answer();
    for (const header of [
      `Bearer ${tokens.client}`,
      proveLink(systemRandom, Buffer.from(tokens.client), 'router-0', 'worker-0').header,
      proveLink(systemRandom, linkKey(Buffer.alloc(32), 'router-0'), 'router-0', 'worker-0').header,
      'Link router-0',
      '',
    ])
      expect(await openLink('worker-0', header)).toMatchObject({ code: 'UNAUTHENTICATED' });
    expect((await cluster.links()).filter(({ router }) => router === 'router-0')).toHaveLength(2);
    expect(await answer()).toEqual(before);
  });
});

describe('with the token of nodes', () => {
  test('a router cannot take the name of one that lives', async () => {
    const { session } = stranger(tokens.node, falseRouter('router-0'));
    expect(await session.ended).toMatchObject({ code: 'NAME_TAKEN' });
  });

  test('a router opens links in its own name, at the worker of the key, and nowhere else', async () => {
    const { heard } = stranger(tokens.node, falseRouter('another'));
    const { keys } = (await heard('keys')).keys!;
    expect(keys.map(({ worker }) => worker).sort()).toEqual(['worker-0', 'worker-1']);
    const key = keys.find(({ worker }) => worker === 'worker-0')!.key;
    expect(await openLink('worker-0', proveLink(systemRandom, key, 'another', 'worker-0').header)).toBe(
      'welcome',
    );
    for (const [worker, router, named] of [
      ['worker-0', 'router-0', 'worker-0'],
      ['worker-0', 'coordinator', 'worker-0'],
      ['worker-1', 'another', 'worker-1'],
      ['worker-1', 'another', 'worker-0'],
    ] as const) {
      const refused = await openLink(worker, proveLink(systemRandom, key, router, named).header);
      expect(refused).toMatchObject({ code: 'UNAUTHENTICATED' });
    }
    expect(await openLink('worker-0', `Bearer ${tokens.node}`)).toMatchObject({ code: 'PERMISSION_DENIED' });
  });

  test('a worker is shown proofs that are for it alone, and no token; nobody sees its secret', async () => {
    const shown: string[] = [];
    const dialled = new Deferred<void>();
    const Exchange = (call: ServerDuplexStream<unknown, unknown>) => {
      shown.push(...call.metadata.get('authorization').map(String));
      if (shown.length >= 2) dialled.resolve();
      call.end();
    };
    const server = await startGrpcServer({
      host: '127.0.0.1',
      port: 0,
      access: new Access({}),
      insecure: false,
      messageLimit: { bytesMax: messageBytesMax, node: 'worker w' },
      services: [{ definition: services.Experts, implementation: { Exchange } }],
      log,
    });
    closers.push(() => server.close(0));
    const requests: unknown[] = [];
    const http = createServer((request, response) => {
      requests.push(request.headers);
      response.end();
    });
    await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
    closers.push(() => http.close());
    const metricsUrl = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    const hello = falseWorker('spy', server.address);
    const { heard } = stranger(tokens.node, { ...hello, metricsUrl });
    await heard('welcome');
    await dialled.promise;
    // The embedded router's and the other one's.
    expect(new Set(shown.map((header) => header.split(' ').slice(0, 2).join(' ')))).toEqual(
      new Set(['Link coordinator', 'Link router-0']),
    );
    for (const header of shown)
      expect(await openLink('worker-0', header)).toMatchObject({ code: 'UNAUTHENTICATED' });
    for (const token of [tokens.client, tokens.operator]) {
      const { stdout } = await switchyard(['status', '--address', cluster.address], {
        SWITCHYARD_TOKEN: token,
      });
      expect(stdout).toContain('spy');
    }
    expect(requests).toEqual([]);
    expect(JSON.stringify(shown)).not.toMatch(/token-of/);
    const { metricsUrl: stateUrl } = await cluster.process('coordinator').listening;
    const authorization = `Bearer ${tokens.operator}`;
    const state = await (await fetch(`${stateUrl}/state`, { headers: { authorization } })).text();
    const everything = [JSON.stringify(await cluster.client.describeCluster()), state, ...cluster.lines];
    const secret = Buffer.from(hello.linkSecret as Buffer);
    for (const hidden of [secret, linkKey(secret, 'coordinator'), linkKey(secret, 'router-0')]) {
      for (const form of [
        hidden.toString('hex'),
        hidden.toString('base64'),
        JSON.stringify([...hidden]).slice(1, -1),
      ])
        expect(everything.some((text) => text.includes(form))).toBe(false);
    }
    expect(state).not.toMatch(/secret/i);
  });
});

test('the experts of a killed worker are not given to a stranger with the token of clients, and nothing is made up', async () => {
  const before = await answer();
  await cluster.kill('worker-1');
  const { session } = stranger(tokens.client, falseWorker('worker-1'));
  expect(await session.ended).toMatchObject({ code: 'PERMISSION_DENIED' });
  // Whoever is left loads them.
  expect(Buffer.compare(await answer(), before)).toBe(0);
  expect(before.some((byte) => byte !== 0)).toBe(true);
  const { view } = await cluster.client.describeCluster();
  const dead = view?.nodes.filter(({ state }) => state === 'DEAD').map(({ name }) => name);
  expect(dead).toContain('worker-1');
});
