import { execFile } from 'node:child_process';
import { connect as connectTcp } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { promisify } from 'node:util';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { type Flags, LocalProcess } from '../../services/cli/local-process.js';
import { SwitchyardClient, type TlsOptions } from '../../services/client/index.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { Tls } from '../../services/common/tls.js';
import { Authority, clientName, nodeNameOf, operatorName } from '../support/certificates.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { Load } from '../support/load.js';
import { testRows } from '../support/rows.js';
import { works } from '../support/services.js';
import { until } from '../support/until.js';

const run = promisify(execFile);
const authority = new Authority();
const stranger = new Authority();
const { ca } = authority;
/** Of every process, and for no name but this address. */
const serverNames = ['IP:127.0.0.1', nodeNameOf('*'), operatorName];
const withCurl = works('HTTP by TLS as curl sees it', 'curl', '--version');

const server = authority.issue('server', serverNames);
const serverFlags = { tlsCa: ca, tlsCert: server.cert, tlsKey: server.key, tlsClientCa: ca };

let cluster: TestCluster;
beforeAll(async () => {
  cluster = await startCluster({ workers: 1, routers: 1, tls: { ca, ...server, clientCa: ca } });
});

interface Case {
  name: string;
  shown: TlsOptions;
  /** By a name that is not the server's. */
  host?: string;
  /** Undefined: it is accepted. */
  refusal?: { code: string; reason: RegExp; http: number | 'no answer' };
}

const client = authority.issue('client', [clientName]);
const cases: Case[] = [
  { name: 'a client', shown: { ca, ...client } },
  { name: 'an operator', shown: { ca, ...authority.issue('operator', [operatorName]) } },
  {
    name: 'one that trusts another CA',
    shown: { ca: stranger.ca, ...client },
    refusal: { code: 'UNAUTHENTICATED', reason: /127\.0\.0\.1 is not signed by tlsCa \(/, http: 'no answer' },
  },
  {
    name: 'one by another name of the server',
    shown: { ca, ...client },
    host: 'localhost',
    refusal: {
      code: 'UNAUTHENTICATED',
      reason:
        /the certificate of localhost is for .*IP Address:127\.0\.0\.1.*; allowed: an address by one of these/,
      http: 'no answer',
    },
  },
  {
    name: 'one without a certificate',
    shown: { ca },
    refusal: {
      code: 'UNAUTHENTICATED',
      reason: /it shows no certificate; allowed: .*\(tlsCert\)/,
      http: 401,
    },
  },
  {
    name: 'one whose certificate has expired',
    shown: { ca, ...authority.issue('expired', [clientName, operatorName], -1) },
    refusal: { code: 'UNAUTHENTICATED', reason: /its certificate has expired; allowed: /, http: 401 },
  },
  {
    name: 'one whose certificate another CA has signed',
    shown: { ca, ...stranger.issue('client', [clientName, operatorName]) },
    refusal: { code: 'UNAUTHENTICATED', reason: /is not signed by tlsClientCa of the server/, http: 401 },
  },
  {
    name: 'a node',
    shown: { ca, ...authority.issue('node', [nodeNameOf('worker-7')]) },
    refusal: {
      code: 'PERMISSION_DENIED',
      reason:
        /a certificate with switchyard:\/\/node\/NAME; allowed: .*switchyard:\/\/client or switchyard:\/\/operator/,
      http: 403,
    },
  },
];

describe.each(cases)('$name', ({ shown, host = '127.0.0.1', refusal }) => {
  const at = (address: string) => `${host}:${address.split(':')[1]}`;

  test('is served by the SDK, or told why not', async () => {
    const connecting = SwitchyardClient.connect(at(cluster.address), { tls: shown });
    if (refusal) {
      const { code, reason } = refusal;
      await expect(connecting).rejects.toMatchObject({ code, message: expect.stringMatching(reason) });
      return;
    }
    const connected = await connecting;
    const call = await connected.forward(testRows(8, 256), { sequences: 2 });
    expect((await call.collect()).summary).toMatchObject({ tokens: 8 });
    await connected.close();
  });

  test('is served by the command, or told why not', async () => {
    const { ca, cert, key } = shown;
    const files = [`--tls-ca=${ca}`, ...(cert ? [`--tls-cert=${cert}`, `--tls-key=${key}`] : [])];
    const { status, stdout, stderr } = await switchyard([
      'status',
      '--address',
      at(cluster.address),
      ...files,
    ]);
    expect(stderr).toMatch(
      refusal ? new RegExp(`^switchyard: ${refusal.code}: .*${refusal.reason.source}`) : /^$/,
    );
    expect(status).toBe(refusal ? 1 : 0);
    if (!refusal) expect(stdout).toContain('worker-0');
  });

  (withCurl ? test : test.skip)('gets from curl what it may have', async () => {
    const url = new URL(cluster.metricsUrl);
    url.hostname = host;
    const ask = async (path: string) => {
      const { ca, cert, key } = shown;
      const files = ['--cacert', ca, ...(cert && key ? ['--cert', cert, '--key', key] : [])];
      const args = [
        '--silent',
        '--output',
        '/dev/null',
        '--write-out',
        '%{http_code}',
        ...files,
        `${url.origin}${path}`,
      ];
      return run('curl', args).then(
        ({ stdout }) => Number(stdout),
        () => 'no answer',
      );
    };
    const trusted = refusal?.http !== 'no answer';
    const metrics = refusal?.http ?? (shown.cert === client.cert ? 403 : 200);
    expect([await ask('/metrics'), await ask('/healthz')]).toEqual([metrics, trusted ? 200 : 'no answer']);
  });
});

test('no port answers who speaks no TLS', async () => {
  const listening = await Promise.all(cluster.processes.map((process) => process.listening));
  const ports = listening.flatMap(({ address, metricsUrl }) => [
    address.split(':')[1],
    new URL(metricsUrl).port,
  ]);
  expect(ports).toHaveLength(6);
  for (const port of ports) {
    const socket = connectTcp(Number(port), '127.0.0.1').on('error', () => {});
    let answer = '';
    socket.on('data', (data) => {
      answer += data.toString('latin1');
    });
    socket.write('GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n');
    await until(() => socket.closed);
    expect(answer).not.toMatch(/HTTP|[a-z]{4}/);
  }
  const connecting = SwitchyardClient.connect(cluster.address);
  await expect(connecting).rejects.toMatchObject({
    message: expect.stringMatching(/may want TLS \(tlsCa;/),
  });
});

const started: LocalProcess[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map((process) => process.stop(5_000)));
});

