import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { rowsInMemory, StreamedRows } from '../../services/client/source.js';

async function* pieces(bytes: Uint8Array, cuts: readonly number[]) {
  let from = 0;
  for (const cut of [...cuts.map((at) => at % (bytes.length + 1)).sort((a, b) => a - b), bytes.length]) {
    yield bytes.subarray(from, cut);
    from = cut;
  }
}

const numbered = (length: number) => Uint8Array.from({ length }, (_, index) => index % 251);

describe('rows from a stream', () => {
  test('are the same wherever the stream was cut', async () => {
    const hidden = 3;
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 20 }),
        fc.array(fc.nat(1000), { maxLength: 30 }),
        async (reads, cuts) => {
          const tokens = reads.reduce((sum, count) => sum + count, 0);
          const bytes = numbered(tokens * hidden * 2);
          const rows = new StreamedRows(pieces(bytes, cuts), tokens, hidden);
          const got: Uint8Array[] = [];
          let first = 0;
          for (const count of reads) {
            got.push(await rows.read(first, count));
            first += count;
          }
          await rows.expectEnd();
          expect(Buffer.concat(got).equals(bytes)).toBe(true);
        },
      ),
    );
  });

  test('that end early are refused with what was seen and what was announced', async () => {
    const rows = new StreamedRows(pieces(numbered(10), []), 2, 3);
    await expect(rows.read(0, 2)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('10 bytes long'),
    });
  });

  test('that go on are refused', async () => {
    const rows = new StreamedRows(pieces(numbered(13), []), 2, 3);
    await rows.read(0, 2);
    await expect(rows.expectEnd()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('rows in memory', () => {
  test('must be whole rows', () => {
    expect(() => rowsInMemory(numbered(13), 3)).toThrow(/13.*a multiple of 6/);
    expect(() => rowsInMemory(numbered(0), 3)).toThrow(/multiple of 6 above 0/);
  });

  test('are views, not copies', () => {
    const bytes = numbered(12);
    const view = rowsInMemory(bytes, 3).read(1, 1) as Uint8Array;
    expect(view.buffer).toBe(bytes.buffer);
    expect([...view]).toEqual([6, 7, 8, 9, 10, 11]);
  });
});
