import {
  chmod,
  copyFile,
  cp,
  open as openFile,
  readdir,
  readFile,
  rename,
  stat,
  truncate,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { pino } from 'pino';
import { native, type TensorSource } from '../../native/index.js';
import { digestOf } from '../../services/model/file-digest.js';
import { blockBytes } from '../../services/model/hash-blocks.js';
import { type Model, openModel } from '../../services/model/load.js';
import { failure, smallConfig, smallTensors, temporaryDirectory, writeCheckpoint } from './support.js';

const open = (directory: string) => openModel({ kind: 'checkpoint', directory });

async function fingerprint(directory: string): Promise<string> {
  const model = await open(directory);
  model.close();
  return model.spec.fingerprint;
}

/** A checkpoint whose file has several blocks, most of them of a tensor that nobody needs. */
async function largeCheckpoint(): Promise<string> {
  const tensors = smallTensors();
  const data = new Uint8Array(3 * blockBytes);
  for (let at = 0; at < data.byteLength; at += 977) data[at] = at % 251;
  tensors['model.embed_tokens.weight'] = { dtype: 'U8', shape: [data.byteLength], data };
  return await writeCheckpoint(tensors);
}

const weightsOf = (directory: string) => join(directory, 'model.safetensors');

let cache: string;
const before = process.env.XDG_CACHE_HOME;
beforeEach(async () => {
  cache = await temporaryDirectory();
  process.env.XDG_CACHE_HOME = cache;
});
afterEach(() => {
  if (before === undefined) delete process.env.XDG_CACHE_HOME;
  else process.env.XDG_CACHE_HOME = before;
});

describe('a fingerprint', () => {
  test('is another for one flipped bit, wherever it is', async () => {
    const directory = await largeCheckpoint();
    const original = await fingerprint(directory);
    const file = weightsOf(directory);
    const bytes = await readFile(file);
    const dataStart = 8 + Number(bytes.readBigUInt64LE());
    const places = [
      dataStart,
      dataStart + 4097,
      blockBytes - 1,
      blockBytes,
      2 * blockBytes + 12_345,
      bytes.length - 1,
    ];
    const seen = new Set([original]);
    for (const place of places) {
      bytes[place]! ^= 0x10;
      await writeFile(file, bytes);
      seen.add(await fingerprint(directory));
      bytes[place]! ^= 0x10;
    }
    expect(seen.size).toBe(places.length + 1);
    await writeFile(file, bytes);
    expect(await fingerprint(directory)).toBe(original);
  });

  test('is the same in another directory, with other times', async () => {
    const directory = await largeCheckpoint();
    const copy = join(await temporaryDirectory(), 'other');
    await cp(directory, copy, { recursive: true });
    await utimes(weightsOf(copy), 1_000_000_000, 1_000_000_000);
    expect(await fingerprint(copy)).toBe(await fingerprint(directory));
  });
});

describe('hashing', () => {
  test('of a file that ends early is an error, with one thread or several', async () => {
    const file = weightsOf(await largeCheckpoint());
    const handle = await openFile(file);
    const { size } = await handle.stat();
    for (const byteLength of [size + 1, size + 5 * blockBytes]) {
      const error = await failure(() => digestOf(handle, byteLength, () => {}));
      expect(error.message).toContain(`ends at byte ${size}`);
    }
    await handle.close();
  });

  test('is told in the log, unless the digests were known', async () => {
    const directory = await largeCheckpoint();
    await settled(weightsOf(directory));
    const lines: Record<string, unknown>[] = [];
    const log = pino({}, { write: (line: string) => void lines.push(JSON.parse(line)) });
    for (const _ of ['hashed', 'remembered']) {
      (await openModel({ kind: 'checkpoint', directory }, log)).close();
    }
    const { size } = await stat(weightsOf(directory));
    expect(lines).toEqual([expect.objectContaining({ event: 'weights-hashed', bytes: size })]);
  });
});

/** Waits until a file is so old that its times tell whether it was changed. */
async function settled(file: string): Promise<void> {
  while ((await stat(file)).ctimeMs > Date.now() - 2_100) await sleep(50);
}

describe('digests are remembered', () => {
  const entries = async () => (await readdir(join(cache, 'switchyard', 'digests')).catch(() => [])).sort();

  /** Puts another digest into the only entry: what is opened next shows whether it was believed. */
  async function falsify(): Promise<void> {
    const [name] = await entries();
    const path = join(cache, 'switchyard', 'digests', name!);
    const entry = JSON.parse(await readFile(path, 'utf8'));
    await writeFile(path, JSON.stringify({ ...entry, digest: '0'.repeat(64) }));
  }

  test('and not computed again while the file stays as it is', async () => {
    const directory = await writeCheckpoint(smallTensors());
    await settled(weightsOf(directory));
    const original = await fingerprint(directory);
    expect(await entries()).toHaveLength(1);
    expect(await fingerprint(directory)).toBe(original);
    await falsify();
    const believed = await fingerprint(directory);
    expect(believed).not.toBe(original);

    // In place, of the same size, and with the time that it had.
    const file = weightsOf(directory);
    const { atime, mtime } = await stat(file);
    const bytes = await readFile(file);
    await writeFile(file, bytes);
    await utimes(file, atime, mtime);
    expect(await fingerprint(directory)).toBe(original);
  });

  test('but not of a file that has only just changed', async () => {
    const directory = await writeCheckpoint(smallTensors());
    const now = Date.now() / 1000 + 60;
    await utimes(weightsOf(directory), now, now);
    await fingerprint(directory);
    expect(await entries()).toEqual([]);
  });

  test('unless the cache is broken, cannot be written, or is of others', async () => {
    const directory = await writeCheckpoint(smallTensors());
    await settled(weightsOf(directory));
    const original = await fingerprint(directory);
    const path = join(cache, 'switchyard', 'digests', (await entries())[0]!);
    for (const content of ['', '{', '{"version":1}', 'x'.repeat(100_000)]) {
      await writeFile(path, content);
      expect(await fingerprint(directory)).toBe(original);
    }
    await falsify();
    await chmod(path, 0o666);
    expect(await fingerprint(directory)).toBe(original);
    process.env.XDG_CACHE_HOME = weightsOf(directory);
    expect(await fingerprint(directory)).toBe(original);
  });
});

describe('a checkpoint that changes after it was opened', () => {
  async function read(source: TensorSource): Promise<void> {
    (await native.readTensor(source)).release();
  }

  /** A write within the tick of the clock in which the file was written before would not show. */
  const tick = () => sleep(30);

  async function opened(): Promise<{ directory: string; file: string; model: Model }> {
    const directory = await writeCheckpoint(smallTensors());
    await tick();
    const model = await open(directory);
    await read(model.gate(0).weight);
    return { directory, file: weightsOf(directory), model };
  }

  test.each<[string, (file: string) => Promise<void>]>([
    [
      'overwritten in place',
      async (file) => {
        const bytes = await readFile(file);
        bytes[bytes.length - 1]! ^= 1;
        await writeFile(file, bytes);
      },
    ],
    [
      'replaced by rename',
      async (file) => {
        await copyFile(file, `${file}.new`);
        await rename(`${file}.new`, file);
      },
    ],
    ['cut short', (file) => truncate(file, 1000)],
    ['gone', (file) => rename(file, `${file}.old`)],
  ])('%s: nothing more is loaded from it, and the file is named', async (_, change) => {
    const { file, model } = await opened();
    await change(file);
    const loads = [
      () => read(model.gate(0).weight),
      () => native.createCpuBackend({ threads: 1 }).load(model.expert(0, 1)),
      () => native.readFloats(model.norm(0)!.weight),
    ];
    for (const load of loads) {
      const error = await failure(load);
      expect(error).toMatchObject({ code: 'MODEL_INVALID' });
      expect(error.message).toContain(file);
    }
    model.close();
  });
});

describe('weights that are not finite', () => {
  const infinity = [0x80, 0x7f];
  const nan = [0xc1, 0xff];

  test('are counted as an expert is loaded', async () => {
    const tensors = smallTensors();
    for (const [matrix, value] of [
      ['w1', nan],
      ['w2', infinity],
    ] as const) {
      const { data } = tensors[`model.layers.0.block_sparse_moe.experts.2.${matrix}.weight`]!;
      for (const at of matrix === 'w1' ? [0] : [6, 100, 254]) data.set(value, at);
    }
    const model = await open(await writeCheckpoint(tensors, smallConfig));
    const backend = native.createCpuBackend({ threads: 1 });
    expect((await backend.load(model.expert(0, 2))).nonFinite).toMatchObject({ gate: 1, up: 0, down: 3 });
    expect((await backend.load(model.expert(0, 1))).nonFinite).toMatchObject({ gate: 0, up: 0, down: 0 });
    model.close();
  });

  test('are those that the conversion to BF16 makes infinite, too', async () => {
    const tensors = smallTensors();
    const name = 'model.layers.0.block_sparse_moe.experts.0.w3.weight';
    const values = new Float32Array(tensors[name]!.data.byteLength / 2).fill(1);
    values.set([3.4e38, -3.4028234e38, 3.38e38], 5);
    tensors[name] = { dtype: 'F32', shape: tensors[name]!.shape, data: new Uint8Array(values.buffer) };
    const model = await open(await writeCheckpoint(tensors));
    const backend = native.createCpuBackend({ threads: 1 });
    expect((await backend.load(model.expert(0, 0))).nonFinite).toMatchObject({ gate: 0, up: 2, down: 0 });
    model.close();
  });
});