describe('in place of a node', () => {
  test.each([
    [
      'a client',
      [clientName],
      'worker-7',
      /PERMISSION_DENIED: .*switchyard:\/\/client; allowed: .*switchyard:\/\/node\/NAME/,
    ],
    [
      'a node of another name',
      [nodeNameOf('worker-7'), nodeNameOf('spare-*')],
      'worker-1',
      /PERMISSION_DENIED: .*name is "worker-1", and .* is for worker-7, spare-\*/,
    ],
    ['one whom nobody has signed', null, 'worker-7', /UNAUTHENTICATED: .*is not signed by tlsClientCa/],
  ] as const)('%s cannot join', async (_, names, name, reason) => {
    const shown = names ? authority.issue('joining', names) : stranger.issue('joining', [nodeNameOf('*')]);
    const flags: Flags = { coordinator: cluster.address, name, port: 0, metricsPort: 0, threads: 1 };
    const files = { tlsCa: ca, tlsCert: shown.cert, tlsKey: shown.key };
    const process = new LocalProcess('worker', name, { ...flags, ...files }, {}, () => {});
    started.push(process);
    const error = process.exitError(await process.exited);
    expect(`${error.code}: ${error.message}`).toMatch(reason);
    const { view } = await cluster.client.describeCluster();
    expect(view?.nodes.map((node) => node.name)).not.toContain(name);
  });

  test.each([
    ['a client', clientName, 'PERMISSION_DENIED'],
    ['a node without a key', nodeNameOf('router-0'), 'PERMISSION_DENIED'],
  ])('%s opens no link', async (_, name, code) => {
    const tls = new Tls({ ca, ...authority.issue('linking', [name]) });
    const { address } = await cluster.process('worker-0').listening;
    const experts = connect(clients.Experts, address, { token: null, tls, messageBytesMax: 1024 });
    const call = experts.exchange();
    const error = await new Promise((resolve) =>
      call.on('error', (thrown) => resolve(fromServiceError(thrown))),
    );
    expect(error).toMatchObject({ code, message: expect.stringContaining('the key of a link') });
    experts.close();
    tls.close();
  });
});

