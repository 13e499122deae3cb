import { connect as connectHttp2 } from 'node:http2';
import { createServer } from 'node:net';
import {
  loadPackageDefinition,
  Metadata,
  makeClientConstructor,
  type ServerDuplexStream,
  type ServiceClientConstructor,
  type UntypedHandleCall,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { describe, expect, test } from '@jest/globals';
import { protoPath as healthProtoPath, service as healthService } from 'grpc-health-check';
import { Access } from '../../services/common/access.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { connect, windowBytes } from '../../services/common/grpc-channel.js';
import { Deferred } from '../../services/common/lifecycle.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError, toServiceError } from '../../services/common/status.js';
import { until } from '../support/until.js';
import { atEnd, errorOf, inference, messageBytesMax, serve, unary } from './support.js';

type Call = ServerDuplexStream<unknown, unknown>;

const Health = makeClientConstructor(healthService, 'Health');

function client(address: string, token: string | null = null) {
  const made = connect(clients.Inference, address, { token, messageBytesMax });
  atEnd(() => made.close());
  return made;
}

const describeModel = (address: string, token: string | null = null) =>
  unary<{ name: string }>((callback) => client(address, token).DescribeModel({}, callback));

function health(address: string, token: string | null, service = '') {
  const made = connect(Health, address, { token, messageBytesMax });
  atEnd(() => made.close());
  return unary<{ status: string }>((callback) => made.check!({ service }, callback));
}

describe('access', () => {
  const access = new Access({ client: 'secret', operator: 'other' });

  test('a call without a token, or with a wrong one, is refused, and health is for everybody', async () => {
    const { address } = await serve({ access });
    for (const token of ['secret', 'other'])
      await expect(describeModel(address, token)).resolves.toMatchObject({ name: 'm' });
    for (const token of [null, 'secre', 'secret2', 'Secret']) {
      expect((await errorOf(describeModel(address, token))).code).toBe('UNAUTHENTICATED');
      await expect(health(address, token)).resolves.toMatchObject({ status: 'NOT_SERVING' });
    }
  });

  test('a handler never sees a stream without its token', async () => {
    let calls = 0;
    const { address } = await serve({ access, services: [inference('m', () => calls++)] });
    const call = client(address, 'wrong').Forward();
    call.on('data', () => {});
    call.write({ header: { batchId: 'b' } });
    const error = await new Promise<unknown>((resolve) => call.on('error', resolve));
    expect(fromServiceError(error).code).toBe('UNAUTHENTICATED');
    expect(calls).toBe(0);
  });

  test.each(['0.0.0.0', '::', '192.0.2.1', 'example.org'])(
    '%s is not bound without a token',
    async (host) => {
      const error = await errorOf(serve({ host }));
      expect(error).toMatchObject({ code: 'CONFIG_INVALID', details: { key: 'host', value: host } });
      expect(error.message).toContain('--insecure');
    },
  );

  test('tokens, or --insecure, open other addresses', async () => {
    await expect(serve({ host: '0.0.0.0', access })).resolves.toMatchObject({
      port: expect.any(Number),
    });
    await expect(serve({ host: '0.0.0.0', insecure: true })).resolves.toMatchObject({
      port: expect.any(Number),
    });
  });
});

describe('a call that is cancelled', () => {
  test.each([0, 1, 2, 3, 5, 10, 20])(
    '%i promises after it was made ends at the server too',
    async (promises) => {
      const open = new Set<Call>();
      let last: Call | null = null;
      const forward = (call: Call) => {
        open.add(call);
        call.on('cancelled', () => open.delete(call));
        call.on('data', () => {
          last = call;
        });
      };
      const { address } = await serve({ services: [inference('m', forward as UntypedHandleCall)] });
      const made = client(address);
      await unary((callback) => made.DescribeModel({}, callback));
      const first = made.Forward().on('error', () => {});
      for (let passed = 0; passed < promises; passed++) await null;
      first.cancel();
      const second = made.Forward().on('error', () => {});
      second.write({ header: { batchId: 'b' } });
      await until(
        () => last,
        (call) => call !== null && open.has(call) && open.size === 1,
      );
      second.cancel();
      await until(
        () => open.size,
        (size) => size === 0,
      );
    },
  );
});

describe('binding', () => {
  test('a port in use is named', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    atEnd(() => other.close());
    await new Promise((resolve) => other.once('listening', resolve));
    const { port } = other.address() as { port: number };
    const error = await errorOf(serve({ port }));
    expect(error).toMatchObject({ code: 'CONFIG_INVALID', details: { key: 'port', value: port } });
    expect(error.message).toContain('in use on 127.0.0.1');
  });

  test('an address of no interface of this machine is named', async () => {
    const error = await errorOf(serve({ host: '192.0.2.1', insecure: true }));
    expect(error).toMatchObject({ code: 'CONFIG_INVALID', details: { key: 'host', value: '192.0.2.1' } });
  });
});

