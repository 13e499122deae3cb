import { afterAll, describe, expect, test } from '@jest/globals';
import { native } from '../../native/index.js';
import { decodeBf16, roundToBf16 } from '../../services/model/bf16.js';
import { type Model, openModel } from '../../services/model/load.js';
import { referenceForward } from '../../services/model/reference.js';
import { type Choice, gateRows } from '../support/routing.js';
import { small, smallGate, smallTensors, writeCheckpoint } from './support.js';

const { hidden, experts } = small;
const rowCount = 48;

/** Experts 1 to 3 differ from expert 0 by less than BF16 tells, each by a vector of its own. */
const base = Float64Array.from({ length: hidden }, (_, i) => 1 + i / 16);
const weights = Float64Array.from({ length: experts * hidden }, (_, at) => {
  const [expert, i] = [Math.floor(at / hidden), at % hidden];
  return base[i]! + 2 ** -10 * Math.cos((expert + 1) * (i + 1) * 1.7);
});

const rows = native.allocateSlab(rowCount * hidden * 2);
const bits = new Uint16Array(rows.view().buffer);
for (const at of bits.keys())
  bits[at] = 0x3f00 + ((at * 2654435761) % 128) + (Math.sin(at * at) < 0 ? 0x8000 : 0);
const values = decodeBf16(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength));

afterAll(() => rows.release());

/** The best expert of every row, in float64. */
function best(gate: Float64Array): number[] {
  return Array.from({ length: rowCount }, (_, row) => {
    const logits = Array.from({ length: experts }, (_, expert) => {
      let sum = 0;
      for (let i = 0; i < hidden; i++) sum += values[row * hidden + i]! * gate[expert * hidden + i]!;
      return sum;
    });
    return logits.indexOf(Math.max(...logits));
  });
}

async function open(dtype: string, data: Uint8Array): Promise<Model> {
  const tensors = smallTensors();
  tensors[smallGate] = { dtype, shape: [experts, hidden], data };
  return await openModel({ kind: 'checkpoint', directory: await writeCheckpoint(tensors) });
}

async function choose(model: Model): Promise<Choice> {
  const { weight } = model.gate(0);
  const floats = await native.readFloats(weight);
  const { routing } = model.spec.layers[0]!;
  const gate = native.createGate({
    weight: floats,
    experts,
    hidden,
    logitBias: null,
    selectionBias: null,
    routing,
  });
  return (await gateRows({ gate, rows, rowCount, topK: routing.topK })).choice;
}

const f32 = () => new Uint8Array(Float32Array.from(weights).buffer);

/** The bits of positive normal F16 numbers, rounded down. */
const f16Bits = () =>
  Uint16Array.from(weights, (value) => {
    const exponent = Math.floor(Math.log2(value));
    return ((exponent + 15) << 10) | Math.floor((value / 2 ** exponent - 1) * 1024);
  });
const f16Values = () =>
  Float64Array.from(f16Bits(), (half) => (1 + (half & 1023) / 1024) * 2 ** ((half >> 10) - 15));

const referenceOptions = { layers: [0], norm: false, residual: false };

describe('a gate keeps the precision in which it is stored', () => {
  test.each<[string, Uint8Array, Float64Array]>([
    ['F32', f32(), Float64Array.from(weights)],
    ['F16', new Uint8Array(f16Bits().buffer), f16Values()],
  ])('%s: every near choice is that of float64', async (dtype, data, exact) => {
    const model = await open(dtype, data);
    expect([...(await choose(model)).experts]).toEqual(best(exact));
    const reference = await referenceForward(model, values, { ...referenceOptions, given: [null] });
    expect([...reference.layers[0]!.experts]).toEqual(best(exact));
    model.close();
  });

  test('the reference would notice a gate that was rounded to BF16', async () => {
    const rounded = best(roundToBf16(weights));
    const exact = best(weights);
    const wrong = rounded.flatMap((expert, row) => (expert === exact[row] ? [] : [row]));
    expect(wrong.length).toBeGreaterThan(rowCount / 4);
    const model = await open('F32', f32());
    const given = [Uint32Array.from(rounded)];
    const { regret } = (await referenceForward(model, values, { ...referenceOptions, given })).layers[0]!;
    for (const row of wrong) expect(regret[row]).toBeGreaterThan(0);
    model.close();
  });
});
