import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { floatsOf, routing, slabOf, synthetic } from './support.js';

const directory = mkdtempSync(join(tmpdir(), 'switchyard-'));
const slab = slabOf(new Array(64).fill(1));
const backend = native.createCpuBackend({ threads: 1 });
const gateOptions = {
  weight: floatsOf(new Array(64).fill(1)),
  experts: 4,
  hidden: 16,
  logitBias: null,
  selectionBias: null,
  routing,
};
const gate = native.createGate(gateOptions);
const norm = { rows: slab, rowCount: 4, hidden: 16, weight: slab, epsilon: 0 };
const grouping = {
  rowCount: 2,
  topK: 2,
  experts: Uint32Array.of(0, 1, 2, 3),
  weights: new Float32Array(4),
  workerOf: Uint32Array.of(0, 0, 1, 1),
  workers: 2,
  limits: null,
};
const combine = {
  mode: 'exact' as const,
  rowCount: 2,
  hidden: 16,
  topK: 1,
  weights: null,
  residual: null,
  parts: [{ rows: slab, targets: Uint32Array.of(0, 1) }],
};
const reduce = {
  rows: slab,
  hidden: 16,
  rowIndices: Uint32Array.of(0, 1),
  weights: new Float32Array(2),
  outputRows: 2,
};
const limitsOf = (workers: number, rowsMax = 9) => {
  const all = new Float64Array(workers).fill(rowsMax);
  return { rowsMax: all, entriesMax: all, costMax: all, rowCost: 1, entryCost: 1 };
};
const tokens = { seed: 1, firstToken: 0, count: 4, hidden: 16, skew: 0, topics: 4 };

afterAll(() => {
  backend.close();
  slab.release();
  rmSync(directory, { recursive: true });
});

/** What a caller without types might pass. */
// biome-ignore lint/suspicious/noExplicitAny: the point is what the types forbid.
const wrong = (value: unknown): any => value;

describe('a call that returns a promise rejects with the field, the value and what is allowed', () => {
  test.each<[string, () => Promise<unknown>, string]>([
    ['no object', () => native.normalizeRows(wrong(undefined)), 'options is undefined; allowed: an object'],
    ['no slab', () => native.normalizeRows({ ...norm, rows: wrong(7) }), 'rows is 7; allowed: a Slab'],
    [
      'another handle',
      () => native.normalizeRows({ ...norm, rows: wrong(gate) }),
      'rows is an object; allowed: a Slab',
    ],
    [
      'too many rows',
      () => native.normalizeRows({ ...norm, rowCount: 5 }),
      'rows.byteLength is 128; allowed: 160 or more, for 5 rows of 16 elements',
    ],
    [
      'half a row',
      () => native.normalizeRows({ ...norm, rowCount: 1.5 }),
      'rowCount is 1.5; allowed: integers 1 to 16777216',
    ],
    [
      'no rows',
      () => native.normalizeRows({ ...norm, rowCount: 0 }),
      'rowCount is 0; allowed: integers 1 to 16777216',
    ],
    [
      'an absurd width',
      () => native.normalizeRows({ ...norm, hidden: 1e300 }),
      'hidden is 1e+300; allowed: integers 1 to 1048576',
    ],
    [
      'epsilon that is no number',
      () => native.normalizeRows({ ...norm, epsilon: Number.NaN }),
      'epsilon is NaN; allowed: finite numbers',
    ],
    [
      'part of a row',
      () => native.ingestRows(new Uint8Array(33), slab, 0, 16),
      "source.length is 33; allowed: multiples of a row's 32 bytes",
    ],
    [
      'an odd offset',
      () => native.ingestRows(new Uint8Array(32), slab, 1, 16),
      'byteOffset is 1; allowed: even',
    ],
    [
      'bytes past the end',
      () => native.ingestRows(new Uint8Array(32), slab, 98, 16),
      'byteOffset is 98; allowed: offsets that leave room for 32 bytes in the 128 of the slab',
    ],
    [
      'an offset that overflows',
      () => native.ingestRows(new Uint8Array(32), slab, Number.MAX_SAFE_INTEGER - 1, 16),
      'byteOffset is',
    ],
    [
      'another array type',
      () => native.ingestRows(wrong(new Float32Array(16)), slab, 0, 16),
      'source is a typed array of another type; allowed: a Uint8Array',
    ],
    [
      'a range that leaves the slab',
      () => native.ingestRows({ slab, byteOffset: 96, byteLength: 64 }, slab, 0, 16),
      'source.byteOffset is 96; allowed: offsets that leave room for 64 bytes in the 128 of the slab',
    ],
    [
      'more rows to count than there are',
      () => native.countNonFinite(slab, 5, 16),
      'rows.byteLength is 128; allowed: 160 or more',
    ],
    [
      'more bytes to copy than there are',
      () => native.copyOut(slab, 1, new Uint8Array(128)),
      'byteOffset is 1; allowed: offsets that leave room for 128 bytes in the 128 of the slab',
    ],
    [
      'bias of another length',
      () => native.gateRows({ gate, rows: slab, rowCount: 1, bias: new Float32Array(3) }),
      'bias.length is 3; allowed: 4',
    ],
    [
      'too few choices',
      () => native.groupRows({ ...grouping, experts: new Uint32Array(3) }),
      'experts.length is 3; allowed: 4',
    ],
    [
      'an expert out of range',
      () => native.groupRows({ ...grouping, experts: Uint32Array.of(0, 1, 2, 4) }),
      '4',
    ],
    ['a worker out of range', () => native.groupRows({ ...grouping, workers: 1 }), '1'],
    [
      'limits of other workers',
      () => native.groupRows({ ...grouping, limits: limitsOf(1) }),
      'limits.rowsMax.length is 1; allowed: 2',
    ],
    [
      'limits below one token',
      () => native.groupRows({ ...grouping, limits: limitsOf(2, 0) }),
      'limits of worker 0 is too low for token 0; allowed: a row and 2 row indices at least',
    ],
    [
      'a row to pack that is not there',
      () => native.packRows({ rows: slab, hidden: 16, indices: Uint32Array.of(0, 4), tailBytes: 0 }),
      'indices is 4; allowed: below 4',
    ],
    [
      'an unknown mode',
      () => native.combineRows({ ...combine, mode: wrong('both') }),
      'mode is "both"; allowed: exact, partial',
    ],
    [
      'a part with fewer rows than targets',
      () => native.combineRows({ ...combine, parts: [{ rows: slab, targets: new Uint32Array(5) }] }),
      'parts[0].rows.byteLength is 128; allowed: 160 or more',
    ],
    [
      'a target out of range',
      () => native.combineRows({ ...combine, parts: [{ rows: slab, targets: Uint32Array.of(0, 2) }] }),
      'targets is 2; allowed: below 2',
    ],
    [
      'more output rows than entries',
      () => native.reduceRows({ ...reduce, outputRows: 3 }),
      'outputRows is 3',
    ],
    ['an index out of range', () => native.reduceRows({ ...reduce, rowIndices: Uint32Array.of(0, 7) }), '7'],
    ['a negative seed', () => native.synthesizeTokens({ ...tokens, seed: -1 }), 'seed is -1'],
    ['too much skew', () => native.synthesizeTokens({ ...tokens, skew: 17 }), 'skew is 17'],
    ['no topics', () => native.synthesizeTokens({ ...tokens, topics: 0 }), 'topics is 0'],
    ['an unknown source', () => native.readTensor(wrong({ kind: 'url' })), 'source.rows is undefined'],
    [
      'expert inputs that are no array',
      () => backend.load(wrong({ activation: 'relu' })),
      'source.activation is "relu"; allowed: swiglu, gelu',
    ],
    ['no rows to judge', () => native.referenceLayer(new Float64Array(0), 4, wrong({})), 'layer.'],
  ])('%s', async (_, call, message) => {
    await expect(call()).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      operation: expect.any(String),
      message: expect.stringContaining(message),
    });
  });
});

