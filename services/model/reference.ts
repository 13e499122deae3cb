import type { ExpertSource, ReferenceResult, RoutingSpec, TensorSource } from '../../native/index.js';
import { native } from '../../native/index.js';
import { invalidArgument } from '../common/errors.js';
import { decodeBf16, roundToBf16 } from './bf16.js';
import { gateScaleOf } from './gate.js';
import type { Model } from './load.js';
import { readFiniteOrNull, readFloats } from './read-floats.js';
import { type LayerSpec, zeros } from './spec.js';

export interface ReferenceOptions {
  /** Layers to run, ascending. */
  layers: readonly number[];
  /** RMSNorm before the gate and the experts. */
  norm: boolean;
  /** Add a layer's input to its output. */
  residual: boolean;
  /** For every layer the experts to use, [tokens, topK], or null: the reference chooses. */
  given: readonly (Uint32Array | null)[];
  /** For layers with given experts their weights, [tokens, topK]; without, the reference's own. */
  givenWeights?: readonly Float32Array[];
  /** [tokens], for layers that choose experts by them, unless experts are given, and for those with isolated experts. */
  tokenIds?: Uint32Array | null;
}

/** What a layer's gate chose, and how good that is. */
type Gate = Omit<ReferenceResult, 'rows'>;

export interface ReferenceForward {
  /** [tokens, hidden] after the last layer. */
  rows: Float64Array;
  /** What each layer's gate chose, in the order of `layers`. */
  layers: Gate[];
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
  const layers: Gate[] = [];
  let current = rows;
  for (const [index, layer] of options.layers.entries()) {
    const norm = model.norm(layer);
    const own = options.given[index] ?? null;
    const byIds = own === null ? await chosenByIds(model, layer, options.tokenIds ?? null) : null;
    const gate = await gateOf(model, layer, isolatedRows(model, layer, rows.length, options.tokenIds));
    const { rows: output, ...chosen } = await native.referenceLayer(current, model.spec.hidden, {
      norm: options.norm ? (norm?.weight ?? null) : null,
      normOffset: norm?.offset ?? 0,
      epsilon: model.spec.normEpsilon,
      outputNorm: model.outputNorm(layer),
      ...gate,
      given: own ?? byIds,
      givenWeights: options.givenWeights?.[index] ?? null,
      experts: expertsOf(model, layer),
      residual: options.residual,
    });
    layers.push(byIds === null ? chosen : { ...chosen, experts: byIds });
    current = output;
  }
  return { rows: current, layers };
}

/** The experts that a layer chooses by the ids of tokens, [tokens, topK]; null: its scores choose. */
async function chosenByIds(
  model: Model,
  layer: number,
  tokenIds: Uint32Array | null,
): Promise<Uint32Array | null> {
  const table = await model.gate(layer).tokenExperts?.read();
  if (table === undefined) return null;
  const { topK } = model.spec;
  const allowed = `the ids of the tokens, as layer ${layer} chooses experts by them`;
  if (tokenIds === null) throw invalidArgument('tokenIds', 'none', allowed);
  return Uint32Array.from({ length: tokenIds.length * topK }, (_, at) => {
    return table[tokenIds[Math.floor(at / topK)]! * topK + (at % topK)]!;
  });
}

/** 1 for each row that is one of the layer's isolated tokens; `elements`: of all rows. */
function isolatedRows(
  model: Model,
  layer: number,
  elements: number,
  tokenIds: Uint32Array | null | undefined,
): Uint8Array {
  const own = new Set(specOf(model, layer).isolated?.tokenIds);
  const rows = new Uint8Array(elements / model.spec.hidden);
  return tokenIds ? rows.map((_, row) => (own.has(tokenIds[row]!) ? 1 : 0)) : rows;
}

/** `rows`: as isolatedRows gives it. */
async function gateOf(model: Model, layer: number, rows: Uint8Array) {
  const source = model.gate(layer);
  const { weight, logitBias, selectionBias, isolated, sharedGate, expertScale, rowNorm } = source;
  const { routing, shared } = specOf(model, layer);
  return {
    gate: weight,
    gateBias: await readFiniteOrNull(logitBias),
    selectionBias: await readFiniteOrNull(selectionBias),
    routing,
    isolated: isolated && {
      gate: isolated.weight,
      selectionBias: await readFiniteOrNull(isolated.selectionBias),
      rows,
    },
    shared: { weights: Float32Array.from(shared, (each) => each.weight), gate: sharedGate },
    expertScale: await readFiniteOrNull(expertScale),
    rowEpsilon: rowNorm?.epsilon ?? null,
    gateScale: await gateScaleOf(source),
  };
}

function specOf(model: Model, layer: number): LayerSpec {
  return model.spec.layers.find((each) => each.layer === layer)!;
}

