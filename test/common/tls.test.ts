import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { connect as connectTcp } from 'node:net';
import { describe, expect, test } from '@jest/globals';
import { Access } from '../../services/common/access.js';
import { namesIn } from '../../services/common/certificate.js';
import type { SwitchyardError } from '../../services/common/errors.js';
import { connect } from '../../services/common/grpc-channel.js';
import { clients } from '../../services/common/protocol.js';
import { readTls, Tls } from '../../services/common/tls.js';
import {
  Authority,
  clientName,
  type KeyPair,
  loopback,
  nodeNameOf,
  operatorName,
} from '../support/certificates.js';
import { until } from '../support/until.js';
import { atEnd, errorOf, log, messageBytesMax, serve, unary } from './support.js';

const authority = new Authority();
const stranger = new Authority();
const { ca } = authority;
const server = authority.issue('server', [...loopback, nodeNameOf('server')]);

function open(files: { ca: string; cert?: string; key?: string; clientCa?: string }): Tls {
  const tls = new Tls(files, log);
  atEnd(() => tls.close());
  return tls;
}

const serveTls = (shown: KeyPair = server) => {
  const tls = open({ ca, ...shown, clientCa: ca });
  return serve({ tls, access: new Access({}, true) });
};

function describeModel(address: string, tls: Tls | null): Promise<unknown> {
  const client = connect(clients.Inference, address, { token: null, tls, messageBytesMax });
  atEnd(() => client.close());
  return unary((done) => client.describeModel({}, done));
}

describe('a server that asks for certificates', () => {
  test('takes a client by the role that its certificate names', async () => {
    const { address } = await serveTls();
    for (const name of [clientName, operatorName]) {
      const caller = authority.issue('caller', [name]);
      await expect(describeModel(address, open({ ca, ...caller }))).resolves.toMatchObject({ name: 'm' });
    }
  });

  test.each([
    [
      'no certificate',
      null,
      'UNAUTHENTICATED',
      /: it shows no certificate; allowed: a certificate \(tlsCert\)/,
    ],
    [
      'a certificate of another CA',
      stranger.issue('c', [clientName]),
      'UNAUTHENTICATED',
      /is not signed by tlsClientCa/,
    ],
    [
      'an expired one',
      authority.issue('old', [clientName], -1),
      'UNAUTHENTICATED',
      /its certificate has expired/,
    ],
    [
      'one without a role',
      authority.issue('none', loopback),
      'UNAUTHENTICATED',
      /its certificate names no role/,
    ],
    [
      'that of a node',
      authority.issue('node', [nodeNameOf('worker-0')]),
      'PERMISSION_DENIED',
      /carries a certificate with switchyard:\/\/node\/NAME; allowed: .*switchyard:\/\/client or switchyard:\/\/operator/,
    ],
  ] as const)('refuses %s', async (_, caller, code, reason) => {
    const { address } = await serveTls();
    const error = await errorOf(describeModel(address, open({ ca, ...caller })));
    expect(error).toMatchObject({ code, message: expect.stringMatching(reason) });
  });

  test.each([
    ['who speaks no TLS', 'GET / HTTP/1.1\r\n\r\n', /^the caller speaks no TLS: its tlsCa is not set$/],
    [
      'who leaves within the handshake',
      '\x16',
      /^the caller left before the handshake was done; it may not trust/,
    ],
  ])('tells in its log of %s, and the address', async (_, bytes, reason) => {
    const lines: unknown[] = [];
    const telling = Object.assign(Object.create(log), { warn: (line: unknown) => lines.push(line) });
    const { port } = await serve({ tls: open({ ca, ...server }), log: telling });
    const socket = connectTcp(port, '127.0.0.1').on('error', () => {});
    await once(socket, 'connect');
    const peer = `127.0.0.1:${socket.localPort}`;
    socket.end(Buffer.from(bytes, 'latin1'));
    await until(
      () => lines.length,
      (count) => count > 0,
    );
    expect(lines).toEqual([{ event: 'connection-refused', peer, reason: expect.stringMatching(reason) }]);
  });

  test('gives nothing to who speaks no TLS', async () => {
    const { address } = await serveTls();
    const error = await errorOf(describeModel(address, null));
    expect(error).toMatchObject({
      code: 'LINK_LOST',
      message: expect.stringMatching(/may want TLS .tlsCa;/),
    });
  });
});

describe('a client', () => {
  test.each([
    [
      'of another CA',
      stranger.issue('s', loopback),
      /the certificate of 127\.0\.0\.1 is not signed by tlsCa \(.*ca\.pem\)/,
    ],
    ['that has expired', authority.issue('s1', loopback, -1), /the certificate of 127\.0\.0\.1 has expired/],
    [
      'for another host',
      authority.issue('s2', ['DNS:elsewhere']),
      /is for DNS:elsewhere; allowed: .* tlsCert for 127/,
    ],
  ] as const)('does not talk to a server whose certificate is one %s', async (_, shown, reason) => {
    const { address } = await serveTls(shown);
    const error = await errorOf(describeModel(address, open({ ca })));
    expect(error).toMatchObject({ code: 'UNAUTHENTICATED', message: expect.stringMatching(reason) });
  });

  test('says nothing to a server without TLS', async () => {
    const { address } = await serve({});
    const error = await errorOf(describeModel(address, open({ ca })));
    expect(error).toMatchObject({ code: 'UNAUTHENTICATED', message: expect.stringMatching(/speaks no TLS/) });
  });

  test('trusts the certificate of a node whom it knows, whatever host that is for', async () => {
    const { address } = await serveTls(authority.issue('n', [nodeNameOf('router-*')]));
    const tls = open({ ca, ...authority.issue('c4', [clientName]) });
    const call = (node: string) => {
      const client = connect(clients.Inference, address, { token: null, tls, messageBytesMax, node });
      atEnd(() => client.close());
      return unary((done) => client.describeModel({}, done));
    };
    await expect(call('router-3')).resolves.toMatchObject({ name: 'm' });
    expect((await errorOf(call('worker-3'))).message).toMatch(/is for URI:switchyard:..node.router-\*/);
  });

  test('trusts whoever shows its own certificate, whatever host that is for', async () => {
    const shared = authority.issue('shared', [nodeNameOf('*'), clientName]);
    const { address } = await serveTls(shared);
    await expect(describeModel(address, open({ ca, ...shared }))).resolves.toMatchObject({ name: 'm' });
  });
});

