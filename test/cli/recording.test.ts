import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { planInput } from '../../services/cli/plan-input.js';
import {
  loadOn,
  type RecordedCluster,
  type Recording,
  readRecording,
  recordCluster,
} from '../../services/cli/recording.js';
import type { ClusterDescription } from '../../services/client/index.js';
import { plan } from '../../services/placement/plan.js';

const directory = mkdtempSync(join(tmpdir(), 'switchyard-recording-'));
afterAll(() => rmSync(directory, { recursive: true }));

const worker = {
  ...{ host: 'a', device: 'cpu', memoryBytes: 400 },
  ...{ rowsPerSecond: 100, sizes: [{ rows: 4, rowsPerSecond: 80, error: 2 }], loadBytesPerSecond: 1000 },
};
const good: Recording = {
  format: 'switchyard-recording',
  version: 2,
  model: 'tiny',
  hidden: 8,
  topK: 2,
  rebalanceLoads: 4,
  rebalanceBytesPerSecond: 5000,
  seconds: 10,
  workers: [
    { ...worker, name: 'x' },
    { ...worker, name: 'y', host: 'b', memoryBytes: 300, rowsPerSecond: null, sizes: [] },
  ],
  layers: [{ layer: 3, expertBytes: 100, rows: [10, 30], workersOf: [[0], [1]], choices: [0, 1, 1, 0] }],
};
const layer = good.layers[0]!;

const named = (name: string) => ({ ...good, workers: [{ ...worker, name }, good.workers[1]] });
const sized = (sizes: unknown[]) => ({ ...good, workers: [{ ...worker, name: 'x', sizes }] });
const [slow, fast] = [{ rowsPerSecond: 1e-308 }, { loadBytesPerSecond: 1e300 }].map((rates) => ({
  ...good,
  workers: [{ ...good.workers[0], ...rates }],
}));
const hosted = (host: string) => ({ ...good, workers: [{ ...good.workers[0], host }, good.workers[1]] });

function written(value: unknown): string {
  const path = join(directory, 'recording.json');
  writeFileSync(path, typeof value === 'string' ? value : JSON.stringify(value));
  return path;
}

