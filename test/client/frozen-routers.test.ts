import { createServer as createHttp2 } from 'node:http2';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterEach, describe, expect, test } from '@jest/globals';
import { type Session, SwitchyardClient } from '../../services/client/index.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { Watchers } from '../../services/common/watchers.js';
import { until } from '../support/until.js';
import { serveWatch } from '../support/watch-server.js';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** Routers that stand still: the kernel takes their connections, or they stopped a little later, and took a call. */
const kinds: Record<string, () => Server> = {
  'takes connections': () => createServer(),
  'takes calls': () => createHttp2().on('stream', (stream) => stream.on('error', () => {})),
};

interface Frozen {
  client: SwitchyardClient;
  session: Session;
  sockets: ReadonlySet<Socket>;
}

const rows = new Uint8Array(128);

/** A client of a cluster whose router does nothing but what its kind says. */
async function clientOfFrozen(kind: string, routers = 1): Promise<Frozen> {
  const sockets = new Set<Socket>();
  const addresses: string[] = [];
  for (let index = 0; index < routers; index += 1) {
    const router = kinds[kind]!();
    router.on('connection', (socket: Socket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      // Who is gone is seen by who reads.
      if (kind === 'takes connections') socket.resume();
      socket.once('close', () => sockets.delete(socket));
    });
    await new Promise<void>((resolve) => router.listen(0, '127.0.0.1', resolve));
    cleanups.push(() => {
      for (const socket of sockets) socket.destroy();
      router.close();
    });
    addresses.push(`127.0.0.1:${(router.address() as AddressInfo).port}`);
  }
  const node = { host: '', state: 'READY', messageBytesMax: 1024 * 1024 } as const;
  const told = addresses.map((address, index) => ({ ...node, name: `router-${index}`, address }));
  const watchers = new Watchers(() => ({ routers: told, model: { hidden: 64 }, ready: true }));
  const server = await serveWatch(watchers);
  cleanups.push(() => server.close(0));
  const client = await SwitchyardClient.connect(server.address, { transport: 'grpc' });
  cleanups.push(() => client.destroy());
  return { client, session: client.session(), sockets };
}

describe.each(Object.keys(kinds))('while a router that %s and says nothing', (kind) => {
  test('opens a session, batches end by their signals and deadlines', async () => {
    const { session } = await clientOfFrozen(kind);
    const end = new AbortController();
    const cancelled = session.forward(rows, { signal: end.signal });
    const late = session.forward(rows, { deadlineMs: 50 });
    const both = session.forward(rows, { deadlineMs: 50, signal: AbortSignal.timeout(1_000_000) });
    const timed = session.forward(rows, { signal: AbortSignal.timeout(50) });
    const expired = {
      code: 'DEADLINE_EXCEEDED',
      message: 'the deadline of 50 ms has passed before a router had the batch',
    };
    await Promise.all([
      expect(late).rejects.toMatchObject(expired),
      expect(both).rejects.toMatchObject(expired),
      expect(timed).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' }),
    ]);
    end.abort();
    await expect(cancelled).rejects.toMatchObject({ code: 'CANCELLED' });
  });

  test('opens a session, its end ends batches and calls', async () => {
    const { client, session, sockets } = await clientOfFrozen(kind);
    const batch = session.forward(rows);
    batch.catch(() => {});
    await until(
      async () => sockets.size,
      (count) => count > 0,
    );
    session.destroy();
    await expect(batch).rejects.toMatchObject({
      code: 'CANCELLED',
      message: 'the session was destroyed',
    });
    const other = client.session();
    const last = other.forward(rows);
    client.destroy();
    await expect(last).rejects.toMatchObject({ code: 'CANCELLED' });
    // gRPC itself gives up a connection that does not come to stand, and takes its time.
    if (kind === 'takes calls')
      await until(
        async () => sockets.size,
        (count) => count === 0,
      );
  });

  test('opens a session, the end of one that closes ends its batches', async () => {
    const { session, sockets } = await clientOfFrozen(kind, 2);
    const batch = session.forward(rows);
    batch.catch(() => {});
    await until(
      async () => sockets.size,
      (count) => count > 0,
    );
    const closed = session.close();
    session.destroy();
    await expect(batch).rejects.toMatchObject({ code: 'CANCELLED' });
    await closed;
  });

  test('opens the session below small batches of forward(), they end by their deadlines', async () => {
    const { client } = await clientOfFrozen(kind);
    const call = await client.forward(rows, { deadlineMs: 50 }).catch((error) => error);
    const outcome = call instanceof SwitchyardError ? Promise.reject(call) : call.summary;
    await expect(outcome).rejects.toMatchObject({
      code: 'DEADLINE_EXCEEDED',
      message: expect.stringMatching(/^the deadline of \d+ ms has passed before a router /),
    });
  });
});
