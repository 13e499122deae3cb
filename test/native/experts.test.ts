import { afterAll, describe, expect, test } from '@jest/globals';
import {
  type Expert,
  type ExpertSource,
  native,
  type ReferenceLayer,
  type Slab,
} from '../../native/index.js';
import { nowMicroseconds } from '../../services/common/trace.js';
import { gateRows } from '../support/routing.js';
import { allRows, routing, slabOf, someValues, synthetic, valuesOf } from './support.js';

const [hidden, ffn, rowCount] = [32, 48, 70];
const gelu: ExpertSource = {
  activation: 'gelu',
  gate: null,
  up: synthetic(1, ffn, hidden),
  down: synthetic(2, hidden, ffn),
};
const swiglu: ExpertSource = {
  activation: 'swiglu',
  gate: synthetic(3, ffn, hidden),
  up: synthetic(4, ffn, hidden),
  down: synthetic(5, hidden, ffn),
};
const values = someValues(rowCount * hidden, 1);
const rows = slabOf(values);
const backend = native.createCpuBackend({ threads: 2 });

afterAll(() => {
  backend.close();
  rows.release();
});

/** The expert alone, in float64. */
async function reference(expert: ExpertSource): Promise<Float64Array> {
  const layer: ReferenceLayer = {
    norm: null,
    epsilon: 0,
    gate: synthetic(9, 1, hidden),
    gateBias: null,
    selectionBias: null,
    routing: { ...routing, topK: 1 },
    given: null,
    givenWeights: null,
    experts: [expert],
    residual: false,
  };
  return (await native.referenceLayer(Float64Array.from(values), hidden, layer)).rows;
}

function relativeError(actual: readonly number[], expected: Float64Array): number {
  const difference = Math.hypot(...actual.map((value, index) => value - expected[index]!));
  return difference / Math.hypot(...expected);
}

function forward(expert: Expert, output: Slab, indices = allRows(rowCount)) {
  return backend.forward([{ expert, inputs: [{ rows, indices, output, outputRow: 0, inputWeights: null }] }]);
}

