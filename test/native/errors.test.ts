import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import { oneCopyEach } from '../../bench/one-copy.js';
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
const table = native.createRoutingTable({ tokens: 2, topK: 2, experts: Uint32Array.of(4) });
const route = {
  rows: slab,
  rowCount: 2,
  hidden: 16,
  norm: { weight: slab, epsilon: 0 },
  gate: { weights: gate, bias: null },
  table: null,
  copies: oneCopyEach(Uint32Array.of(0, 0, 1, 1)),
  pace: null,
  workers: 2,
  limits: null,
  weighted: false,
};
const byIds = native.createGate({ ...gateOptions, tokenExperts: new Uint32Array(3 * routing.topK) });
const withIds = (tokenIds: Uint32Array | null) =>
  native.routeRows({ ...route, gate: { weights: byIds, bias: null, tokenIds } });
const isolating = native.createGate({
  ...gateOptions,
  isolated: { experts: 2, tokenIds: Uint32Array.of(7) },
});
const given = { ...route, gate: null, table: { routing: table, layer: 0 } };
const words = (...values: number[]) => new Uint8Array(Uint32Array.from(values).buffer);
const writing = { table, first: 0, experts: words(0, 1, 2, 3), weights: words(0, 0, 0, 0) };
await native.writeRouting(writing);
const routed = await native.routeRows(given);
const combine = {
  routed,
  mode: 'exact' as const,
  hidden: 16,
  weighted: true,
  residual: null,
  parts: [slab, slab],
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
    ['no object', () => native.routeRows(wrong(undefined)), 'options is undefined; allowed: an object'],
    ['no slab', () => native.routeRows({ ...route, rows: wrong(7) }), 'rows is 7; allowed: a Slab'],
    [
      'another handle',
      () => native.routeRows({ ...route, rows: wrong(gate) }),
      'rows is an object; allowed: a Slab',
    ],
    [
      'too many rows',
      () => native.routeRows({ ...route, rowCount: 5 }),
      'rows.byteLength is 128; allowed: 160 or more, for 5 rows of 16 elements',
    ],
    [
      'half a row',
      () => native.routeRows({ ...route, rowCount: 1.5 }),
      'rowCount is 1.5; allowed: integers 1 to 16777216',
    ],
    [
      'no rows',
      () => native.routeRows({ ...route, rowCount: 0 }),
      'rowCount is 0; allowed: integers 1 to 16777216',
    ],
    [
      'an absurd width',
      () => native.routeRows({ ...route, hidden: 1e300 }),
      'hidden is 1e+300; allowed: integers 1 to 1048576',
    ],
    [
      'rows of another width than the gate',
      () => native.routeRows({ ...route, hidden: 8 }),
      'hidden is 8; allowed: 16',
    ],
    [
      'epsilon that is no number',
      () => native.routeRows({ ...route, norm: { weight: slab, epsilon: Number.NaN } }),
      'norm.epsilon is NaN; allowed: finite numbers',
    ],
    [
      'neither gate nor given routing',
      () => native.routeRows({ ...route, gate: null }),
      'gate is null; allowed: a gate, or a table with the choice',
    ],
    [
      'a layer beyond the table',
      () => native.routeRows({ ...route, table: { routing: table, layer: 1 } }),
      'table.layer is 1; allowed: integers 0 to 0',
    ],
    [
      'more rows than the table has tokens',
      () => native.routeRows({ ...route, rowCount: 3, table: { routing: table, layer: 0 } }),
      "rowCount is 3; allowed: at most the table's 2 tokens",
    ],
    [
      'a table of other experts than the gate',
      () => {
        const other = native.createRoutingTable({ tokens: 2, topK: 2, experts: Uint32Array.of(5) });
        return native.routeRows({ ...route, table: { routing: other, layer: 0 } });
      },
      'table.routing is a table of another shape; allowed: one with the topK and the experts of the gate',
    ],
    [
      'routing of part of a token',
      () => native.writeRouting({ ...writing, experts: words(0) }),
      "experts.length is 4; allowed: multiples of a token's 8 bytes",
    ],
    [
      'experts without weights',
      () => native.writeRouting({ ...writing, weights: new Uint8Array(0) }),
      'weights.length is 0; allowed: 16',
    ],
    [
      'routing beyond the table',
      () => native.readRouting({ ...writing, first: 1 }),
      "first is 1; allowed: tokens that leave room for 2 of the table's 2",
    ],
    [
      'bytes past the end',
      () => native.copyIn(new Uint8Array(32), slab, 98),
      'byteOffset is 98; allowed: offsets that leave room for 32 bytes in the 128 of the slab',
    ],
    [
      'an offset that overflows',
      () => native.copyIn(new Uint8Array(32), slab, Number.MAX_SAFE_INTEGER - 1),
      'byteOffset is',
    ],
    [
      'another array type',
      () => native.copyIn(wrong(new Float32Array(16)), slab, 0),
      'source is a typed array of another type; allowed: a Uint8Array',
    ],
    [
      'a range that leaves the slab',
      () => native.copyIn({ slab, byteOffset: 96, byteLength: 64 }, slab, 0),
      'source.byteOffset is 96; allowed: offsets that leave room for 64 bytes in the 128 of the slab',
    ],
    [
      'more rows to look at than there are',
      () => native.findNonFinite(slab, 0, 5, 16),
      'rows.byteLength is 128; allowed: 160 or more',
    ],
    [
      'more bytes to copy than there are',
      () => native.copyOut(slab, 1, new Uint8Array(128)),
      'byteOffset is 1; allowed: offsets that leave room for 128 bytes in the 128 of the slab',
    ],
    [
      'bias of another length',
      () => native.routeRows({ ...route, gate: { weights: gate, bias: new Float32Array(3) } }),
      'gate.bias.length is 3; allowed: 4',
    ],
    ['no ids of tokens', () => withIds(null), 'gate.tokenIds is null; allowed: a Uint32Array'],
    ['ids of other tokens', () => withIds(new Uint32Array(3)), 'gate.tokenIds.length is 3; allowed: 2'],
    [
      'ids of other tokens, of which some would be isolated',
      () =>
        native.routeRows({
          ...route,
          gate: { weights: isolating, bias: null, tokenIds: new Uint32Array(3) },
        }),
      'gate.tokenIds.length is 3; allowed: 2',
    ],
    ['an id that no table has', () => withIds(Uint32Array.of(2, 3)), 'gate.tokenIds is 3; allowed: 0 to 2'],
    [
      'copies of other experts',
      () => native.routeRows({ ...route, copies: oneCopyEach(new Uint32Array(3)) }),
      'copies.offsets.length is 4; allowed: 5',
    ],
    [
      'a worker out of range',
      () => native.routeRows({ ...route, workers: 1 }),
      'copies.workers of expert 2 is 1; allowed: below 1, ascending',
    ],
    [
      'a worker without speed',
      () =>
        native.routeRows({
          ...route,
          pace: { secondsQueued: new Float64Array(2), secondsPerRow: new Float64Array(2) },
        }),
      'pace.secondsPerRow is 0.000000; allowed: above 0',
    ],
    [
      'a queue without end',
      () =>
        native.routeRows({
          ...route,
          pace: {
            secondsQueued: Float64Array.of(0, Number.POSITIVE_INFINITY),
            secondsPerRow: Float64Array.of(1, 1),
          },
        }),
      'pace.secondsQueued is inf; allowed: finite numbers',
    ],
    [
      'limits of other workers',
      () => native.routeRows({ ...route, limits: limitsOf(1) }),
      'limits.rowsMax.length is 1; allowed: 2',
    ],
    [
      'limits below one token',
      () => native.routeRows({ ...given, limits: limitsOf(2, 0) }),
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
      'a part with fewer rows than its group',
      () => native.combineRows({ ...combine, parts: [slab, native.allocateSlab(32)] }),
      'parts[1].byteLength is 32; allowed: 64 or more',
    ],
    [
      'something else than routed rows',
      () => native.combineRows({ ...combine, routed: wrong(slab) }),
      'routed is an object; allowed: a RoutedRows',
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
      'source.activation is "relu"; allowed: swiglu, geglu, gelu, relu2',
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
      'more isolated experts than others are beside them',
      () => native.createGate({ ...gateOptions, isolated: { experts: 4, tokenIds: Uint32Array.of(7) } }),
      'createGate',
      'isolated.experts is 4; allowed: below the number of experts, 4',
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
