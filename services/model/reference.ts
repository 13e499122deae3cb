import type { ExpertSource, ReferenceResult, RoutingSpec, TensorSource } from '../../native/index.js';
import { native } from '../../native/index.js';
import { invalidArgument } from '../common/errors.js';
import { decodeBf16, roundToBf16 } from './bf16.js';
import type { Model } from './load.js';

export interface ReferenceOptions {
  /** Layers to run, ascending. */
  layers: readonly number[];
  /** RMSNorm before the gate and the experts. */
  norm: boolean;
  /** Add a layer's input to its output. */
  residual: boolean;
  /** For every layer the experts to use, [tokens, topK], or null: the reference chooses. */
  given: readonly (Uint32Array | null)[];
}

export interface ReferenceForward {
  /** [tokens, hidden] after the last layer. */
  rows: Float64Array;
  /** What each layer's gate chose, in the order of `layers`. */
  layers: Omit<ReferenceResult, 'rows'>[];
}

/**
 * Runs layers in float64 from the weights in BF16, gates' as they are stored, with none of the code of the cluster and nothing rounded between.
 * @param rows [tokens, hidden]
 */
export async function referenceForward(
  model: Model,
  rows: Float64Array,
  options: ReferenceOptions,
): Promise<ReferenceForward> {
  const layers: Omit<ReferenceResult, 'rows'>[] = [];
  let current = rows;
  for (const [index, layer] of options.layers.entries()) {
    const { rows: output, ...chosen } = await native.referenceLayer(current, model.spec.hidden, {
      norm: options.norm ? model.norm(layer) : null,
      epsilon: model.spec.normEpsilon,
      ...gateOf(model, layer),
      given: options.given[index] ?? null,
      experts: expertsOf(model, layer),
      residual: options.residual,
    });
    layers.push(chosen);
    current = output;
  }
  return { rows: current, layers };
}

function gateOf(model: Model, layer: number) {
  const { weight, logitBias, selectionBias } = model.gate(layer);
  return { gate: weight, gateBias: logitBias, selectionBias, routing: model.spec.routing };
}

function expertsOf(model: Model, layer: number): ExpertSource[] {
  const { experts } = model.spec.layers.find((each) => each.layer === layer)!;
  return Array.from({ length: experts }, (_, expert) => model.expert(layer, expert));
}

/** A sample of a batch's tokens, as it went in and came out of a cluster. */
export interface Sample {
  /** The layers with experts that the batch ran through, ascending. */
  layers: readonly number[];
  norm: boolean;
  residual: boolean;
  /** Whether the feedback loop's bias took part in the choice; then choices cannot be checked, but weights are. */
  feedback: boolean;
  /** BF16 [tokens, hidden] */
  inputs: Uint8Array;
  /** BF16 [tokens, hidden] */
  outputs: Uint8Array;
  /** The routing that the cluster returned, [tokens, layers, topK]. */
  experts: Uint32Array;
  weights: Float32Array;
}

export interface Verification {
  tokens: number;
  /** |cluster - reference| / |reference| in the 2-norm, over all tokens. */
  relativeError: number;
  /** The same, of the worst token. */
  relativeErrorMax: number;
  /** Gate decisions of tokens, and how many of them are not the reference's, ties apart. 0 checked under feedback. */
  choicesChecked: number;
  choicesWrong: number;
  /** Weights that differ from the reference's by more than rounding explains. */
  weightsWrong: number;
  /** The largest amount by which an unchosen expert's score exceeds a chosen one's. */
  regretMax: number;
  weightErrorMax: number;
}

/**
 * How far scores, which are at most 1, may be off. The first gate's rows are known, so only float32 sums differ. Later
 * gates see rows that the layers before them rounded to BF16 in many places, which the reference does not.
 */
const scoreTolerance = { first: 2e-5, later: 2e-2 };
/** Relative error of a normalised value before it is rounded to BF16: some float32 roundings. */
const normError = 4e-7;

/** Recomputes a sample in float64 with the experts that the cluster chose, and checks the choice itself. */
export async function verifySample(model: Model, sample: Sample): Promise<Verification> {
  const { hidden, routing } = model.spec;
  const inputs = decodeBf16(sample.inputs);
  const outputs = decodeBf16(sample.outputs);
  const tokens = inputs.length / hidden;
  requireShape('outputs', outputs.length, tokens * hidden);
  requireShape('experts', sample.experts.length, tokens * sample.layers.length * routing.topK);
  requireShape('weights', sample.weights.length, sample.experts.length);

  const given = sample.layers.map((_, index) => layerOf(sample, sample.experts, index, routing.topK));
  const reference = await referenceForward(model, inputs, { ...sample, given });
  const first = await firstGate(model, sample, inputs, given[0]!);
  const result: Verification = {
    tokens,
    ...relativeErrors(outputs, reference.rows, hidden),
    choicesChecked: 0,
    choicesWrong: 0,
    weightsWrong: 0,
    regretMax: 0,
    weightErrorMax: 0,
  };
  for (const index of sample.layers.keys()) {
    const gate = index === 0 ? first : reference.layers[index]!;
    const tolerances = index === 0 ? first.tolerances : new Float64Array(tokens).fill(scoreTolerance.later);
    const weights = layerOf(sample, sample.weights, index, routing.topK);
    checkWeights(result, weights, gate.weights, tolerances, routing);
    if (!sample.feedback) checkChoices(result, gate.regret, tolerances);
  }
  return result;
}