function expertsOf(model: Model, layer: number): ExpertSource[] {
  const { experts } = specOf(model, layer);
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
  /** [tokens], for layers that choose experts by them, or among isolated ones; null: the batch had none. */
  tokenIds: Uint32Array | null;
}

export interface Verification {
  /** Tokens compared: those of the sample that are not left out. */
  tokens: number;
  /** Left out: tokens that held NaN or infinity, and came back so. */
  nonFiniteInputs: number;
  /** Left out: tokens that overflowed on the way, in the reference as in the cluster. */
  nonFiniteOutputs: number;
  /** |cluster - reference| / |reference| in the 2-norm, over all tokens; see errorFloor. */
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
  /** The same in logits, which tell where scores are all but equal. */
  logitRegretMax: number;
  weightErrorMax: number;
}

/**
 * How far scores, which are at most 1, may be off, and by which share of ReferenceResult.logitScale the logits of two experts. The
 * first gate's rows are known, so only float32 sums differ. Later gates see rows that the layers before them rounded to BF16 in
 * many places, which the reference does not.
 */
const tolerance = { first: { score: 2e-5, logit: 2e-6 }, later: { score: 2e-2, logit: 2e-2 } };
/** What float32 sums of products may lose below its normal floats. */
const logitFloor = 2 ** -100;
/**
 * A row's error is measured against no less than this in every element. Instruction sets with BF16 products read what is below
 * the normal floats, 2^-126, as zero, and BF16 holds less of its digits there; experts may make of that some hundred times as much.
 */
const errorFloor = 2 ** -112;
/** Relative error of a normalised value before it is rounded to BF16: some float32 roundings. */
const normError = 4e-7;

/** Recomputes a sample in float64 with the experts and weights that the cluster chose, and checks these by themselves. */
export async function verifySample(model: Model, sample: Sample): Promise<Verification> {
  const { hidden, topK } = model.spec;
  const inputs = decodeBf16(sample.inputs);
  const outputs = decodeBf16(sample.outputs);
  const tokens = inputs.length / hidden;
  requireShape('outputs', outputs.length, tokens * hidden);
  requireShape('experts', sample.experts.length, tokens * sample.layers.length * topK);
  requireShape('weights', sample.weights.length, sample.experts.length);

  const given = sample.layers.map((_, index) => layerOf(sample, sample.experts, index, topK));
  const givenWeights = sample.layers.map((_, index) => layerOf(sample, sample.weights, index, topK));
  const reference = await referenceForward(model, inputs, { ...sample, given, givenWeights });
  const first = await firstGate(model, sample, inputs, given[0]!);
  const byIds: (Uint32Array | null)[] = [];
  for (const layer of sample.layers) byIds.push(await chosenByIds(model, layer, sample.tokenIds));
  const { kept, ...leftOut } = sortTokens(inputs, outputs, reference.rows, hidden);
  const result: Verification = {
    tokens: kept.length,
    ...leftOut,
    ...relativeErrors(rowsOf(outputs, hidden, kept), rowsOf(reference.rows, hidden, kept), hidden),
    choicesChecked: 0,
    choicesWrong: 0,
    weightsWrong: 0,
    regretMax: 0,
    logitRegretMax: 0,
    weightErrorMax: 0,
  };
  for (const [index, layer] of sample.layers.entries()) {
    const { routing } = specOf(model, layer);
    const gate = index === 0 ? first : reference.layers[index]!;
    for (let token = 0; token < tokens; token++) {
      // What is not finite before the gate has no choice to be checked.
      if (!Number.isFinite(gate.logitScale[token])) continue;
      const allowed = index === 0 ? firstTolerance(first, token) : laterTolerance(gate, token, hidden);
      // An expert that is hardly near enough to count changes the weights at once.
      if (index > 0 && routing.score === 'sparse-mixer') allowed.score = Number.POSITIVE_INFINITY;
      checkWeights(result, givenWeights[index]!, gate.weights, token, allowed, routing);
      const expected = byIds[index]!;
      if (expected !== null) checkChosen(result, given[index]!, expected, token, topK);
      else if (!sample.feedback) checkChoice(result, gate, token, allowed);
    }
  }
  return result;
}

/**
 * Which tokens are compared, and how many cannot be: NaN and infinity must come back as such, and what overflows in the
 * reference may overflow in the cluster.
 */
function sortTokens(inputs: Float64Array, outputs: Float64Array, expected: Float64Array, hidden: number) {
  const sorted = { kept: [] as number[], nonFiniteInputs: 0, nonFiniteOutputs: 0 };
  for (let token = 0; token * hidden < inputs.length; token++) {
    const finite = (rows: Float64Array) => rowsOf(rows, hidden, [token]).every(Number.isFinite);
    if (finite(outputs)) sorted.kept.push(token);
    else if (!finite(inputs)) sorted.nonFiniteInputs++;
    else if (!finite(expected)) sorted.nonFiniteOutputs++;
    else sorted.kept.push(token);
  }
  return sorted;
}

