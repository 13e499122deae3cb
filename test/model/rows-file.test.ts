import { execFileSync } from 'node:child_process';
import { mkdir, readdir, readFile, rmdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createRowsWriter, openRowsReader } from '../../services/model/rows-file.js';
import { failure, fixtures, temporaryDirectory, writeSafetensors } from './support.js';

const hidden = 8;
const rowBytes = hidden * 2;

function rowsOf(tokens: number): Uint8Array {
  return Uint8Array.from({ length: tokens * rowBytes }, (_, index) => (index * 31 + (index >> 8)) & 0xff);
}

async function readAll(path: string, tensor: string | null): Promise<Uint8Array> {
  const reader = await openRowsReader(path, { tensor, hidden });
  const slab = await reader.read(0, reader.tokens);
  const bytes = slab.view().slice();
  slab.release();
  await reader.close();
  return bytes;
}

describe.each(['safetensors', 'bf16'])('a .%s file of rows', (extension) => {
  test('written in any order is read back, in any pieces', async () => {
    const directory = await temporaryDirectory();
    const plan = fc.record({
      tokens: fc.integer({ min: 1, max: 40 }),
      cuts: fc.array(fc.nat(40)),
      order: fc.array(fc.nat(1000), { minLength: 42, maxLength: 42 }),
    });
    await fc.assert(
      fc.asyncProperty(plan, async ({ tokens, cuts, order }) => {
        const path = join(directory, `x.${extension}`);
        const rows = rowsOf(tokens);
        const edges = [...new Set([0, ...cuts.filter((cut) => cut < tokens), tokens])].sort((a, b) => a - b);
        const pieces = edges.slice(1).map((end, index) => [edges[index]!, end] as const);
        const shuffled = pieces.toSorted((a, b) => order[a[0]]! - order[b[0]]!);
        const writer = await createRowsWriter(path, { tensor: 'x', shape: [tokens, hidden] });
        const bytesOf = (begin: number, end: number) => rows.subarray(begin * rowBytes, end * rowBytes);
        await Promise.all(shuffled.map(([begin, end]) => writer.write(begin, bytesOf(begin, end))));
        await writer.close();
        expect(await readAll(path, null)).toEqual(rows);
        const reader = await openRowsReader(path, { tensor: null, hidden });
        for (const [begin, end] of shuffled) {
          const slab = await reader.read(begin, end - begin);
          expect(slab.view()).toEqual(bytesOf(begin, end));
          slab.release();
        }
        await reader.close();
      }),
      { numRuns: 30 },
    );
  });

  test('takes the rows of a slab as well', async () => {
    const directory = await temporaryDirectory();
    const source = join(directory, `a.${extension}`);
    const target = join(directory, `b.${extension}`);
    const first = await createRowsWriter(source, { tensor: 'x', shape: [5, hidden] });
    await first.write(0, rowsOf(5));
    await first.close();
    const reader = await openRowsReader(source, { tensor: null, hidden });
    const writer = await createRowsWriter(target, { tensor: 'x', shape: [5, hidden] });
    for (const token of [3, 0, 4, 1, 2]) {
      const slab = await reader.read(token, 1);
      await writer.write(token, slab);
      slab.release();
    }
    await writer.close();
    await reader.close();
    expect(await readFile(target)).toEqual(await readFile(source));
  });

  test('appears whole or not at all', async () => {
    const directory = await temporaryDirectory();
    const path = join(directory, `x.${extension}`);
    const writer = await createRowsWriter(path, { tensor: 'x', shape: [4, hidden] });
    await writer.write(0, rowsOf(1));
    await writer.write(2, rowsOf(2));
    const error = await failure(() => writer.close());
    expect(error).toMatchObject({ code: 'DATA_LOSS', details: { token: 1 } });
    expect(await readdir(directory)).toEqual([]);

    const aborted = await createRowsWriter(path, { tensor: 'x', shape: [4, hidden] });
    await aborted.abort();
    await aborted.abort();
    expect(await readdir(directory)).toEqual([]);
  });

  test('takes no token twice and none outside', async () => {
    const path = join(await temporaryDirectory(), `x.${extension}`);
    const writer = await createRowsWriter(path, { tensor: 'x', shape: [4, hidden] });
    await writer.write(1, rowsOf(2));
    for (const [first, tokens] of [
      [0, 2],
      [2, 1],
      [0, 4],
      [3, 2],
      [4, 1],
      [-1, 1],
      [0.5, 1],
    ] as const) {
      const error = await failure(() => writer.write(first, rowsOf(tokens)));
      expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    expect(await failure(() => writer.write(0, new Uint8Array(rowBytes - 1)))).toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await writer.write(0, rowsOf(1));
    await writer.write(3, rowsOf(1));
    await writer.close();
  });

  test('refuses to be read outside', async () => {
    const path = join(await temporaryDirectory(), `x.${extension}`);
    const writer = await createRowsWriter(path, { tensor: 'x', shape: [4, hidden] });
    await writer.write(0, rowsOf(4));
    await writer.close();
    const reader = await openRowsReader(path, { tensor: null, hidden });
    for (const [first, count] of [
      [4, 1],
      [0, 5],
      [3, 2],
      [0, 0],
      [-1, 1],
      [Number.NaN, 1],
    ] as const) {
      expect(await failure(() => reader.read(first, count))).toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    await truncate(path, 20);
    expect(await failure(() => reader.read(0, 4))).toMatchObject({ code: 'DATA_LOSS' });
    await reader.close();
  });
});

describe('a file of rows that does not fit is refused, naming value and allowed', () => {
  test('raw rows of another size', async () => {
    const path = join(await temporaryDirectory(), 'x.bin');
    await writeFile(path, new Uint8Array(rowBytes * 3 + 2));
    const error = await failure(() => openRowsReader(path, { tensor: null, hidden }));
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(error.message).toContain('"50 bytes"; allowed: a multiple of 16 bytes above 0');
  });

  test('no rows at all, and a tensor of a file that has none', async () => {
    const path = join(await temporaryDirectory(), 'x.bin');
    await writeFile(path, new Uint8Array(0));
    const empty = await failure(() => openRowsReader(path, { tensor: null, hidden }));
    expect(empty.message).toBe(
      `the size of ${path} is "0 bytes"; allowed: a multiple of 16 bytes above 0 (8 BF16 values a row)`,
    );
    await writeFile(path, new Uint8Array(rowBytes));
    const named = await failure(() => openRowsReader(path, { tensor: 'x', hidden }));
    expect(named).toMatchObject({ code: 'INVALID_ARGUMENT', details: { field: 'tensor', value: '"x"' } });
  });

  test.each(['', '.safetensors'])('a directory and a FIFO named x%s', async (extension) => {
    const directory = await temporaryDirectory();
    const path = join(directory, `x${extension}`);
    await mkdir(path);
    const refused = { code: 'INVALID_ARGUMENT', details: { field: 'input' } };
    expect(await failure(() => openRowsReader(path, { tensor: null, hidden }))).toMatchObject(refused);
    await rmdir(path);
    // Nobody writes to it: whoever opened it would wait for ever.
    execFileSync('mkfifo', [path]);
    expect(await failure(() => openRowsReader(path, { tensor: null, hidden }))).toMatchObject(refused);
  });

  test('another tensor, dtype or hidden size', async () => {
    const path = join(await temporaryDirectory(), 'x.safetensors');
    await writeSafetensors(path, {
      float: { dtype: 'F32', shape: [2, hidden], data: new Uint8Array(2 * hidden * 4) },
      short: { dtype: 'BF16', shape: [2, 4], data: new Uint8Array(16) },
    });
    const open = (tensor: string | null) => failure(() => openRowsReader(path, { tensor, hidden }));
    expect((await open(null)).message).toContain('"not named"; allowed: "float", "short"');
    expect((await open('absent')).message).toContain('"absent"; allowed: "float", "short"');
    expect((await open('float')).message).toContain('"F32"; allowed: BF16');
    expect((await open('short')).message).toContain('[2, 4]"; allowed: [..., 8]');
    for (const tensor of [null, 'absent', 'float', 'short']) {
      expect(await open(tensor)).toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });

  test('no file, and no directory to write to', async () => {
    const directory = await temporaryDirectory();
    const missing = join(directory, 'missing.bin');
    expect((await failure(() => openRowsReader(missing, { tensor: null, hidden }))).message).toContain(
      missing,
    );
    const nowhere = join(directory, 'no', 'x.bin');
    const write = (path: string) => createRowsWriter(path, { tensor: 'x', shape: [1, hidden] });
    expect(await failure(() => write(nowhere))).toMatchObject({ code: 'INVALID_ARGUMENT' });
    await mkdir(join(directory, 'no'));
    await (await write(nowhere)).abort();
  });
});

test('sequences are flattened to tokens, and the shape is kept', async () => {
  const path = join(await temporaryDirectory(), 'x.safetensors');
  const writer = await createRowsWriter(path, { tensor: 'x', shape: [2, 3, hidden] });
  await writer.write(0, rowsOf(6));
  await writer.close();
  const reader = await openRowsReader(path, { tensor: 'x', hidden });
  expect(reader).toMatchObject({ tensor: 'x', tokens: 6, hidden, shape: [2, 3, hidden], dtype: 'BF16' });
  await reader.close();
});

test('a file written by another library is read', async () => {
  const path = join(fixtures, 'mixtral.expected.safetensors');
  const reader = await openRowsReader(path, { tensor: 'input', hidden: 48 });
  expect(reader).toMatchObject({ tokens: 64, shape: [64, 48] });
  await reader.close();
});
