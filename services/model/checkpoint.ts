import { createHash } from 'node:crypto';
import { basename, join, resolve } from 'node:path';
import { z } from 'zod';
import type { ExpertSource, TensorSource } from '../../native/index.js';
import { CheckpointFiles } from './checkpoint-files.js';
import { type Family, type FamilyConfig, families, type TensorLayout } from './families.js';
import type { HashProgress } from './hash-progress.js';
import { parseJsonFile, readJson } from './json-file.js';
import { expertWeightBytes, modelLimits } from './limits.js';
import type { MatrixPart } from './safetensors.js';
import { fileInvalid } from './safetensors-header.js';
import type { CheckpointSource, ModelSpec, ModelTensors } from './spec.js';
import { quantisedNames, refuseUnsupported } from './unsupported.js';

/** A matrix by its tensor's name in the model. */
interface NamedMatrix {
  tensor: string;
  part: MatrixPart;
}

interface NamedExpert {
  gate: NamedMatrix;
  up: NamedMatrix;
  down: NamedMatrix;
}

/** Changes when what a fingerprint covers does. */
const fingerprintVersion = 2;

const typeSchema = z.object({
  model_type: z.literal(Object.keys(families) as (keyof typeof families)[], {
    error: Object.keys(families).join(', '),
  }),
});

/**
 * Opens a Hugging Face directory: config.json and the safetensors files that hold MoE tensors. Every tensor that
 * the layers need is checked to be there with its shape and dtype; then the files that hold them are hashed.
 * Rejects with MODEL_INVALID, which names file, tensor or key, the value, and what is allowed.
 */
export async function openCheckpoint(
  source: CheckpointSource,
  progress: HashProgress,
): Promise<{ spec: ModelSpec; tensors: ModelTensors }> {
  const { directory } = source;
  const configFile = join(directory, 'config.json');
  const json = await readJson(configFile);
  refuseUnsupported(configFile, json);
  const { model_type: modelType } = parseJsonFile(configFile, json, typeSchema);
  const family = families[modelType];
  const config = parseJsonFile(configFile, json, family.config);
  requireSane(configFile, config);
  const files = await CheckpointFiles.open(directory);
  try {
    const tensors = new CheckpointTensors(files, family, config);
    await tensors.check();
    const content = ['checkpoint', fingerprintVersion, modelType, config, await files.digest(progress)];
    const fingerprint = createHash('sha256').update(JSON.stringify(content)).digest('hex');
    return { spec: describe(source, modelType, config, fingerprint), tensors };
  } catch (error) {
    files.close();
    throw error;
  }
}

function describe(
  source: CheckpointSource,
  family: keyof typeof families,
  config: FamilyConfig,
  fingerprint: string,
): ModelSpec {
  return {
    name: basename(resolve(source.directory)),
    family,
    fingerprint,
    hidden: config.hidden,
    ffn: config.ffn,
    activation: 'swiglu',
    routing: config.routing,
    layers: config.layers.map((layer) => ({ layer, experts: config.experts })),
    normEpsilon: config.normEpsilon,
    source,
  };
}
function requireSane(file: string, config: FamilyConfig): void {
  const { topK } = config.routing;
  if (topK > config.experts) {
    throw fileInvalid(
      file,
      null,
      'num_experts_per_tok',
      `${topK}`,
      `1 to ${config.experts}, the number of experts`,
    );
  }
  if (config.layers.length === 0)
    throw fileInvalid(file, null, 'layers with experts', 'none', 'at least one');
  const bytes = expertWeightBytes({ ...config, activation: 'swiglu' });
  if (bytes > modelLimits.expertBytes) {
    throw fileInvalid(
      file,
      null,
      'the size of an expert',
      `${bytes} bytes`,
      `up to ${modelLimits.expertBytes} bytes`,
    );
  }
}

class CheckpointTensors implements ModelTensors {
  readonly #layouts = new Map<number, TensorLayout>();

  constructor(
    private readonly files: CheckpointFiles,
    private readonly family: Family,
    private readonly config: FamilyConfig,
  ) {
    for (const layer of config.layers) this.#layouts.set(layer, this.#findLayout(layer));
  }