describe('a call that returns no promise throws', () => {
  test.each<[string, () => unknown, string, string]>([
    ['threads', () => native.createCpuBackend({ threads: 0 }), 'createCpuBackend', 'threads is 0; allowed'],
    [
      'topK above the experts',
      () => native.createGate({ ...gateOptions, routing: { ...routing, topK: 5 } }),
      'createGate',
      'opK',
    ],
    [
      'groups that do not divide',
      () => native.createGate({ ...gateOptions, routing: { ...routing, groups: 3 } }),
      'createGate',
      'roups',
    ],
    [
      'an unknown score',
      () => native.createGate({ ...gateOptions, routing: { ...routing, score: wrong('relu') } }),
      'createGate',
      'routing.score is "relu"; allowed: softmax, sigmoid',
    ],
    [
      'a weight that is too small',
      () => native.createGate({ ...gateOptions, experts: 5 }),
      'createGate',
      'weight.byteLength is 256; allowed: 320 or more',
    ],
    [
      'selection bias of another length',
      () => native.createGate({ ...gateOptions, selectionBias: new Float32Array(3) }),
      'createGate',
      'electionBias',
    ],
    [
      'a bound that is no integer',
      () => native.configure({ slabBytesMax: 0.5, threads: 1 }),
      'configure',
      'slabBytesMax is 0.5; allowed: integers 1 to',
    ],
    [
      'a path that is none',
      () => native.openWeightFile(wrong(3)),
      'openWeightFile',
      'path is 3; allowed: a string',
    ],
  ])('%s', (_, call, operation, message) => {
    expect(call).toThrow(
      expect.objectContaining({
        code: 'INVALID_ARGUMENT',
        operation,
        message: expect.stringContaining(message),
      }),
    );
  });
});

describe('files', () => {
  test('a file that is not there, or no file, cannot be opened', () => {
    for (const path of [join(directory, 'missing'), directory]) {
      expect(() => native.openWeightFile(path)).toThrow(
        expect.objectContaining({ code: 'MODEL_INVALID', message: expect.stringContaining(path) }),
      );
    }
  });

  test('tensors are read within the file, and until it is closed', async () => {
    const path = join(directory, 'tensor');
    writeFileSync(
      path,
      Uint8Array.from({ length: 25 }, (_, index) => index),
    );
    const file = native.openWeightFile(path);
    expect([file.path, file.byteLength]).toEqual([path, 25]);
    const source = {
      kind: 'file',
      file,
      tensor: 'x',
      byteOffset: 1,
      dtype: 'BF16',
      rows: 3,
      columns: 4,
    } as const;
    const pending = native.readTensor(source);
    const outside = { ...source, byteOffset: 2 };
    await expect(native.readTensor(outside)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('within the 25 bytes'),
    });
    await expect(native.readTensor({ ...source, dtype: 'F32' })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    file.close();
    file.close();
    const read = await pending;
    expect([...read.view()]).toEqual(Array.from({ length: 24 }, (_, index) => index + 1));
    read.release();
    await expect(native.readTensor(source)).rejects.toMatchObject({ code: 'SLAB_RELEASED' });
  });

  test('a shape too large for any file is refused before memory is taken', async () => {
    await expect(native.readTensor(synthetic(1, 2 ** 40, 2 ** 40))).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await expect(native.readTensor(synthetic(1, 2 ** 22, 2 ** 22))).rejects.toMatchObject({
      code: 'RESOURCE_EXHAUSTED',
    });
  });
});