describe('health', () => {
  test('is what the service says of itself', async () => {
    const { address, setServing } = await serve({});
    const name = 'switchyard.v1.Inference';
    await expect(health(address, null, name)).resolves.toMatchObject({ status: 'NOT_SERVING' });
    setServing(name, true);
    await expect(health(address, null, name)).resolves.toMatchObject({ status: 'SERVING' });
    await expect(health(address, null, '')).resolves.toMatchObject({ status: 'NOT_SERVING' });
    await expect(health(address, null, 'no.such.Service')).rejects.toThrow('no.such.Service');
  });
});

describe('reflection', () => {
  interface ReflectionAnswer {
    listServicesResponse?: { service: { name: string }[] };
    fileDescriptorResponse?: { fileDescriptorProto: Buffer[] };
  }

  test('lists the services of the server and describes each', async () => {
    const { address } = await serve({});
    const path = new URL(
      'build/proto/grpc/reflection/v1/reflection.proto',
      new URL('../../node_modules/@grpc/reflection/', import.meta.url),
    );
    const loaded = loadPackageDefinition(loadSync(path.pathname, { oneofs: true })) as never as {
      grpc: { reflection: { v1: { ServerReflection: ServiceClientConstructor } } };
    };
    const made = connect(loaded.grpc.reflection.v1.ServerReflection, address, {
      token: null,
      messageBytesMax,
    });
    atEnd(() => made.close());
    const ask = (request: object) =>
      new Promise<ReflectionAnswer>((resolve, reject) => {
        const call = made.ServerReflectionInfo!();
        call.on('data', resolve).on('error', reject);
        call.write(request);
        call.end();
      });
    const { listServicesResponse } = await ask({ listServices: '*' });
    const names = listServicesResponse!.service.map(({ name }) => name).sort();
    expect(names).toEqual(['grpc.health.v1.Health', 'switchyard.v1.Inference']);
    for (const name of names) {
      const { fileDescriptorResponse } = await ask({ fileContainingSymbol: name });
      const text = Buffer.concat(fileDescriptorResponse!.fileDescriptorProto).toString('latin1');
      expect(text).toContain(name.split('.').at(-1));
      // protobufjs would write `Statuses`, which the Go clients refuse.
      if (name.includes('Health')) expect(text).toContain('StatusesEntry');
    }
    expect(healthProtoPath).toMatch(/health\.proto$/);
  });
});