  /** A layer is saved in the first layout of which it has an expert; if it has none, the error names the first. */
  #findLayout(layer: number): TensorLayout {
    const { layouts } = this.family;
    const holds = (layout: TensorLayout) =>
      this.files.has(inLayer(layer, layout.kind === 'fused' ? layout.gateUp : layout.down.replace('#', '0')));
    return layouts.find(holds) ?? layouts[0]!;
  }

  async check(): Promise<void> {
    const matrices = this.config.layers.flatMap((layer) => {
      const experts = Array.from({ length: this.config.experts }, (_, expert) => this.#expert(layer, expert));
      return [
        this.#norm(layer),
        this.#gate(layer),
        ...experts.flatMap(({ gate, up, down }) => [gate, up, down]),
      ];
    });
    const names = new Set(matrices.map(({ tensor }) => tensor));
    this.#refuseQuantised(names);
    await this.files.openFor(names);
    for (const { tensor, part } of matrices) this.files.file(tensor).check(tensor, part.tensorShape);
  }

  /** Values that await a scale would be served as if they were the weights. */
  #refuseQuantised(names: Iterable<string>): void {
    for (const name of names) {
      const beside = quantisedNames(name).find((each) => this.files.has(each));
      if (beside === undefined) continue;
      const file = join(this.files.directory, this.files.fileName(beside));
      const allowed = 'no scales or packed values beside the weights: quantised weights are not supported';
      throw fileInvalid(
        file,
        beside,
        'presence',
        `a sign that ${JSON.stringify(name)} is quantised`,
        allowed,
      );
    }
  }

  norm(layer: number): TensorSource {
    return this.#source(this.#norm(layer));
  }

  gate(layer: number): TensorSource {
    return this.#source(this.#gate(layer));
  }

  expert(layer: number, expert: number): ExpertSource {
    const { gate, up, down } = this.#expert(layer, expert);
    return {
      activation: 'swiglu',
      gate: this.#source(gate),
      up: this.#source(up),
      down: this.#source(down),
    };
  }

  close(): void {
    this.files.close();
  }

  #source({ tensor, part }: NamedMatrix): TensorSource {
    return this.files.file(tensor).matrix(tensor, part);
  }

  #norm(layer: number): NamedMatrix {
    const { hidden } = this.config;
    const part = { rows: 1, columns: hidden, tensorShape: [hidden], elementOffset: 0 };
    return { tensor: inLayer(layer, this.family.norm), part };
  }

  #gate(layer: number): NamedMatrix {
    return whole(inLayer(layer, this.#layouts.get(layer)!.router), this.config.experts, this.config.hidden);
  }

  #expert(layer: number, expert: number): NamedExpert {
    const { hidden, ffn, experts } = this.config;
    const layout = this.#layouts.get(layer)!;
    if (layout.kind === 'separate') {
      const name = (tensor: string) => inLayer(layer, tensor.replace('#', String(expert)));
      return {
        gate: whole(name(layout.gate), ffn, hidden),
        up: whole(name(layout.up), ffn, hidden),
        down: whole(name(layout.down), hidden, ffn),
      };
    }
    const gateUp = { rows: ffn, columns: hidden, tensorShape: [experts, 2 * ffn, hidden] };
    const down = { rows: hidden, columns: ffn, tensorShape: [experts, hidden, ffn] };
    const half = ffn * hidden;
    const tensor = inLayer(layer, layout.gateUp);
    return {
      gate: { tensor, part: { ...gateUp, elementOffset: 2 * expert * half } },
      up: { tensor, part: { ...gateUp, elementOffset: (2 * expert + 1) * half } },
      down: { tensor: inLayer(layer, layout.down), part: { ...down, elementOffset: expert * half } },
    };
  }
}

function inLayer(layer: number, tensor: string): string {
  return `model.layers.${layer}.${tensor}`;
}

function whole(tensor: string, rows: number, columns: number): NamedMatrix {
  return { tensor, part: { rows, columns, tensorShape: [rows, columns], elementOffset: 0 } };
}
