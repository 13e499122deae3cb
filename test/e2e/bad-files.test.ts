import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { StoredDtype } from '../../native/index.js';
import { encodeHeader } from '../../services/model/safetensors-header.js';
import { switchyard } from '../support/cli.js';
import { startCluster, type TestCluster } from '../support/cluster.js';
import { testRows } from '../support/rows.js';

const hidden = 256;
const fixture = join('test', 'fixtures', 'mixtral');
let directory: string;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'switchyard-bad-files-'));
});

afterAll(() => rm(directory, { recursive: true }));

/** A safetensors file of this header and data; `length` is what it says of its header. */
function safetensors(header: unknown, data: Uint8Array, length?: bigint): Buffer {
  const text = Buffer.from(JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(text.byteLength));
  return Buffer.concat([prefix, text, data]);
}

const entry = (begin: number, end: number, shape = [(end - begin) / 2 / hidden, hidden], dtype = 'BF16') => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

const data = testRows(8, hidden);
const size = data.byteLength;
const whole = safetensors({ x: entry(0, size) }, data);

type BadFile = [what: string, file: Buffer, said: string[]];

const badFiles: BadFile[] = [
  ['an empty file', Buffer.alloc(0), ['file size is 0 bytes', 'at least 8']],
  [
    'a file cut short',
    whole.subarray(0, whole.byteLength - 100),
    ['"x"', 'data_offsets is [0,4096]', '3996'],
  ],
  [
    'a header of 2^60 bytes',
    safetensors({ x: entry(0, size) }, data, 2n ** 60n),
    ['header length is 1152921504606846976 bytes', '2 to '],
  ],
  [
    'offsets past the end',
    safetensors({ x: entry(size, 2 * size) }, data),
    ['"x"', 'data_offsets is [4096,8192]', '<= 4096'],
  ],
  [
    'offsets that no file reaches',
    safetensors({ x: entry(0, 2 ** 52) }, data),
    ['"x"', 'data_offsets is [0,4503599627370496]'],
  ],
  [
    'tensors that overlap',
    safetensors({ x: entry(0, size), y: entry(1024, size) }, data),
    ['"y"', 'data_offsets is a begin of 1024 (overlap)', 'allowed: 4096'],
  ],
  [
    'bytes that no tensor owns',
    safetensors({ x: entry(1024, size) }, data),
    ['"x"', 'a begin of 1024 (hole)', 'allowed: 0'],
  ],
  [
    'a shape that its bytes are too few for',
    safetensors({ x: entry(0, size, [2 ** 30, 2 ** 30, hidden]) }, data),
    ['"x"', 'data_offsets is 4096 bytes apart', `${2n ** 69n} bytes`],
  ],
  ['a negative size', safetensors({ x: entry(0, size, [-8, hidden]) }, data), ['"x"', 'shape is [-8,256]']],
  ['a header that is no JSON', Buffer.concat([whole.subarray(0, 8), whole.subarray(9)]), ['JSON object']],
];

describe('rows of a broken or hostile file', () => {
  let cluster: TestCluster;
  let good: string[];
  let expected: Buffer;

  async function forwardGood(): Promise<Buffer> {
    const output = join(directory, 'good.out.safetensors');
    const { status, stderr } = await switchyard(['forward', ...good, '--output', output]);
    expect(stderr).toBe('');
    expect(status).toBe(0);
    return readFile(output);
  }

  beforeAll(async () => {
    cluster = await startCluster({ workers: 1 });
    const input = join(directory, 'good.safetensors');
    await writeFile(input, whole);
    good = ['--address', cluster.address, '--no-feedback', '--input', input];
    expected = await forwardGood();
    expect(expected.byteLength).toBeGreaterThan(size);
  });

  test.each<[string, Buffer, string, string[]]>([
    ...badFiles.map(([what, file, said]): [string, Buffer, string, string[]] => [
      what,
      file,
      'MODEL_INVALID',
      said,
    ]),
    [
      'another dtype',
      safetensors({ x: entry(0, size, [4, hidden], 'F32') }, data),
      'INVALID_ARGUMENT',
      ['the dtype of tensor "x"', 'is "F32"', 'BF16'],
    ],
    [
      'another hidden size',
      safetensors({ x: entry(0, size, [16, 128]) }, data),
      'INVALID_ARGUMENT',
      ['the shape of tensor "x"', '[16, 128]', '[..., 256]'],
    ],
  ])('%s is refused by file, tensor, field and value', async (_what, file, code, said) => {
    const input = join(directory, 'bad.safetensors');
    const output = join(directory, 'never.safetensors');
    await writeFile(input, file);
    const args = ['--address', cluster.address, '--input', input, '--output', output];
    const { status, stdout, stderr } = await switchyard(['forward', ...args]);
    expect(stdout).toBe('');
    expect(stderr).toMatch(new RegExp(`^switchyard: ${code}: `));
    for (const part of [input, ...said]) expect(stderr).toContain(part);
    expect(status).toBe(2);
    expect((await readdir(directory)).filter((name) => name.startsWith('never'))).toEqual([]);
  });

  test('leave the cluster as it was', async () => {
    expect((await forwardGood()).equals(expected)).toBe(true);
  });

  test('end `run` too, with the reason', async () => {
    const input = join(directory, 'bad.safetensors');
    await writeFile(input, safetensors({ x: entry(0, size) }, data, 2n ** 60n));
    const { status, stderr } = await switchyard([
      'run',
      '--preset',
      'tiny',
      '--workers',
      '1',
      '--input',
      input,
    ]);
    expect(stderr).toMatch(/^switchyard: MODEL_INVALID: .*header length is 1152921504606846976 bytes/);
    expect(status).toBe(2);
  });
});