describe('where the first address of a list is that of a coordinator which nobody trusts', () => {
  let first: string;
  beforeEach(async () => {
    const { ca: tlsCa, ...shown } = { ca: stranger.ca, ...stranger.issue('server', serverNames) };
    const files = { tlsCa, tlsCert: shown.cert, tlsKey: shown.key, tlsClientCa: tlsCa };
    const flags: Flags = { preset: 'tiny', port: 0, metricsPort: 0, threads: 1, ...files };
    const coordinator = new LocalProcess('coordinator', 'stranger', flags, {}, () => {});
    started.push(coordinator);
    first = (await coordinator.listening).address;
  });
  const worker = (coordinator: string) => {
    const flags: Flags = { coordinator, name: 'worker-2', port: 0, metricsPort: 0, threads: 1 };
    const process = new LocalProcess('worker', 'worker-2', { ...flags, ...serverFlags }, {}, () => {});
    started.push(process);
    return process;
  };

  test('a node joins at the next one, and an operator is answered there', async () => {
    const list = `${first},${cluster.address}`;
    worker(list);
    const isThere = ({ name, state }: { name: string; state: string }) =>
      name === 'worker-2' && state === 'READY';
    await until(async () => (await cluster.client.describeCluster()).view!.nodes.some(isThere));
    const files = [`--tls-ca=${ca}`, `--tls-cert=${server.cert}`, `--tls-key=${server.key}`];
    const cordoned = await switchyard(['cordon', 'worker-2', '--address', list, ...files]);
    expect(cordoned).toMatchObject({ status: 0, stderr: '' });
  });

  test('a node ends if there is no other', async () => {
    const process = worker(`${first},${first}`);
    const error = process.exitError(await process.exited);
    expect(`${error.code}: ${error.message}`).toMatch(/UNAUTHENTICATED: .*is not signed by tlsCa/);
  });
});

test('certificates change under load, and no batch fails', async () => {
  const load = await Load.start(cluster.client);
  const serialOf = async () => {
    const [host, port] = cluster.address.split(':');
    const socket = connectTls({
      host,
      port: Number(port),
      ca: [],
      rejectUnauthorized: false,
      ALPNProtocols: ['h2'],
    });
    await new Promise((resolve) => socket.once('secureConnect', resolve));
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  };
  const old = await serialOf();
  await load.more(8);
  const { length } = cluster.lines;
  authority.issue('server', serverNames);
  const reloaded = () => cluster.lines.slice(length).filter((line) => line.includes('"tls-reloaded"'));
  await until(() => new Set(reloaded().map((line) => line.split(' ')[0])).size === cluster.processes.length);
  expect(await serialOf()).not.toBe(old);
  // Who comes now, and links that are made now, meet the new one.
  const flags = { coordinator: cluster.address, name: 'worker-1', port: 0, metricsPort: 0, threads: 1 };
  const joining = new LocalProcess('worker', 'worker-1', { ...flags, ...serverFlags }, {}, () => {});
  started.push(joining);
  const isReady = ({ name, state }: { name: string; state: string }) =>
    name === 'worker-1' && state === 'READY';
  await until(async () => (await cluster.client.describeCluster()).view!.nodes.some(isReady));
  const late = await SwitchyardClient.connect(cluster.address, { tls: { ca, ...client } });
  const call = await late.forward(testRows(8, 256), { sequences: 2 });
  await call.collect();
  await late.close();
  await load.more(8);
  await load.stop();
});
