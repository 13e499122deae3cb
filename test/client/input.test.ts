import { createReadStream } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { type ForwardOptions, type RowsReader, SwitchyardClient } from '../../services/client/index.js';
import { SwitchyardError } from '../../services/common/errors.js';
import { rowBytes, shape, startCluster, tokens } from '../router/cluster.js';

const { hidden } = shape;
const off: ForwardOptions = { feedback: false };
let client: SwitchyardClient;
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-input-'));
  const { routers } = await startCluster({ workers: 1 });
  client = await SwitchyardClient.connect(routers[0]!.address);
  await client.waitUntilReady(60_000);
});

afterEach(async () => {
  client.destroy();
  await rm(directory, { recursive: true });
});

const refused = (field: string, message: string) => ({
  code: 'INVALID_ARGUMENT',
  details: { field },
  message: expect.stringContaining(message),
});

async function collected(input: unknown, options: ForwardOptions = {}) {
  const call = await client.forward(input as Uint8Array, { ...off, ...options });
  return call.collect();
}

test('what is no input is refused by what it is and what is allowed', async () => {
  const rows = await tokens(4);
  const { buffer } = Uint8Array.from(rows);
  const cases: [unknown, string][] = [
    [null, 'input is null; allowed: a Uint8Array, the path of a file, a RowsReader, or a stream,'],
    [undefined, 'input is undefined; allowed: a Uint8Array'],
    [4, 'input is 4;'],
    [{}, 'input is "of type Object";'],
    [() => rows, 'input is "of type Function";'],
    [Promise.resolve(rows), 'input is "of type Promise";'],
    [buffer, 'input is "of type ArrayBuffer";'],
    [new Uint16Array(buffer), 'input is "of type Uint16Array";'],
    [new Float32Array(buffer), 'input is "of type Float32Array";'],
    [new DataView(buffer), 'input is "of type DataView";'],
    [[1, 2, 3], 'input is "an array of 3";'],
    [[rows, 'x'], 'input is "an array of 2";'],
  ];
  for (const [input, message] of cases)
    await expect(client.forward(input as Uint8Array, off)).rejects.toMatchObject(refused('input', message));
});

test('a path that leads to no file is refused', async () => {
  for (const path of ['', directory, join(directory, 'missing')])
    await expect(client.forward(path, off)).rejects.toMatchObject(
      refused('input', 'a file that can be read'),
    );
});

test('bytes come in any pieces: from a stream, a generator, a list', async () => {
  const rows = await tokens(4);
  const whole = await collected(rows);
  const parts = [rows.subarray(0, 3), rows.subarray(3, 3), rows.subarray(3)];
  function* pieces() {
    yield* parts;
  }
  for (const input of [Readable.from(parts), pieces(), parts, new Set(parts)]) {
    const { rows: answers } = await collected(input, { sequences: 1, length: 4 });
    expect(Buffer.compare(answers, whole.rows)).toBe(0);
  }
});

test('pieces that are no bytes are refused, and where they are', async () => {
  const rows = await tokens(4);
  const withEncoding = Readable.from([rows], { objectMode: false }).setEncoding('latin1');
  const cases: [unknown, string][] = [
    [Readable.from(['abc']), 'input is "text at byte 0"; allowed: Uint8Arrays'],
    [withEncoding, 'input is "text at byte 0"'],
    [
      Readable.from([rows.subarray(0, 10), null, 5].filter((part) => part !== null)),
      'input is "5 at byte 10"',
    ],
    [new Map([[1, 2]]), 'input is "an array of 2 at byte 0"'],
    [
      Readable.from([rows.subarray(0, -1)]),
      `input is "${rows.length - 1} bytes long"; allowed: 4 tokens of 64 BF16`,
    ],
    [Readable.from([rows, rows]), 'input is "longer than announced"'],
  ];
  for (const [input, message] of cases)
    await expect(collected(input, { sequences: 1, length: 4 })).rejects.toMatchObject(
      refused('input', message),
    );
});

