import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { afterEach, expect, test } from '@jest/globals';
import { Connections } from '../../services/client/connections.js';
import { Access } from '../../services/common/access.js';
import { startGrpcServer } from '../../services/common/grpc-server.js';
import { createLogger } from '../../services/common/log.js';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function serve(port = 0) {
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port,
    access: new Access({}),
    insecure: false,
    messageLimit: { bytesMax: 1024, node: 'router r' },
    services: [],
    log: createLogger('router', 'test', 'silent'),
  });
  cleanups.push(() => server.close(0));
  return server;
}

function connections(): Connections {
  const all = new Connections({ token: null }, 600_000);
  cleanups.push(() => all.retain(new Set()));
  return all;
}

/** A way to a server that knows its open connections. */
async function counted(port: number): Promise<{ address: string; open: Set<Socket> }> {
  const open = new Set<Socket>();
  const proxy = createServer((socket) => {
    open.add(socket);
    const way = connect(port, '127.0.0.1');
    socket.pipe(way).pipe(socket);
    for (const end of [socket, way]) end.on('error', () => {});
    socket.once('close', () => open.delete(socket));
  }).listen(0, '127.0.0.1');
  cleanups.push(() => proxy.close());
  await once(proxy, 'listening');
  return { address: `127.0.0.1:${(proxy.address() as AddressInfo).port}`, open };
}

test('a server has one connection, as long as its address is to be kept', async () => {
  const { port } = await serve();
  const [first, second] = [await counted(port), await counted(port)];
  const all = connections();
  await Promise.all([all.to(first.address), all.to(first.address), all.to(second.address)]);
  await all.to(first.address);
  expect([first.open.size, second.open.size]).toEqual([1, 1]);
  // `once` would reject when its peer is gone first.
  const closed = new Promise((resolve) => [...first.open][0]!.once('close', resolve));
  all.retain(new Set([second.address]));
  await closed;
  expect(second.open.size).toBe(1);
  await all.to(first.address);
  expect(first.open.size).toBe(1);
});

test('a server of something else is told from none', async () => {
  const other = createHttpServer((_, response) => response.end());
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  cleanups.push(() => other.close());
  const { port } = other.address() as AddressInfo;
  await expect(connections().to(`127.0.0.1:${port}`)).rejects.toMatchObject({
    code: 'NOT_READY',
    message: `no server of a cluster is at 127.0.0.1:${port}: what listens there does not speak gRPC; it may be a metrics port`,
  });
});

test('a server that cannot be reached is left alone for a while, unless it must be tried', async () => {
  const { address, port, close } = await serve();
  const all = connections();
  await close(0);
  const refused = { code: 'NOT_READY', message: expect.stringContaining(`nothing answers at ${address}: `) };
  await expect(all.to(address)).rejects.toMatchObject(refused);
  await serve(port);
  await expect(all.to(address)).rejects.toMatchObject(refused);
  await all.to(address, true);
  await all.to(address);
});