describe('a recording', () => {
  test('is read as it was written', () => {
    expect(readRecording(written(good))).toEqual(good);
  });

  test.each([
    ['recording cannot be read as JSON', '{'],
    ['format is "another"', { ...good, format: 'another' }],
    ['version is 1; allowed: 2; a recording of another version must be made anew', { ...good, version: 1 }],
    ['rebalanceLoads is 0', { ...good, rebalanceLoads: 0 }],
    ['rebalanceBytesPerSecond is 0', { ...good, rebalanceBytesPerSecond: 0 }],
    ['workers is []', { ...good, workers: [] }],
    ['workers.0.memoryBytes is -1', { ...good, workers: [{ ...worker, name: 'x', memoryBytes: -1 }] }],
    [
      'workers.0.sizes.0.rows is 0; allowed: an integer from 1',
      sized([{ rows: 0, rowsPerSecond: 1, error: 0 }]),
    ],
    ['workers.0.sizes.0.rowsPerSecond is 0', sized([{ rows: 1, rowsPerSecond: 0, error: 0 }])],
    ['workers.0.sizes is [{', sized([worker.sizes[0], worker.sizes[0]])],
    ['layers.0.rows.0 is -1', { ...good, layers: [{ ...layer, rows: [-1, 1] }] }],
    [
      'layers.0.workersOf is [[0]]; allowed: 2 entries',
      { ...good, layers: [{ ...layer, workersOf: [[0]] }] },
    ],
    ['layers.0.workersOf is [[0],[2]]', { ...good, layers: [{ ...layer, workersOf: [[0], [2]] }] }],
    ['layers.0.workersOf is [[0],[1,1]]', { ...good, layers: [{ ...layer, workersOf: [[0], [1, 1]] }] }],
    ['layers.0.choices is [0,1,1]', { ...good, layers: [{ ...layer, choices: [0, 1, 1] }] }],
    ['layers.0.choices is [0,2]', { ...good, layers: [{ ...layer, choices: [0, 2] }] }],
    ['extra is 1', { ...good, extra: 1 }],
    [
      'workers.1.name is "x"; allowed: a name of no other worker',
      { ...good, workers: [good.workers[0], { ...good.workers[1], name: 'x' }] },
    ],
    ['workers.0.name is "x\\u001b[2J"; allowed: letters, digits', named('x\u001b[2J')],
    ['workers.0.host is "a\\nb"; allowed: 1 to 253 characters, none of them control', hosted('a\nb')],
    [
      'model is "a\\u0007"; allowed: 0 to 1024 characters, none of them control',
      { ...good, model: 'a\u0007' },
    ],
    ['workers.0.host is "\\u202ea"; allowed: 1 to 253 characters', hosted('\u202ea')],
    ['workers.0.host is "\\u009b2J"; allowed: 1 to 253 characters', hosted('\u009b2J')],
    ['layers.1.layer is 3; allowed: a number of no other layer', { ...good, layers: [layer, layer] }],
    // JSON has no infinity, but 1e999 is read as one.
    [
      'layers.0.rows.1 is Infinity; allowed: an integer from 0 to 9007199254740991',
      JSON.stringify(good).replace('[10,30]', '[10,1e999]'),
    ],
    [
      'workers.0.memoryBytes is Infinity; allowed: a number from 0 to 1000000000000000000',
      JSON.stringify(good).replace('400', '1e999'),
    ],
    [
      'seconds is Infinity; allowed: a number from 0.000001 to 1000000000',
      JSON.stringify(good).replace(':10,', ':1e999,'),
    ],
    ['seconds is 1e-7; allowed: a number from 0.000001', { ...good, seconds: 1e-7 }],
    ['layers.0.rows.0 is 0.5; allowed: an integer', { ...good, layers: [{ ...layer, rows: [0.5, 1] }] }],
    ['workers.0.rowsPerSecond is 1e-308; allowed: a number from 0.001 to 1000000000000000, or null', slow],
    ['workers.0.loadBytesPerSecond is 1e+300; allowed: a number from 0.001', fast],
    ['rebalanceBytesPerSecond is 1e-300; allowed: a number', { ...good, rebalanceBytesPerSecond: 1e-300 }],
    [
      'workers.0.sizes.0.error is 1e+300; allowed: a number from 0 to 800, 10 times rowsPerSecond',
      sized([{ rows: 4, rowsPerSecond: 80, error: 1e300 }]),
    ],
    [
      'layers.0.rows is [0,0]; allowed: one number above 0 at least, here or in another layer',
      { ...good, layers: [{ ...layer, rows: [0, 0] }] },
    ],
  ])('that is wrong is refused: %s', (problem, value) => {
    const path = written(value);
    expect(() => readRecording(path)).toThrow(expect.objectContaining({ code: 'CONFIG_INVALID' }));
    expect(() => readRecording(path)).toThrow(`${path}: ${problem}`);
  });

  test('that does not exist is refused by its name', () => {
    expect(() => readRecording(join(directory, 'none'))).toThrow(
      /none: recording cannot be read as JSON: ENOENT/,
    );
  });

  test('that has no end is not read to it', () => {
    expect(() => readRecording('/dev/zero')).toThrow(
      '/dev/zero: recording cannot be read as JSON: it has more than 67108864 bytes',
    );
  });
});

describe('a cluster that is recorded', () => {
  const ffn = { ffn: 1536, activation: 'SWIGLU' };
  const cluster = {
    model: {
      name: 'packed',
      hidden: 4096,
      expertBytes: 18_878_976,
      layers: [{ expert: ffn, isolated: null, shared: [{ ffn, weight: 1, gated: false }] }],
    },
    view: {
      epoch: 1,
      nodes: [
        { role: 'WORKER', state: 'READY', name: 'x', host: 'a', device: 'cuda:0', memoryBytes: 2 ** 30 },
      ],
      placement: { workers: ['x'], layers: [{ layer: 0, experts: [], copies: [] }] },
    },
  } as unknown as ClusterDescription;

  test('has what an expert of a packed checkpoint takes of a CUDA device', () => {
    const { layers } = recordCluster(cluster);
    expect(layers).toMatchObject([{ expertBytes: 18_878_976, expertBytesOnCuda: 37_748_736 }]);
  });
});