describe('a shape that the input does not have', () => {
  test.each<[ForwardOptions, string, string]>([
    [{ sequences: 3 }, 'sequences', "sequences is 3; allowed: a divisor of 4, the input's tokens"],
    [{ length: 3 }, 'sequences × length', 'sequences × length is "1 × 3"; allowed: 4, the input\'s tokens'],
    [{ sequences: 3, length: 2 }, 'sequences × length', 'is "3 × 2"; allowed: 4, the input\'s tokens'],
    [{ tensor: 'x' }, 'tensor', 'tensor is "x"; allowed: none, unless the input is a .safetensors file'],
  ])('is refused: %j', async (options, field, message) => {
    await expect(client.forward(await tokens(4), options)).rejects.toMatchObject(refused(field, message));
  });

  test('is refused of a reader and of odd bytes', async () => {
    const reader = (more: object) => ({ tokens: 4, hidden, read: () => new Uint8Array(0), ...more });
    const cases: [unknown, string, string][] = [
      [reader({ hidden: 32 }), 'input.hidden', `input.hidden is 32; allowed: ${hidden}, the model's`],
      [reader({ hidden: null }), 'input.hidden', 'input.hidden is null'],
      [reader({ tokens: Number.NaN }), 'input.tokens', 'input.tokens is NaN; allowed: 1 to 4294967296'],
      [reader({ tokens: 0 }), 'input.tokens', 'input.tokens is 0; allowed: 1 to 4294967296'],
      [reader({ tokens: '4' }), 'input.tokens', 'input.tokens is "4"'],
      [reader({ sequences: 0 }), 'input.sequences', 'input.sequences is 0; allowed: a divisor of 4'],
      [new Uint8Array(3), 'input', 'input is "3 bytes"; allowed: a multiple of 128 above 0'],
      [new Uint8Array(0), 'input', 'input is "0 bytes"'],
    ];
    for (const [input, field, message] of cases)
      await expect(client.forward(input as RowsReader, off)).rejects.toMatchObject(refused(field, message));
  });

  test('is refused at once if it is larger than a batch may be', async () => {
    const reads: number[] = [];
    const read = (first: number) => {
      reads.push(first);
      return new Uint8Array(0);
    };
    const large: [unknown, ForwardOptions, string][] = [
      [{ tokens: 2 ** 32 + 2, hidden, read }, { sequences: 2 }, '2 × 2147483649'],
      [{ tokens: 2 ** 33, hidden, read }, {}, '1 × 8589934592'],
      [Readable.from([]), { sequences: 65_537, length: 65_536 }, '65537 × 65536'],
      [Readable.from([]), { sequences: 2 ** 32 - 1, length: 2 ** 32 - 1 }, '4294967295 × 4294967295'],
    ];
    for (const [input, options, seen] of large) {
      const message = `sequences × length is "${seen}"; allowed: at most 4294967296 tokens in a batch`;
      const forwarding = client.forward(input as RowsReader, options);
      await expect(forwarding).rejects.toMatchObject(refused('sequences × length', message));
    }
    expect(reads).toEqual([]);
  });
});

test('what a reader, given or a sink gives instead of what it must is refused', async () => {
  const rows = await tokens(4);
  const reader = (bytes: unknown) => ({ tokens: 4, hidden, read: () => bytes });
  for (const [bytes, seen] of [
    [null, 'null'],
    [rows.toString('latin1'), '"'],
    [new Uint16Array(4 * hidden), '"of type Uint16Array"'],
    [rows.subarray(1), `"${rows.length - 1} bytes"`],
  ] as const) {
    const text = `what input.read gave at token 0 is ${seen}`;
    await expect(collected(reader(bytes), { transport: 'grpc' })).rejects.toMatchObject(
      refused('what input.read gave at token 0', text),
    );
  }
  for (const routing of [null, {}, { experts: [0, 1], weights: [1, 0] }, { experts: new Uint32Array(8) }]) {
    const given = (() => routing) as unknown as NonNullable<ForwardOptions['given']>;
    await expect(collected(rows, { given })).rejects.toMatchObject(
      refused(
        'what given gave',
        'a Uint32Array, and weights, a Float32Array, each of [tokens, layers, topK]',
      ),
    );
  }
  const call = await client.forward(rows, off);
  await expect(call.into(null as never)).rejects.toMatchObject(refused('sink', 'sink is null'));
  // It ends the batch, which nobody else is to take.
  await expect(call.collect()).rejects.toMatchObject(refused('sink', 'sink is null'));
});

describe('an input that fails ends the batch with what it failed with as the cause', () => {
  const mine = new Error('the disk is gone');
  const failed = { ...refused('input', 'input failed: the disk is gone'), cause: mine };
  const announced = { sequences: 1, length: 4 };
  const fail = () => {
    throw mine;
  };

  test.each<[string, () => unknown]>([
    [
      'a generator',
      function* () {
        yield new Uint8Array(10);
        fail();
      },
    ],
    ['an iterable', () => ({ [Symbol.asyncIterator]: fail })],
    ['a reader that throws', () => ({ tokens: 4, hidden, read: fail })],
    ['a reader that rejects', () => ({ tokens: 4, hidden, read: () => Promise.reject(mine) })],
    [
      'a stream',
      () =>
        new Readable({
          read() {
            this.destroy(mine);
          },
        }),
    ],
    ['a stream that failed before', () => new Readable({ read() {} }).destroy(mine)],
    [
      'a reader that closes badly',
      () => ({ tokens: 4, hidden, read: () => new Uint8Array(4 * rowBytes), close: fail }),
    ],
  ])('%s', async (_, make) => {
    for (const transport of ['grpc', 'auto'] as const)
      await expect(collected(make(), { ...announced, transport })).rejects.toMatchObject(failed);
  });

  test('a file that is not there', async () => {
    const input = createReadStream(join(directory, 'missing'));
    const error: SwitchyardError = await collected(input, announced).catch((thrown) => thrown);
    expect(error).toMatchObject(refused('input', 'ENOENT'));
    expect(error.cause).toHaveProperty('code', 'ENOENT');
  });

  test('but an error of the product is its own', async () => {
    const lost = new SwitchyardError('WORKER_LOST', 'of another batch');
    const read = () => Promise.reject(lost);
    await expect(collected({ tokens: 4, hidden, read })).rejects.toBe(lost);
  });
});

