import { copyFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { SafetensorsFile } from '../../services/model/safetensors.js';
import { encodeHeader, parseHeader } from '../../services/model/safetensors-header.js';
import { failure, fixtures, safetensorsBytes, temporaryDirectory, writeSafetensors } from './support.js';

async function openBytes(bytes: Uint8Array): Promise<SafetensorsFile> {
  const path = join(await temporaryDirectory(), 'x.safetensors');
  await writeFile(path, bytes);
  return await SafetensorsFile.open(path);
}

const fourBytes = new Uint8Array(4);
const entry = (dtype: unknown, shape: unknown, offsets: unknown) =>
  JSON.stringify({ a: { dtype, shape, data_offsets: offsets } });

describe('a hostile or broken file is refused before memory is taken, naming what is wrong', () => {
  const valid = entry('BF16', [2], [0, 4]);
  test.each<[string, Uint8Array, string[]]>([
    ['an empty file', new Uint8Array(0), ['file size', '0 bytes']],
    ['a file shorter than the length', new Uint8Array(7), ['file size', '7 bytes', 'at least 8']],
    [
      'a header of 2^60 bytes',
      safetensorsBytes(valid, fourBytes, 1n << 60n),
      ['header length', '1152921504606846976'],
    ],
    ['a header of 2^64 - 1 bytes', safetensorsBytes(valid, fourBytes, (1n << 64n) - 1n), ['header length']],
    [
      'a header longer than the file',
      safetensorsBytes('{}', fourBytes, 7n),
      ['header length is 7', '2 to 6'],
    ],
    ['a header of no bytes', safetensorsBytes('', fourBytes), ['header length is 0']],
    ['a header that is not JSON', safetensorsBytes('{"a":', fourBytes), ['JSON object']],
    ['a header that is not an object', safetensorsBytes('[1, 2]', fourBytes), ['[1, 2]', 'a JSON object']],
    [
      'a header that is not UTF-8',
      Buffer.concat([
        safetensorsBytes('', fourBytes, 4n).subarray(0, 8),
        Buffer.from([0x7b, 0xff, 0xfe, 0x7d]),
      ]),
      ['UTF-8'],
    ],
    ['a name given twice', safetensorsBytes(`{"a":${'{}'},"\\u0061":{}}`, fourBytes), ['"a"', 'twice']],
    [
      'a dtype given twice',
      safetensorsBytes('{"a":{"dtype":"BF16", "dtype" :"F32","shape":[2],"data_offsets":[0,4]}}', fourBytes),
      ['"dtype"', 'twice'],
    ],
    [
      'metadata that is not strings',
      safetensorsBytes('{"__metadata__":{"a":1}}', fourBytes),
      ['__metadata__'],
    ],
    ['an entry that is not an object', safetensorsBytes('{"a":3}', fourBytes), ['"a"', 'entry is 3']],
    ['a dtype that is no text', safetensorsBytes(entry(16, [2], [0, 4]), fourBytes), ['"a"', 'dtype is 16']],
    [
      'offsets past the file, of an unknown dtype',
      safetensorsBytes(entry('F8_E4M3FNUZ', [4], [0, 8]), fourBytes),
      ['"a"', '[0,8]', '<= 4'],
    ],
    [
      'a Git LFS pointer',
      Buffer.from('version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n'),
      ['is a Git LFS pointer', 'git lfs pull'],
    ],
    ['no dtype', safetensorsBytes(entry(undefined, [2], [0, 4]), fourBytes), ['"a"', 'dtype is missing']],
    ['a negative size', safetensorsBytes(entry('BF16', [-2], [0, 4]), fourBytes), ['"a"', 'shape is [-2]']],
    ['a broken size', safetensorsBytes(entry('BF16', [1.5], [0, 4]), fourBytes), ['"a"', 'shape is [1.5]']],
    ['a size of 2^60', safetensorsBytes(entry('BF16', [2 ** 60], [0, 4]), fourBytes), ['"a"', 'shape']],
    ['no shape', safetensorsBytes(entry('BF16', undefined, [0, 4]), fourBytes), ['shape is missing']],
    ['an end in front of its begin', safetensorsBytes(entry('BF16', [2], [4, 0]), fourBytes), ['[4,0]']],
    ['an end past the file', safetensorsBytes(entry('BF16', [4], [0, 8]), fourBytes), ['[0,8]', '<= 4']],
    ['a negative begin', safetensorsBytes(entry('BF16', [4], [-4, 4]), fourBytes), ['[-4,4]']],
    ['three offsets', safetensorsBytes(entry('BF16', [2], [0, 4, 4]), fourBytes), ['[0,4,4]']],
    ['a hole in front', safetensorsBytes(entry('BF16', [1], [2, 4]), fourBytes), ['"a"', 'hole']],
    ['bytes behind the last tensor', safetensorsBytes(entry('BF16', [1], [0, 2]), fourBytes), ['file size']],
    [
      'tensors that overlap',
      safetensorsBytes(
        '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
        fourBytes,
      ),
      ['"b"', 'overlap'],
    ],
  ])('%s', async (_, bytes, words) => {
    const error = await failure(() => openBytes(bytes));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain('x.safetensors');
    for (const word of words) expect(error.message).toContain(word);
  });

  test('a real file cut at any length', async () => {
    const directory = await temporaryDirectory();
    const path = join(directory, 'x.safetensors');
    for (const length of [0, 5, 8, 100, 4000, 50_000]) {
      await copyFile(join(fixtures, 'mixtral.expected.safetensors'), path);
      await truncate(path, length);
      expect(await failure(() => SafetensorsFile.open(path))).toMatchObject({ code: 'MODEL_INVALID' });
    }
  });

  test('a missing file', async () => {
    const error = await failure(() => SafetensorsFile.open('/nowhere/x.safetensors'));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain('/nowhere/x.safetensors');
  });

  test('what a header says is cut to a length that a log bears', async () => {
    const name = 'n'.repeat(100_000);
    const error = await failure(() =>
      openBytes(safetensorsBytes(`{"${name}":{"dtype":"${name}"}}`, fourBytes)),
    );
    expect(error.message.length).toBeLessThan(1000);
  });
});

describe('a valid file', () => {
  test('of any tensors is read as it was written', () => {
    const tensors = fc.uniqueArray(
      fc.record({
        name: fc.string().filter((name) => name !== '__metadata__'),
        dtype: fc.constantFrom('BF16' as const, 'F16' as const, 'F32' as const),
        shape: fc.array(fc.nat(9), { maxLength: 4 }),
      }),
      { selector: ({ name }) => name, maxLength: 20 },
    );
    fc.assert(
      fc.property(tensors, (entries) => {
        const header = encodeHeader(entries);
        expect(header.byteLength % 8).toBe(0);
        const read = (size: number) => parseHeader('x', size, header.subarray(8));
        const bytesOf = { BF16: 2, F16: 2, F32: 4 };
        const lengths = entries.map(({ dtype, shape }) => shape.reduce((a, b) => a * b, 1) * bytesOf[dtype]);
        const total = header.byteLength + lengths.reduce((a, b) => a + b, 0);
        const { tensors } = read(total);
        expect([...tensors.keys()].sort()).toEqual(entries.map(({ name }) => name).sort());
        let position = header.byteLength;
        for (const [index, { name, dtype, shape }] of entries.entries()) {
          const byteLength = lengths[index]!;
          expect(tensors.get(name)).toEqual({ name, dtype, shape, byteOffset: position, byteLength });
          position += byteLength;
        }
        expect(() => read(total + 1)).toThrow('file size');
      }),
    );
  });

  test('no mutation of a byte of the header makes the reader fail in another way', () => {
    const header = encodeHeader([
      { name: 'a', dtype: 'BF16', shape: [2, 3] },
      { name: 'b', dtype: 'F32', shape: [] },
    ]).subarray(8);
    fc.assert(
      fc.property(fc.nat(header.byteLength - 1), fc.nat(255), (position, value) => {
        const mutated = header.slice();
        mutated[position] = value;
        try {
          const { tensors } = parseHeader('x', 8 + header.byteLength + 16, mutated);
          for (const { byteOffset, byteLength } of tensors.values()) {
            expect(byteOffset + byteLength).toBeLessThanOrEqual(8 + header.byteLength + 16);
          }
        } catch (error) {
          expect(error).toMatchObject({ code: 'MODEL_INVALID' });
        }
      }),
      { numRuns: 2000 },
    );
  });

  test('holds metadata, escaped names and braces in strings', async () => {
    const header =
      '{"__metadata__":{"k":"a{\\"}"}, "t\\"{" : {"dtype":"U8","shape":[4],"data_offsets":[0,4]}}';
    const file = await openBytes(safetensorsBytes(header, fourBytes));
    expect(file.header.metadata).toEqual({ k: 'a{"}' });
    expect([...file.header.tensors.keys()]).toEqual(['t"{']);
  });

  test.each([
    ['absent', [2, 2], '"absent"'],
    ['m', [4], 'shape is [2,2]'],
    ['m', [2, 3], 'shape is [2,2]'],
    ['bytes', [4], 'BF16, F16, F32'],
  ])('that does not hold %s as %j says so', async (name, shape, words) => {
    const path = join(await temporaryDirectory(), 'x.safetensors');
    await writeSafetensors(path, {
      m: { dtype: 'BF16', shape: [2, 2], data: new Uint8Array(8) },
      bytes: { dtype: 'U8', shape: [4], data: fourBytes },
    });
    const file = await SafetensorsFile.open(path);
    const error = await failure(() => file.check(name, shape, ['BF16', 'F16', 'F32']));
    expect(error).toMatchObject({ code: 'MODEL_INVALID' });
    expect(error.message).toContain(words);
    expect(error.message).toContain(path);
    file.close();
  });

  test.each([
    ['F8_E4M3', [2, 2], 'dtype is F8_E4M3; allowed: BF16, F16, F32'],
    ['I32', [1], 'dtype is I32; allowed: BF16, F16, F32'],
    ['F32', [2], 'data_offsets is 4 bytes apart; allowed: the 8 bytes of F32 [2]'],
    [
      'BF16',
      [2 ** 32, 2 ** 31],
      'data_offsets is 4 bytes apart; allowed: the 18446744073709551616 bytes of BF16 [4294967296,2147483648]',
    ],
  ])('tells the dtype of %s %j first, then its size, where it is needed', async (dtype, shape, words) => {
    const file = await openBytes(safetensorsBytes(entry(dtype, shape, [0, 4]), fourBytes));
    const error = await failure(() => file.check('a', shape, ['BF16', 'F16', 'F32']));
    expect(error.message).toBe(`${file.path}: tensor "a": ${words}`);
    file.close();
  });

  test('may hold tensors of dtypes that are not known, which cannot be loaded', async () => {
    const path = join(await temporaryDirectory(), 'x.safetensors');
    await writeSafetensors(path, {
      m: { dtype: 'BF16', shape: [2, 2], data: new Uint8Array(8) },
      newer: { dtype: 'F8_E4M3FNUZ', shape: [3], data: new Uint8Array(3) },
    });
    const file = await SafetensorsFile.open(path);
    file.check('m', [2, 2], ['BF16']);
    const error = await failure(() => file.check('newer', [3], ['BF16', 'F16', 'F32']));
    expect(error.message).toBe(`${path}: tensor "newer": dtype is F8_E4M3FNUZ; allowed: BF16, F16, F32`);
    file.close();
  });
});