describe('what the planner is given for a recording', () => {
  const options = { copies: 1, replicaSlots: null, horizon: 60 };

  test('rows a second, and for a worker without a measure the median of the others', () => {
    const { workers, layers, present, limits } = planInput(good, null, options);
    expect(workers.map(({ rowsPerSecond }) => rowsPerSecond)).toEqual([100, 100]);
    expect([...layers[0]!.loads]).toEqual([1, 3]);
    expect(present).toEqual([[[0], [1]]]);
    expect(limits).toEqual({ loads: 4, bytesPerSecond: 5000 });
  });

  test('as far as a schema allows, every figure of a plan is a number', () => {
    const rates = [1e-3, 1e15];
    const seconds = [1e-6, 1e9];
    const bounded = fc.record({
      seconds: fc.constantFrom(...seconds),
      rebalanceBytesPerSecond: fc.constantFrom(1e-3, Number.MAX_SAFE_INTEGER),
      rows: fc.array(fc.constantFrom(0, 1, Number.MAX_SAFE_INTEGER), { minLength: 2, maxLength: 2 }),
      workers: fc.tuple(
        ...['x', 'y', 'z'].map((name) =>
          fc.record({
            ...{ name: fc.constant(name), host: fc.constantFrom('a', 'b'), device: fc.constant('cpu') },
            memoryBytes: fc.constantFrom(200, 1e18),
            rowsPerSecond: fc.constantFrom(...rates),
            loadBytesPerSecond: fc.constantFrom(...rates),
            sizes: fc.constantFrom(
              ...rates.flatMap((rowsPerSecond) =>
                [0, 10 * rowsPerSecond].map((error) => [{ rows: 4, rowsPerSecond, error }]),
              ),
            ),
          }),
        ),
      ),
      horizon: fc.constantFrom(1, 31_536_000),
      bandwidth: fc.constantFrom(1, 1e15),
    });
    fc.assert(
      fc.property(bounded, ({ rows, horizon, bandwidth, ...drawn }) => {
        fc.pre(rows.some((count) => count > 0));
        const recording = readRecording(written({ ...good, ...drawn, layers: [{ ...layer, rows }] }));
        const hosts = ['a', 'b'].map((name) => ({ name, devices: ['cpu', 'cpu'] }));
        const topology = { hosts, links: [{ from: 'a', to: 'b', bandwidth }] };
        const input = planInput(recording, topology, { ...options, horizon });
        const { target: _, predicted, ...figures } = plan(input);
        const all = [predicted.present, predicted.target].flat().flatMap((one) => Object.values(one));
        expect([...all, ...Object.values(figures)].filter((figure) => !Number.isFinite(figure))).toEqual([]);
      }),
    );
  });

  test("on a cluster: its workers, where its copies are, and of the recording the load and the workers' speeds", () => {
    const cluster: RecordedCluster = {
      ...{ ...good, rebalanceLoads: 8 },
      workers: ['y', 'z', 'x'].map((name) => ({
        ...{ ...worker, name, memoryBytes: 900, rowsPerSecond: 7, sizes: [] },
      })),
      layers: [
        { layer: 2, expertBytes: 100, workersOf: [[1]] },
        { layer: 3, expertBytes: 100, workersOf: [[0, 2], [1]] },
      ],
    };
    const [fast, slow] = [1_000, 100].map((rowsPerSecond) => ({
      ...{ rowsPerSecond, sizes: [{ rows: 4, rowsPerSecond, error: 0 }] },
    }));
    const workers = [
      { ...worker, ...fast, name: 'x' },
      { ...worker, ...slow, name: 'y' },
      { ...worker, ...slow, name: 'gone' },
    ];
    const input = planInput(loadOn(cluster, good), null, options, undefined, workers);
    expect(input.workers).toMatchObject(
      ['y', 'z', 'x'].map((name) => ({ name, memoryBytes: 900, loadBytesPerSecond: 1000 })),
    );
    const [y, z, x] = input.workers.map(({ rowsPerSecond }) => rowsPerSecond);
    expect(z).toBe(y);
    expect(x! / y!).toBeGreaterThan(5);
    expect(input.present).toEqual([[[1]], [[0, 2], [1]]]);
    expect(input.layers.map(({ loads }) => [...loads])).toEqual([[0], [1, 3]]);
    expect(input.limits.loads).toBe(8);
  });

  test('on a topology: workers keep their device, others are gone, a new device has the least memory', () => {
    const hosts = [
      { name: 'b', devices: ['cpu', 'cpu'] },
      { name: 'c', devices: ['cuda:0'] },
    ];
    const { workers, present } = planInput(good, { hosts, links: [] }, options);
    expect(workers.map(({ name, host, memoryBytes }) => ({ name, host, memoryBytes }))).toEqual([
      { name: 'y', host: 'b', memoryBytes: 300 },
      { name: 'b/1', host: 'b', memoryBytes: 300 },
      { name: 'c/0', host: 'c', memoryBytes: 300 },
    ]);
    expect(present).toEqual([[[], [0]]]);
  });

  test('no worker that is drained, also on a topology, and cordoned ones closed', () => {
    const marks = new Map([
      ['x', 'DRAINED'],
      ['y', 'CORDONED'],
    ] as const);
    const drained = { marks, copies: 2 };
    const { workers, present } = planInput(good, null, options, drained);
    expect(workers.map(({ name, closed }) => ({ name, closed }))).toEqual([{ name: 'y', closed: true }]);
    expect(present).toEqual([[[], [0]]]);
    const hosts = ['a', 'b', 'c'].map((name) => ({ name, devices: ['cpu'] }));
    const onTopology = planInput(good, { hosts, links: [] }, options, drained);
    expect(onTopology.workers.map(({ name }) => name)).toEqual(['y', 'c/0']);
    expect(onTopology.present).toEqual([[[], [0]]]);
    const all = { ...drained, marks: new Map(good.workers.map(({ name }) => [name, 'DRAINED'] as const)) };
    expect(() => planInput(good, null, options, all)).toThrow(
      expect.objectContaining({
        code: 'NOT_READY',
        message: 'there is no worker that may have copies; drained: x, y',
      }),
    );
  });

  test("the cluster's copies as far as there are workers, if none are given", () => {
    const copies = (given: number | null, ofCluster: number) =>
      planInput(good, null, { ...options, copies: given }, { marks: new Map(), copies: ofCluster }).copiesMin;
    expect([copies(null, 1), copies(null, 2), copies(null, 3), copies(3, 2)]).toEqual([1, 2, 2, 3]);
    expect(planInput(good, null, { ...options, copies: null }).copiesMin).toBe(1);
  });

  test('room on CUDA devices for the experts that they hold in BF16, however they are stored', () => {
    const packed = { ...layer, expertBytesOnCuda: 150 };
    const devices = ['cpu', 'cuda:0'].map((device) => ({
      ...worker,
      name: device.replace(':', '-'),
      device,
    }));
    const recording = { ...good, workers: devices, layers: [packed] };
    const { workers, layers } = planInput(readRecording(written(recording)), null, options);
    const copies = ({ memoryBytes }: { memoryBytes: number }) => memoryBytes / layers[0]!.expertBytes;
    expect(workers.map(copies)).toEqual([4, 2]);
    // Both load 1,000 bytes of their device a second.
    expect(workers.map(({ loadBytesPerSecond }) => Math.round(loadBytesPerSecond))).toEqual([1000, 667]);
    const hosts = [{ name: 'b', devices: ['cuda:0'] }];
    expect(planInput(recording, { hosts, links: [] }, options).workers.map(copies)).toEqual([2]);
    expect(planInput({ ...recording, layers: [layer] }, null, options).workers.map(copies)).toEqual([4, 4]);
  });

  test('nothing without rows, or without any measure of a rate', () => {
    const still = { ...good, layers: [{ ...layer, rows: [0, 0] }] };
    expect(() => planInput(still, null, options)).toThrow(/^no rows were routed within 10.0 s/);
    const unmeasured = { ...good, workers: [{ ...worker, name: 'x', rowsPerSecond: null }] };
    expect(() => planInput(unmeasured, null, options)).toThrow(/^rowsPerSecond is null for all 1 workers/);
  });
});