describe('an expert backend', () => {
  test('leaves turns of the event loop to others, however many small calls follow each other', async () => {
    const expert = await backend.load(gelu);
    const output = native.allocateSlab(rowCount * hidden * 2);
    let turned = false;
    let calls = 0;
    setImmediate(() => (turned = true));
    for (; !turned; calls += 1) await forward(expert, output, Uint32Array.of(0));
    expect(calls).toBeLessThan(16);
    expert.release();
    output.release();
  });

  test.each([
    ['gelu', gelu],
    ['swiglu', swiglu],
  ])('computes %s experts as the float64 reference does', async (_, source) => {
    const expert = await backend.load(source);
    expect([expert.hidden, expert.ffn]).toEqual([hidden, ffn]);
    const output = native.allocateSlab(rowCount * hidden * 2);
    const calledMicroseconds = nowMicroseconds();
    const [time] = await forward(expert, output);
    const { startedMicroseconds, seconds } = time!;
    expect(startedMicroseconds).toBeGreaterThan(calledMicroseconds);
    expect(startedMicroseconds + seconds * 1e6).toBeLessThan(nowMicroseconds());
    expect(seconds).toBeGreaterThan(0);
    expect(relativeError(valuesOf(output), await reference(source))).toBeLessThan(5e-3);
    expert.release();
    expert.release();
    output.release();
  });

  test('takes rows by index and writes them from a given row on', async () => {
    const expert = await backend.load(gelu);
    const whole = native.allocateSlab(rowCount * hidden * 2);
    const part = native.allocateSlab(5 * hidden * 2);
    part.view().fill(0x3f);
    await forward(expert, whole);
    const indices = Uint32Array.of(69, 3, 3);
    const input = { rows, indices, output: part, outputRow: 2, inputWeights: null };
    await backend.forward([{ expert, inputs: [input] }]);
    const expected = valuesOf(whole);
    const rowOf = (all: number[], index: number) => all.slice(index * hidden, (index + 1) * hidden);
    const actual = valuesOf(part);
    expect(part.view().subarray(0, 2 * hidden * 2)).toEqual(
      new Uint8Array(part.view().buffer.slice(0, 2 * hidden * 2)).fill(0x3f),
    );
    [69, 3, 3].forEach((index, i) => {
      expect(rowOf(actual, 2 + i)).toEqual(rowOf(expected, index));
    });
    for (const slab of [whole, part]) slab.release();
    expert.release();
  });

  test('runs calls in order and works on after releases in flight', async () => {
    const expert = await backend.load(gelu);
    const order: number[] = [];
    const outputs = Array.from({ length: 20 }, () => native.allocateSlab(rowCount * hidden * 2));
    const calls = outputs.map((output, index) => forward(expert, output).then(() => order.push(index)));
    expert.release();
    await Promise.all(calls);
    expect(order).toEqual([...order.keys()]);
    const first = valuesOf(outputs[0]!);
    for (const output of outputs) {
      expect(valuesOf(output)).toEqual(first);
      output.release();
    }
  });

  test('closes after what is queued, and then refuses', async () => {
    const own = native.createCpuBackend({ threads: 1 });
    expect(own.description).toMatchObject({ kind: 'cpu', threads: 1 });
    const expert = await own.load(gelu);
    const output = native.allocateSlab(rowCount * hidden * 2);
    const input = { rows, indices: allRows(rowCount), output, outputRow: 0, inputWeights: null };
    const pending = own.forward([{ expert, inputs: [input] }]);
    own.close();
    own.close();
    expect((await pending)[0]!.seconds).toBeGreaterThan(0);
    await expect(own.forward([{ expert, inputs: [input] }])).rejects.toMatchObject({ code: 'SLAB_RELEASED' });
    await expect(own.load(gelu)).rejects.toMatchObject({ code: 'SLAB_RELEASED' });
    await expect(backend.forward([{ expert, inputs: [input] }])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'calls[0].expert is of another backend; allowed: experts that this backend loaded',
    });
    expert.release();
    output.release();
  });

  test('an error while loading names the matrix', async () => {
    await expect(backend.load({ ...gelu, down: synthetic(1, hidden, ffn + 1) })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      operation: 'load',
    });
    await expect(backend.load({ ...swiglu, gate: null })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('referenceLayer', () => {
  test('agrees with gate, experts and combine on a whole layer', async () => {
    const experts = [gelu, swiglu, { ...gelu, up: synthetic(6, ffn, hidden) }];
    const gateSource = synthetic(7, experts.length, hidden);
    const normSource = { ...synthetic(8, 1, hidden), center: 1 };
    const layer: ReferenceLayer = {
      norm: normSource,
      epsilon: 1e-5,
      gate: gateSource,
      gateBias: null,
      selectionBias: null,
      routing,
      given: null,
      givenWeights: null,
      experts,
      residual: true,
    };
    const expected = await native.referenceLayer(Float64Array.from(values), hidden, layer);

    const gate = native.createGate({
      weight: await native.readFloats(gateSource),
      experts: experts.length,
      hidden,
      logitBias: null,
      selectionBias: null,
      routing,
    });
    const norm = { weight: await native.readTensor(normSource), epsilon: 1e-5 };
    const { routed, choice } = await gateRows({ rows, rowCount, gate, topK: 2, norm });
    const normed = routed.normed!;
    const group = routed.groups[0]!;
    const output = native.allocateSlab(rowCount * 2 * hidden * 2);
    let entry = 0;
    for (let i = 0; i < group.segments.length; i += 2) {
      const expert = await backend.load(experts[group.segments[i]!]!);
      const end = entry + group.segments[i + 1]!;
      const indices = group.rowIndices.slice(entry, end);
      const input = { rows: normed, indices, output, outputRow: entry, inputWeights: null };
      await backend.forward([{ expert, inputs: [input] }]);
      expert.release();
      entry = end;
    }
    const { rows: combined } = await native.combineRows({
      routed,
      mode: 'exact',
      hidden,
      weighted: true,
      residual: rows,
      parts: [output],
    });
    expect(relativeError(valuesOf(combined), expected.rows)).toBeLessThan(5e-3);
    const sameChoice = choice.experts.filter((expert, index) => expert === expected.experts[index]).length;
    expect(sameChoice).toBeGreaterThanOrEqual(choice.experts.length - 4);
    expect(Math.max(...expected.regret)).toBeLessThanOrEqual(0);
  });
});