test('what a sink throws is what the batch ended with, as it is', async () => {
  const mine = new Error('mine');
  const call = await client.forward(await tokens(4), off);
  const write = () => {
    throw mine;
  };
  await expect(call.into({ write })).rejects.toBe(mine);
  await expect(call.summary).rejects.toBe(mine);
});

test('what given throws is thrown as it is', async () => {
  const rows = await tokens(4);
  const mine = new Error('mine');
  const given = () => {
    throw mine;
  };
  await expect(collected(rows, { given })).rejects.toBe(mine);
  const call = await client.forward(rows, { ...off, given: () => Promise.reject(mine) });
  await expect(call.summary).rejects.toBe(mine);
});

test('more answers than an array or memory holds are refused before memory is taken for them', async () => {
  const read = () => new Promise<Uint8Array>(() => {});
  const call = await client.forward({ tokens: 2 ** 32, hidden, read }, off);
  await expect(call.collect()).rejects.toMatchObject(refused('bytes to collect', 'a loop or into()'));
  call.cancel();
});

test('rows of a session are bytes', async () => {
  const session = client.session();
  const rows = await tokens(4);
  const { buffer } = Uint8Array.from(rows);
  for (const [wrong, seen] of [
    [null, 'null'],
    ['abc', '"abc"'],
    [buffer, '"of type ArrayBuffer"'],
    [new Uint16Array(buffer), '"of type Uint16Array"'],
    [new DataView(buffer), '"of type DataView"'],
    [[1, 2], '"an array of 2"'],
    [rows.subarray(1), `"${rows.length - 1} bytes"`],
    [new Uint8Array(0), '"0 bytes"'],
  ] as const)
    await expect(session.forward(wrong as Uint8Array)).rejects.toMatchObject(
      refused('rows', `rows is ${seen}`),
    );
  expect((await session.forward(rows)).rows).toHaveLength(rows.length);
  await session.close();
});

test('other arguments of a client are checked as well', async () => {
  await expect(client.describeCluster(null as never)).rejects.toMatchObject(
    refused('options', 'options is null'),
  );
  for (const timeoutMs of [Number.NaN, -1, 2 ** 31, '5' as never])
    await expect(client.waitUntilReady(timeoutMs)).rejects.toMatchObject(
      refused('timeoutMs', 'timeoutMs is'),
    );
  await expect(client.waitUntilReady(1, -1)).rejects.toMatchObject(refused('routers', 'routers is -1'));
  await expect(client.waitUntilReady(1, 1, {} as never)).rejects.toMatchObject(
    refused('signal', 'an AbortSignal'),
  );
});

test('one signal serves any number of batches at once, without a warning', async () => {
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on('warning', onWarning);
  const end = new AbortController();
  const { signal } = end;
  const rows = await tokens(4);
  const session = client.session();
  const read = () => new Promise<Uint8Array>(() => {});
  const stuck = await Promise.all(
    Array.from({ length: 30 }, () => client.forward({ tokens: 4, hidden, read }, { ...off, signal })),
  );
  const ends = stuck.map((call) => call.collect().catch((error) => error));
  const done = Array.from({ length: 100 }, () => session.forward(rows, { signal, deadlineMs: 100_000 }));
  const waits = Array.from({ length: 30 }, () => client.waitUntilReady(60_000, 1, signal));
  await Promise.all([...done, ...waits]);
  const waiting = Array.from({ length: 30 }, () =>
    client.waitUntilReady(60_000, 2, signal).catch((error) => error),
  );
  end.abort();
  for (const error of await Promise.all(ends)) expect(error).toMatchObject({ code: 'CANCELLED' });
  for (const error of await Promise.all(waiting)) expect(error).toBe(signal.reason);
  // Warnings are emitted in a later turn.
  await new Promise((resolve) => setImmediate(resolve));
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
});