describe('messages', () => {
  test('above the limit end the call with TOO_LARGE, on both sides', async () => {
    const echo = (call: ServerDuplexStream<{ chunk: { rows: Buffer } }, object>) => {
      call.on('data', () => call.write({ chunk: { rows: Buffer.alloc(3 * messageBytesMax) } }));
      call.on('end', () => call.end());
    };
    const { address } = await serve({ services: [inference('m', echo)] });
    const send = (bytes: number, limit: number) => {
      const made = connect(clients.Inference, address, { token: null, messageBytesMax: limit });
      atEnd(() => made.close());
      const call = made.Forward();
      call.on('data', () => {});
      call.end({ chunk: { rows: Buffer.alloc(bytes) } });
      return new Promise<SwitchyardError>((resolve) =>
        call.on('error', (error) => resolve(fromServiceError(error))),
      );
    };
    // More than the server receives; more than the client does.
    expect(await send(3 * messageBytesMax, 8 * messageBytesMax)).toMatchObject({ code: 'TOO_LARGE' });
    expect(await send(16, messageBytesMax)).toMatchObject({ code: 'TOO_LARGE' });
  });

  test('an error of a handler reaches the client with its code and details', async () => {
    const refuse = (call: ServerDuplexStream<object, object>) => {
      const details = { layer: 3, expert: 7, worker: 'ü' };
      call.emit(
        'error',
        toServiceError(new SwitchyardError('WORKER_LOST', 'lost: 100 % of\nworker ü', details)),
      );
    };
    const { address } = await serve({ services: [inference('m', refuse)] });
    const call = client(address).Forward();
    call.on('data', () => {});
    const error = fromServiceError(await new Promise((resolve) => call.on('error', resolve)));
    expect(error).toMatchObject({
      code: 'WORKER_LOST',
      message: 'lost: 100 % of\nworker ü',
      details: { layer: 3, expert: 7, worker: 'ü' },
    });
  });

  test('a nameless error of a handler is INTERNAL', async () => {
    const { address } = await serve({
      services: [
        inference('m', (call: ServerDuplexStream<object, object>) =>
          call.emit('error', toServiceError('odd')),
        ),
      ],
    });
    const call = client(address).Forward(new Metadata());
    call.on('data', () => {});
    expect(fromServiceError(await new Promise((resolve) => call.on('error', resolve))).code).toBe('INTERNAL');
  });

  test('are not received by a server that does not read, beyond the windows and two messages', async () => {
    const rows = Buffer.alloc(messageBytesMax);
    const { address } = await serve({ services: [inference('m', () => {})] });
    const call = client(address).Forward();
    call.on('error', () => {});
    let written = 0;
    const pump = () => {
      for (let open = true; open && written < 64; written++) open = call.write({ chunk: { rows } });
    };
    call.on('drain', pump);
    pump();
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const inWindows = windowBytes / messageBytesMax;
    // One that the stream of each side holds, one that the server assembles, one on its way to the socket.
    expect(written).toBeLessThanOrEqual(inWindows + 4);
    expect(written).toBeGreaterThan(1);
    call.cancel();
  });
});

describe('windows', () => {
  test('of a connection and of its streams are those of the channel', async () => {
    const { address } = await serve({});
    const session = connectHttp2(`http://${address}`);
    atEnd(() => session.destroy());
    const settings = await new Promise<{ initialWindowSize?: number }>((resolve) =>
      session.once('remoteSettings', resolve),
    );
    expect(settings.initialWindowSize).toBe(windowBytes);
    const deadline = Date.now() + 5_000;
    while (session.state.remoteWindowSize! < windowBytes && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(session.state.remoteWindowSize).toBeGreaterThanOrEqual(windowBytes);
  });
});

describe('close', () => {
  test('lets a call that runs end within the grace, and cuts it after', async () => {
    const opened = new Deferred<void>();
    const server = await serve({ services: [inference('m', () => opened.resolve())] });
    const call = client(server.address).Forward();
    call.on('data', () => {});
    const ended = new Promise<unknown>((resolve) => call.on('error', resolve));
    call.write({ header: { batchId: 'b' } });
    await opened.promise;
    const start = performance.now();
    await Promise.all([server.close(200), server.close(60_000)]);
    expect(performance.now() - start).toBeGreaterThan(190);
    expect(performance.now() - start).toBeLessThan(10_000);
    await ended;
    await expect(describeModel(server.address)).rejects.toMatchObject({ code: 'LINK_LOST' });
  });
});
