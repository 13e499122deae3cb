import type { AnswerChunk, ModelDescription, RowsReader } from '../client/index.js';
import { SwitchyardError } from '../common/errors.js';
import type { Verification as ReferenceVerification } from '../model/reference.js';
import type { BatchConfig } from './batch-options.js';
import type { BatchTokenIds } from './token-ids.js';

export interface Verification extends ReferenceVerification {
  /** Every check below its limit. */
  verified: boolean;
  relativeErrorAllowed: number;
}

/** What BF16 between so many layers and in the results may cost, in the 2-norm: each layer's rounding is independent of the others'. */
export const relativeErrorAllowed = (layers: number): number => Math.max(1e-2, 4e-3 * Math.sqrt(layers));
/** The same for the worst token: one that is wrong must not hide among many that are right. */
export const relativeErrorMaxAllowed = 1e-1;

/** What a batch sends. */
export interface BatchInput {
  rows: RowsReader;
  /** Null: the batch has none. */
  tokenIds: BatchTokenIds | null;
}

/** Tokens of a batch whose answers are kept, to be recomputed by the reference. */
export class Sample {
  private readonly outputs: (Uint8Array | undefined)[];
  private readonly experts: (Uint32Array | undefined)[];
  private readonly weights: (Float32Array | undefined)[];

  private constructor(
    /** Ascending. */
    readonly tokens: readonly number[],
  ) {
    this.outputs = new Array(tokens.length);
    this.experts = new Array(tokens.length);
    this.weights = new Array(tokens.length);
  }

  /** The first and the last token, and `count - 2` others by chance; equal seeds choose the same. */
  static choose(tokens: number, count: number, seed: number): Sample {
    const chosen = new Set([0, tokens - 1]);
    let state = seed >>> 0;
    while (chosen.size < Math.min(count, tokens)) {
      // Steps of a 32-bit linear congruential generator (Numerical Recipes).
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      chosen.add(Math.floor((state / 2 ** 32) * tokens));
    }
    return new Sample([...chosen].sort((a, b) => a - b));
  }

  take({ first, count, rows, routing }: AnswerChunk, hidden: number): void {
    for (const [index, token] of this.tokens.entries()) {
      if (token < first || token >= first + count || !routing) continue;
      const at = token - first;
      const perToken = routing.experts.length / count;
      // Copies: a view would keep the whole message in memory.
      this.outputs[index] = rows.slice(at * hidden * 2, (at + 1) * hidden * 2);
      this.experts[index] = routing.experts.slice(at * perToken, (at + 1) * perToken);
      this.weights[index] = routing.weights.slice(at * perToken, (at + 1) * perToken);
    }
  }

  /** Reads the sampled inputs again and recomputes them in float64. The model's files must be visible from here. */
  async verify(
    model: ModelDescription,
    { rows, tokenIds }: BatchInput,
    config: BatchConfig,
  ): Promise<Verification> {
    const { openModel, parseModelSource } = await import('../model/load.js');
    const { verifySample } = await import('../model/reference.js');
    const inputs = await Promise.all(this.tokens.map(async (token) => rows.read(token, 1)));
    const ids = tokenIds && (await Promise.all(this.tokens.map(async (token) => tokenIds.read(token, 1))));
    const opened = await openModel(parseModelSource(model.source));
    try {
      if (opened.spec.fingerprint !== model.fingerprint) {
        const text = `the model at ${model.source} is not the one that the cluster serves`;
        throw new SwitchyardError('MODEL_MISMATCH', text, { fingerprint: opened.spec.fingerprint });
      }
      const { first, last } = config.layers ?? { first: 0, last: Number.POSITIVE_INFINITY };
      const layers = opened.spec.layers
        .map(({ layer }) => layer)
        .filter((layer) => layer >= first && layer <= last);
      const result = await verifySample(opened, {
        layers,
        norm: config.norm,
        residual: config.residual,
        // Unless the batch refused it, the bias may have taken part.
        feedback: config.feedback !== false,
        inputs: Buffer.concat(inputs),
        outputs: Buffer.concat(answered(this.outputs)),
        experts: joined(answered(this.experts), Uint32Array),
        weights: joined(answered(this.weights), Float32Array),
        tokenIds: ids && joined(ids, Uint32Array),
      });
      const allowed = relativeErrorAllowed(layers.length);
      const verified =
        result.relativeError <= allowed &&
        result.relativeErrorMax <= relativeErrorMaxAllowed &&
        result.choicesWrong === 0 &&
        result.weightsWrong === 0;
      return { ...result, verified, relativeErrorAllowed: allowed };
    } finally {
      opened.close();
    }
  }
}

function answered<T>(parts: readonly (T | undefined)[]): T[] {
  return parts.map((part) => {
    if (part === undefined)
      throw new SwitchyardError('DATA_LOSS', 'a sampled token came back without its routing');
    return part;
  });
}

function joined<T extends Uint32Array | Float32Array>(
  parts: readonly T[],
  Type: new (length: number) => T,
): T {
  const whole = new Type(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
