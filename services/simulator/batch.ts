import type { ForwardHeader } from '../common/generated/switchyard/v1/ForwardHeader.js';
import {
  addWeighted,
  choose,
  expertResult,
  hidden,
  normed,
  type Row,
  tokenRow,
  weight,
} from './arithmetic.js';
import type { SeededRandom } from './random.js';

export interface ModelShape {
  layers: number;
  experts: number;
  topK: number;
}

/** What a simulated client asks for. */
export interface BatchWish {
  number: number;
  tokens: number;
  messageTokens: number;
  chunkTokens: number;
  firstLayer: number;
  lastLayer: number;
  norm: boolean;
  residual: boolean;
  combine: 'EXACT' | 'PARTIAL';
  feedback: boolean;
  given: boolean;
  /** 0: none. */
  deadlineMs: number;
  /** When its client gives it up; 0: never. */
  cancelMs: number;
}

/** Experts and weights of a token, layer after layer, topK each. */
export interface TokenRouting {
  experts: number[];
  weights: number[];
}

export function drawWish(random: SeededRandom, number: number, { layers }: ModelShape): BatchWish {
  const firstLayer = random.integer(0, layers - 1);
  const given = random.chance(0.2);
  const tokens = random.chance(0.3) ? random.integer(1, 4) : random.integer(5, 80);
  return {
    number,
    tokens,
    messageTokens: random.integer(1, tokens),
    chunkTokens: random.integer(1, 40),
    firstLayer: random.chance(0.7) ? 0 : firstLayer,
    lastLayer: random.chance(0.7) ? layers - 1 : random.integer(firstLayer, layers - 1),
    norm: random.chance(0.8),
    residual: random.chance(0.8),
    combine: random.chance(0.7) ? 'EXACT' : 'PARTIAL',
    feedback: !given && random.chance(0.3),
    given,
    deadlineMs: random.chance(0.5) ? Math.round(random.magnitude(500, 60_000)) : 0,
    cancelMs: random.chance(0.08) ? random.magnitude(1, 2_000) : 0,
  };
}

export function headerOf(wish: BatchWish): ForwardHeader {
  const onOff = (on: boolean) => (on ? 'ON' : 'OFF');
  return {
    batchId: `batch-${wish.number}`,
    sequences: 1,
    length: wish.tokens,
    hidden,
    dtype: 'BF16',
    firstLayer: wish.firstLayer,
    lastLayer: wish.lastLayer,
    options: {
      norm: onOff(wish.norm),
      residual: onOff(wish.residual),
      combine: wish.combine,
      feedback: onOff(wish.feedback),
      routing: wish.given ? 'GIVEN' : 'GATE',
      returnRouting: true,
      refuseNonFinite: false,
      chunkTokens: wish.chunkTokens,
    },
    deadlineMs: wish.deadlineMs,
    ucx: null,
    ucxKey: Buffer.alloc(0),
    traceparent: '',
  };
}

/** The routing that a client gives for a token: experts and weights that no gate would choose. */
export function givenRouting(
  { number, firstLayer, lastLayer }: BatchWish,
  token: number,
  shape: ModelShape,
): TokenRouting {
  const routing: TokenRouting = { experts: [], weights: [] };
  for (let layer = firstLayer; layer <= lastLayer; layer += 1) {
    const row = tokenRow(number ^ 0x51ed, token * 64 + layer);
    routing.experts.push(...choose(row, layer + 1000, { ...shape, bias: null }));
    for (let j = 0; j < shape.topK; j += 1) routing.weights.push(1 + ((row.a >>> (j * 3)) & 0xff));
  }
  return routing;
}

/**
 * What a fault-free run answers for a token, computed from its identity alone. `answered`: the routing that came back, which is believed
 * only where the feedback loop had a say in the choice.
 */
export function expectedToken(
  wish: BatchWish,
  token: number,
  shape: ModelShape,
  answered: TokenRouting,
): { row: Row; routing: TokenRouting } {
  const given = wish.given ? givenRouting(wish, token, shape) : null;
  const routing: TokenRouting = { experts: [], weights: [] };
  let row = tokenRow(wish.number, token);
  for (let layer = wish.firstLayer; layer <= wish.lastLayer; layer += 1) {
    const at = (layer - wish.firstLayer) * shape.topK;
    const input = wish.norm ? normed(row) : row;
    const experts =
      given?.experts.slice(at, at + shape.topK) ??
      (wish.feedback
        ? answered.experts.slice(at, at + shape.topK)
        : choose(input, layer, { ...shape, bias: null }));
    const sum = wish.residual ? { ...row } : { a: 0, b: 0 };
    for (const [j, expert] of experts.entries()) {
      const by = given?.weights[at + j] ?? weight(layer, expert, input);
      addWeighted(sum, by, expertResult(layer, expert, input));
      routing.experts.push(expert);
      routing.weights.push(by);
    }
    row = sum;
  }
  return { row, routing };
}