function requireShape(field: string, length: number, expected: number): void {
  if (length !== expected) throw invalidArgument(`${field}.length`, length, `${expected}`);
}

/** One layer's [tokens, topK] of [tokens, layers, topK]. */
function layerOf<T extends Uint32Array | Float32Array>(
  sample: Sample,
  all: T,
  index: number,
  topK: number,
): T {
  const stride = sample.layers.length * topK;
  return all.filter((_, at) => Math.floor((at % stride) / topK) === index) as T;
}

/**
 * The first layer's gate on what the router's gate saw: the normalised rows, which it stores as BF16. The experts
 * here have a single neuron of zeros, for only the gate's answer is wanted.
 */
async function firstGate(model: Model, sample: Sample, inputs: Float64Array, given: Uint32Array) {
  const layer = sample.layers[0]!;
  const { hidden, normEpsilon } = model.spec;
  const zeros = { kind: 'synthetic', seed: 0, stream: 0, scale: 0, center: 0 } as const;
  const idle: ExpertSource = {
    activation: 'gelu',
    gate: null,
    up: { ...zeros, rows: 1, columns: hidden },
    down: { ...zeros, rows: hidden, columns: 1 },
  };
  let rows = inputs;
  let slack = new Float64Array(inputs.length / hidden);
  if (sample.norm) {
    const weight = await readValues(model.norm(layer));
    const gateMax = await largestOf(model.gate(layer).weight);
    const normalized = normalize(inputs, weight, normEpsilon);
    rows = normalized.rows;
    slack = normalized.slack.map((value) => value * gateMax);
  }
  const gate = await native.referenceLayer(rows, hidden, {
    norm: null,
    epsilon: normEpsilon,
    ...gateOf(model, layer),
    given,
    experts: expertsOf(model, layer).map(() => idle),
    residual: false,
  });
  return { ...gate, tolerances: slack.map((value) => scoreTolerance.first + value) };
}

async function readValues(source: TensorSource): Promise<Float64Array> {
  const slab = await native.readTensor(source);
  const values = decodeBf16(slab.view());
  slab.release();
  return values;
}

async function largestOf(source: TensorSource): Promise<number> {
  const slab = await native.readFloats(source);
  const bytes = slab.view();
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const largest = values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  slab.release();
  return largest;
}

/**
 * x / sqrt(mean(x²) + epsilon) * weight, rounded to BF16. `slack`: for each row, by how much values may differ in sum
 * because they lie so close to a rounding boundary that float32 may fall on its other side.
 */
function normalize(values: Float64Array, weight: Float64Array, epsilon: number) {
  const hidden = weight.length;
  const exact = new Float64Array(values.length);
  for (let start = 0; start < values.length; start += hidden) {
    const row = values.subarray(start, start + hidden);
    const square = row.reduce((sum, value) => sum + value * value, 0) / hidden;
    const factor = 1 / Math.sqrt(square + epsilon);
    for (let index = 0; index < hidden; index++) exact[start + index] = row[index]! * factor * weight[index]!;
  }
  const below = roundToBf16(exact.map((value) => value * (1 - normError)));
  const above = roundToBf16(exact.map((value) => value * (1 + normError)));
  const slack = new Float64Array(values.length / hidden);
  for (let index = 0; index < below.length; index++) {
    slack[Math.floor(index / hidden)]! += Math.abs(above[index]! - below[index]!);
  }
  return { rows: roundToBf16(exact), slack };
}

function checkWeights(
  result: Verification,
  weights: Float32Array,
  expected: Float64Array,
  tolerances: Float64Array,
  { topK, scale }: RoutingSpec,
): void {
  for (const [index, weight] of weights.entries()) {
    const error = Math.abs(weight - expected[index]!);
    // Written so that NaN counts as wrong.
    if (!(error <= tolerances[Math.floor(index / topK)]! * scale)) result.weightsWrong++;
    if (!(error <= result.weightErrorMax)) result.weightErrorMax = error;
  }
}

function checkChoices(result: Verification, regrets: Float64Array, tolerances: Float64Array): void {
  for (const [token, regret] of regrets.entries()) {
    result.choicesChecked++;
    if (!(regret <= tolerances[token]!)) result.choicesWrong++;
    if (!(regret <= result.regretMax)) result.regretMax = regret;
  }
}

/** |actual - expected| / |expected| in the 2-norm: over all rows, and of the worst row. */
export function relativeErrors(
  actual: Float64Array,
  expected: Float64Array,
  hidden: number,
): { relativeError: number; relativeErrorMax: number } {
  let differenceTotal = 0;
  let normTotal = 0;
  let worst = 0;
  for (let start = 0; start < expected.length; start += hidden) {
    let difference = 0;
    let norm = 0;
    for (let index = start; index < start + hidden; index++) {
      difference += (actual[index]! - expected[index]!) ** 2;
      norm += expected[index]! ** 2;
    }
    const error = ratio(difference, norm);
    if (!(error <= worst)) worst = error;
    differenceTotal += difference;
    normTotal += norm;
  }
  return { relativeError: ratio(differenceTotal, normTotal), relativeErrorMax: worst };
}

function ratio(difference: number, norm: number): number {
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}