test('silent connections do not keep out others', async () => {
  const { address, port } = await serveTls();
  const silent = Array.from({ length: 300 }, () => connectTcp(port, '127.0.0.1').on('error', () => {}));
  atEnd(() => {
    for (const socket of silent) socket.destroy();
  });
  await until(() => silent.filter((socket) => socket.closed).length >= 40);
  const caller = authority.issue('caller2', [clientName]);
  await expect(describeModel(address, open({ ca, ...caller }))).resolves.toMatchObject({ name: 'm' });
});

test('files that change are read anew, once they fit together', async () => {
  const { cert, key } = authority.issue('rotated', ['DNS:before']);
  const events: string[] = [];
  const heard = {
    ...log,
    info: ({ event }: { event: string }) => events.push(event),
    warn: ({ event }: { event: string }) => events.push(event),
  };
  const tls = new Tls({ ca, cert, key, clientCa: ca }, heard as never);
  atEnd(() => tls.close());
  const { address } = await serve({ tls, access: new Access({}, true) });
  const caller = open({ ca, ...authority.issue('caller3', [clientName]) });
  expect((await errorOf(describeModel(address, caller))).message).toContain('DNS:before');
  writeFileSync(key, 'half a key');
  await until(() => events.includes('tls-kept'));
  expect((await errorOf(describeModel(address, caller))).message).toContain('DNS:before');
  authority.issue('rotated', loopback);
  await until(() => events.includes('tls-reloaded'));
  await expect(describeModel(address, caller)).resolves.toMatchObject({ name: 'm' });
});

describe('names in a certificate', () => {
  test.each([
    ['DNS:a, URI:switchyard://client', ['client'], []],
    ['URI:switchyard://node/w-0, URI:switchyard://node/w-*, IP Address:1.2.3.4', ['node'], ['w-0', 'w-*']],
    ['URI:switchyard://operator, URI:switchyard://client', ['operator', 'client'], []],
    ['URI:switchyard://node/', [], []],
    ['URI:switchyard://clients, URI:http://switchyard://client, DNS:URI:switchyard://client', [], []],
    ['URI:"switchyard://a, URI:switchyard://operator"', [], []],
    ['DNS:"a, URI:switchyard://operator, b", URI:switchyard://client', ['client'], []],
  ])('%s', (text, roles, nodes) => {
    expect(namesIn(text)).toEqual({ roles, nodes, problem: null });
  });
});

describe('settings', () => {
  const none = { tlsCa: null, tlsCert: null, tlsKey: null, tlsClientCa: null };
  const reasonOf = (config: Partial<Record<keyof typeof none, string>>) => {
    try {
      readTls({ ...none, ...config }, log)?.close();
      return 'OK';
    } catch (error) {
      return `${(error as SwitchyardError).code}: ${(error as SwitchyardError).message}`;
    }
  };

  test('all or none', () => {
    const all = { tlsCa: ca, tlsCert: server.cert, tlsKey: server.key };
    expect(reasonOf({})).toBe('OK');
    expect(reasonOf(all)).toBe('OK');
    for (const key of ['tlsCa', 'tlsCert', 'tlsKey'] as const) {
      const { [key]: _, ...others } = all;
      expect(reasonOf(others)).toMatch(
        new RegExp(`CONFIG_INVALID: ${key} is missing; allowed: tlsCa, tlsCert and tlsKey`),
      );
    }
    expect(reasonOf({ tlsClientCa: ca })).toMatch(/CONFIG_INVALID: tlsCa is missing/);
  });

  test('a file that cannot be used is named', () => {
    const other = authority.issue('other', loopback);
    const { cert, key } = server;
    expect(reasonOf({ tlsCa: '/nowhere', tlsCert: cert, tlsKey: key })).toMatch(
      /CONFIG_INVALID: tlsCa is "\/nowhere": ENOENT/,
    );
    expect(reasonOf({ tlsCa: '/dev/zero', tlsCert: cert, tlsKey: key })).toMatch(
      /tlsCa is "\/dev\/zero": it has more than 1048576 bytes; allowed: a readable PEM file/,
    );
    expect(reasonOf({ tlsCa: key, tlsCert: cert, tlsKey: key })).toMatch(
      /tlsCa is .*: it holds no certificate/,
    );
    expect(reasonOf({ tlsCa: ca, tlsCert: cert, tlsKey: cert })).toMatch(
      /tlsKey is .*: .*; allowed: a readable PEM file/,
    );
    expect(reasonOf({ tlsCa: ca, tlsCert: cert, tlsKey: other.key })).toMatch(
      /tlsKey is .*: it is not the key of tlsCert/,
    );
  });
});