describe('a broken or hostile checkpoint', () => {
  const shared = ['run', '--workers', '1', '--sequences', '1', '--length', '4'];

  /** A copy of a good checkpoint, with files of it replaced. */
  async function checkpoint(name: string, files: Record<string, Uint8Array | string>): Promise<string> {
    const model = join(directory, name);
    await cp(fixture, model, { recursive: true });
    for (const [file, content] of Object.entries(files)) await writeFile(join(model, file), content);
    return model;
  }

  async function expectInvalid(model: string, said: string[]): Promise<void> {
    const { status, stderr } = await switchyard([...shared, '--model', model]);
    expect(stderr).toMatch(/^switchyard: MODEL_INVALID: coordinator exited with status 2: /);
    for (const part of said) expect(stderr).toContain(part);
    expect(status).toBe(2);
  }

  const config = async () => JSON.parse(await readFile(join(fixture, 'config.json'), 'utf8'));

  test.each<[string, unknown, string]>([
    ['hidden_size', -48, 'an integer from 1 to 65536'],
    ['num_local_experts', -1, 'an integer from 1 to 4096'],
    ['num_experts_per_tok', 7, '1 to 6'],
    ['model_type', 'llama', 'mixtral, qwen2_moe, qwen3_moe'],
  ])(
    'whose config.json has a wrong %s is refused by key, value and what is allowed',
    async (key, value, allowed) => {
      const changed = { ...(await config()), [key]: value };
      const model = await checkpoint(`config-${key}`, { 'config.json': JSON.stringify(changed) });
      await expectInvalid(model, [join(model, 'config.json'), `${key} is `, JSON.stringify(value), allowed]);
    },
  );

  test('whose weights have a header of 2^60 bytes is refused', async () => {
    const hostile = safetensors({}, data, 2n ** 60n);
    const model = await checkpoint('header', { 'model.safetensors': hostile });
    await expectInvalid(model, ['model.safetensors', 'header length is 1152921504606846976 bytes']);
  });

  test('that lacks a tensor is refused by the name of the tensor', async () => {
    const weights = await readFile(join(fixture, 'model.safetensors'));
    const missing = 'model.layers.1.block_sparse_moe.experts.3.w2.weight';
    const model = await checkpoint('missing', { 'model.safetensors': without(weights, missing) });
    await expectInvalid(model, [missing, join(model, 'model.safetensors')]);
  });

  test('whose index points out of its directory is refused', async () => {
    const weightMap = { 'model.layers.0.block_sparse_moe.gate.weight': '../../etc/passwd.safetensors' };
    const index = JSON.stringify({ weight_map: weightMap });
    const model = await checkpoint('outside', { 'model.safetensors.index.json': index });
    await expectInvalid(model, ['../../etc/passwd.safetensors', 'in the same directory']);
  });
});

/** A safetensors file with one tensor left out, and valid otherwise. */
function without(file: Buffer, missing: string): Buffer {
  const dataStart = 8 + Number(file.readBigUInt64LE(0));
  type Entry = { dtype: StoredDtype; shape: number[]; data_offsets: [number, number] };
  const header: Record<string, Entry> = JSON.parse(file.subarray(8, dataStart).toString());
  const kept = Object.entries(header)
    .filter(([name]) => name !== missing && name !== '__metadata__')
    .sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0]);
  expect(kept.length).toBe(Object.keys(header).filter((name) => name !== '__metadata__').length - 1);
  const bytes = kept.map(
    ([
      ,
      {
        data_offsets: [begin, end],
      },
    ]) => file.subarray(dataStart + begin, dataStart + end),
  );
  return Buffer.concat([
    encodeHeader(kept.map(([name, { dtype, shape }]) => ({ name, dtype, shape }))),
    ...bytes,
  ]);
}
