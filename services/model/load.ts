import { z } from 'zod';
import type { ExpertSource, TensorSource } from '../../native/index.js';
import { invalidArgument, SwitchyardError, shownJson } from '../common/errors.js';
import type { Logger } from '../common/log.js';
import { checkBy } from '../common/schema-issue.js';
import { openCheckpoint } from './checkpoint.js';
import { HashProgress } from './hash-progress.js';
import type { GateSource, ModelSource, ModelSpec, ModelTensors, NormSource } from './spec.js';
import { syntheticModel, syntheticSchema } from './synthetic.js';

/** A model that is described and checked; its weights are read when a source is given to the addon. */
export class Model {
  readonly #experts: ReadonlyMap<number, number>;

  constructor(
    readonly spec: ModelSpec,
    private readonly tensors: ModelTensors,
  ) {
    this.#experts = new Map(spec.layers.map(({ layer, experts }) => [layer, experts]));
  }

  /** Memory that the largest expert takes. */
  get expertBytes(): number {
    return this.spec.expertBytes;
  }

  /** Throws UNKNOWN_LAYER for a layer without experts. */
  norm(layer: number): NormSource | null {
    this.#expertsOf(layer);
    return this.tensors.norm(layer);
  }

  /** Throws UNKNOWN_LAYER for a layer without experts. */
  outputNorm(layer: number): TensorSource | null {
    this.#expertsOf(layer);
    return this.tensors.outputNorm(layer);
  }

  /** Throws UNKNOWN_LAYER for a layer without experts. */
  gate(layer: number): GateSource {
    this.#expertsOf(layer);
    return this.tensors.gate(layer);
  }

  /** Throws UNKNOWN_LAYER, or INVALID_ARGUMENT for an expert out of range. */
  expert(layer: number, expert: number): ExpertSource {
    const experts = this.#expertsOf(layer);
    if (!Number.isSafeInteger(expert) || expert < 0 || expert >= experts) {
      throw invalidArgument('expert', expert, `0 to ${experts - 1} in layer ${layer}`);
    }
    return this.tensors.expert(layer, expert);
  }

  /** Closes the files once no operation uses them. Idempotent. */
  close(): void {
    this.tensors.close();
  }

  #expertsOf(layer: number): number {
    const experts = this.#experts.get(layer);
    if (experts !== undefined) return experts;
    const allowed = describeLayers(this.spec);
    throw new SwitchyardError('UNKNOWN_LAYER', `layer is ${layer}; allowed: ${allowed}`, {
      field: 'layer',
      value: layer,
      allowed,
    });
  }
}

function describeLayers({ layers, name }: ModelSpec): string {
  const numbers = layers.map(({ layer }) => layer);
  const first = numbers[0]!;
  const last = numbers.at(-1)!;
  if (last - first + 1 === numbers.length) return `${first} to ${last} (layers of ${name} with experts)`;
  return `${numbers.join(', ')} (layers of ${name} with experts)`;
}

/** Describes and checks a model. Its files are hashed, which `log` tells of if it takes long. Rejects with MODEL_INVALID. */
export async function openModel(source: ModelSource, log: Logger | null = null): Promise<Model> {
  const checked = parseModelSource(source);
  const { spec, tensors } =
    checked.kind === 'checkpoint'
      ? await openCheckpoint(checked, new HashProgress(log))
      : syntheticModel(checked.spec);
  return new Model(spec, tensors);
}

const sourceSchema: z.ZodType<ModelSource> = z.discriminatedUnion(
  'kind',
  [
    z.strictObject({
      kind: z.literal('checkpoint'),
      directory: z.string({ error: 'a path' }).min(1, 'a path').max(4096, 'a path of up to 4096 characters'),
      allowNonFiniteWeights: z.boolean({ error: 'true or false' }).optional(),
    }),
    z.strictObject({ kind: z.literal('synthetic'), spec: syntheticSchema }),
  ],
  { error: ({ code }) => (code === 'invalid_union' ? '"checkpoint" or "synthetic"' : undefined) },
);

/** A ModelSource from its JSON form (ModelDescription.source) or from parts given by a user. Throws MODEL_INVALID. */
export function parseModelSource(json: unknown): ModelSource {
  let value = json;
  if (typeof json === 'string') {
    try {
      value = JSON.parse(json);
    } catch (error) {
      throw sourceInvalid(
        'model',
        JSON.stringify(json),
        `the JSON form of a model source: ${(error as Error).message}`,
      );
    }
  }
  const { data, issue } = checkBy(sourceSchema, value);
  if (issue === null) return data;
  const { key, value: found, allowed } = issue;
  throw sourceInvalid(key || 'model', shownJson(found), allowed);
}

function sourceInvalid(field: string, value: string | undefined, allowed: string): SwitchyardError {
  const shown = (value ?? 'missing').slice(0, 200);
  return new SwitchyardError('MODEL_INVALID', `${field} is ${shown}; allowed: ${allowed}`, {
    field,
    value: shown,
    allowed,
  });
}