/** The rows of some tokens, side by side. */
function rowsOf(rows: Float64Array, hidden: number, tokens: readonly number[]): Float64Array {
  const some = new Float64Array(tokens.length * hidden);
  for (const [index, token] of tokens.entries()) {
    some.set(rows.subarray(token * hidden, (token + 1) * hidden), index * hidden);
  }
  return some;
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
  const idle: ExpertSource = {
    activation: 'gelu',
    glu: null,
    gate: null,
    up: zeros(1, hidden),
    down: zeros(hidden, 1),
    bias: null,
  };
  let rows = inputs;
  let slack = new Float64Array(inputs.length / hidden);
  if (sample.norm) {
    const norm = model.norm(layer)!;
    const weight = (await readValues(norm.weight)).map((value) => value + norm.offset);
    const { weight: common, isolated } = model.gate(layer);
    const gateMax = Math.max(await largestOf(common), isolated ? await largestOf(isolated.weight) : 0);
    const normalized = normalize(inputs, weight, normEpsilon);
    rows = normalized.rows;
    slack = normalized.slack.map((value) => value * gateMax);
  }
  const gate = await native.referenceLayer(rows, hidden, {
    norm: null,
    epsilon: normEpsilon,
    ...(await gateOf(model, layer, isolatedRows(model, layer, inputs.length, sample.tokenIds))),
    given,
    givenWeights: null,
    experts: expertsOf(model, layer).map(() => idle),
    residual: false,
  });
  return { ...gate, slack };
}

/** How far scores may be off, and the logits of two experts in sum. */
interface Tolerance {
  score: number;
  logit: number;
}

function firstTolerance({ logitScale, slack }: Gate & { slack: Float64Array }, token: number): Tolerance {
  const logit = tolerance.first.logit * logitScale[token]! + 2 * slack[token]! + logitFloor;
  // No score rises faster than a quarter of its logit.
  return { score: tolerance.first.score + logit / 4, logit };
}

function laterTolerance({ logitScale }: Gate, token: number, hidden: number): Tolerance {
  const logit = tolerance.later.logit * logitScale[token]! + logitFloor;
  // A logit is seldom off by more than this: errors of a row point any way. It counts where logits are large.
  const usual = logit / Math.sqrt(hidden);
  return { score: Math.max(tolerance.later.score, usual / 2), logit };
}

async function readValues(source: TensorSource): Promise<Float64Array> {
  const slab = await native.readTensor(source);
  const values = decodeBf16(slab.view());
  slab.release();
  return values;
}

async function largestOf(source: TensorSource): Promise<number> {
  return (await readFloats(source)).reduce((max, value) => Math.max(max, Math.abs(value)), 0);
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
  token: number,
  allowed: Tolerance,
  { topK, scale }: RoutingSpec,
): void {
  for (let index = token * topK; index < (token + 1) * topK; index++) {
    const error = Math.abs(weights[index]! - expected[index]!);
    // Written so that NaN counts as wrong.
    if (!(error <= allowed.score * scale)) result.weightsWrong++;
    result.weightErrorMax = Math.max(result.weightErrorMax, error);
  }
}

function checkChoice(result: Verification, gate: Gate, token: number, allowed: Tolerance): void {
  const regret = gate.regret[token]!;
  const logitRegret = gate.logitRegret[token]!;
  result.choicesChecked++;
  if (!(regret <= allowed.score && logitRegret <= allowed.logit)) result.choicesWrong++;
  result.regretMax = Math.max(result.regretMax, regret);
  result.logitRegretMax = Math.max(result.logitRegretMax, logitRegret);
}

/** Of what a token's id chooses, in its order. */
function checkChosen(
  result: Verification,
  given: Uint32Array,
  expected: Uint32Array,
  token: number,
  topK: number,
): void {
  const [from, to] = [token * topK, (token + 1) * topK];
  const own = given.subarray(from, to);
  result.choicesChecked++;
  if (expected.subarray(from, to).some((expert, j) => expert !== own[j])) result.choicesWrong++;
}

/** |actual - expected| / |expected| in the 2-norm, see errorFloor: over all rows, and of the worst row. */
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
    const error = ratio(difference, norm, hidden);
    worst = Math.max(worst, error);
    differenceTotal += difference;
    normTotal += norm;
  }
  return { relativeError: ratio(differenceTotal, normTotal, expected.length), relativeErrorMax: worst };
}

/** From sums of squares over `count` elements. */
function ratio(difference: number, norm: number, count: number): number {
  return difference === 0 ? 0 : Math.sqrt(difference / Math.max(norm, count * errorFloor ** 2));
}
