import { createHash } from 'node:crypto';
import { basename, join, resolve } from 'node:path';
import type { ExpertSource, LatentSource, TensorSource } from '../../native/index.js';
import { CheckpointFiles } from './checkpoint-files.js';
import type { Family, FamilyConfig, SharedSpec } from './families/family.js';
import { readFamily } from './families/read.js';
import type { HashProgress } from './hash-progress.js';
import { readJson } from './json-file.js';
import { type GateViews, LayerTensors } from './layer-tensors.js';
import { expertWeightBytes, modelLimits } from './limits.js';
import type { IndexTable, MatrixView } from './matrix-view.js';
import { readQuantization } from './quantization.js';
import { fileInvalid } from './safetensors-header.js';
import {
  type CheckpointSource,
  type FfnSpec,
  formOf,
  type LayerSpec,
  type ModelSpec,
  type ModelTensors,
  type NormSource,
  routedExperts,
  type SharedExpertSpec,
  zeros,
} from './spec.js';
import { StoredTensors, storedBytes } from './stored-tensors.js';

/** Changes when what a fingerprint covers does. */
const fingerprintVersion = 3;

/** Neurons that most quantisations have one scale for. */
const scaleBlock = 128;

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
  const { family, config, quantization } = readFamily(configFile, await readJson(configFile));
  const layers = describeLayers(config);
  requireSane(configFile, config, layers);
  const files = await CheckpointFiles.open(directory);
  try {
    const stored = new StoredTensors(files, readQuantization(configFile, quantization));
    const tensors = new CheckpointTensors(files, stored, family, config, layers);
    await stored.open(() => tensors.all(), tensors.tables());
    const content = ['checkpoint', fingerprintVersion, family.name, config, await files.digest(progress)];
    const fingerprint = createHash('sha256').update(JSON.stringify(content)).digest('hex');
    const forms = tensors.withBiases(layers);
    const spec = describe(source, family, config, forms, tensors, fingerprint);
    return { spec, tensors };
  } catch (error) {
    files.close();
    throw error;
  }
}

function describe(
  source: CheckpointSource,
  family: Family,
  config: FamilyConfig,
  layers: LayerSpec[],
  tensors: CheckpointTensors,
  fingerprint: string,
): ModelSpec {
  const { hidden, routing, normEpsilon } = config;
  return {
    name: basename(resolve(source.directory)),
    family: family.name,
    fingerprint,
    hidden,
    topK: routing.topK,
    weighsInput: routing.weightOn === 'input',
    bare: family.bare === true,
    layers,
    expertBytes: tensors.expertBytes(),
    latentBytes: tensors.latentBytes(),
    normEpsilon,
    source,
  };
}

/** BF16 bytes of the largest expert. */
function bytesOf({ hidden, expert, isolated }: FamilyConfig): number {
  const forms = isolated === undefined ? [expert] : [expert, isolated.expert];
  return Math.max(...forms.map((form) => expertWeightBytes({ hidden, ...form })));
}

function describeLayers({
  hidden,
  layers,
  hashed,
  experts,
  routing,
  expert,
  isolated,
  shared,
  glus,
  identities = 0,
}: FamilyConfig): LayerSpec[] {
  const parts = shared === null ? [] : partsOf(shared, hidden, expert);
  return layers.map((layer) => ({
    layer,
    experts: (isolated === undefined ? experts : 2 * experts) + parts.length,
    routing,
    vocabulary: hashed?.layers.includes(layer) ? hashed.vocabulary : 0,
    identities,
    expert: glus ? { ...expert, glu: glus[layer]!.expert } : expert,
    isolated: isolated === undefined ? null : { ...isolated, experts },
    shared: glus ? parts.map((part) => ({ ...part, glu: glus[layer]!.shared })) : parts,
  }));
}

/** The shared experts in parts no larger than a routed expert, so that all that is placed has about one size. */
function partsOf({ ffn, ...form }: SharedSpec, hidden: number, routed: FfnSpec): SharedExpertSpec[] {
  const neurons = neuronsOfPart(hidden, routed);
  const count = Math.ceil(ffn / neurons);
  const begin = (part: number) => Math.min(part * neurons, ffn);
  return Array.from({ length: count }, (_, part) => ({ ...form, ffn: begin(part + 1) - begin(part) }));
}

/** Of latent experts as many as have their size, in whole blocks of scales where there are some. */
function neuronsOfPart(hidden: number, { ffn, latent }: FfnSpec): number {
  if (latent === undefined) return ffn;
  const neurons = Math.max(Math.floor((ffn * latent) / hidden), 1);
  return neurons < scaleBlock ? neurons : neurons - (neurons % scaleBlock);
}

function requireSane(file: string, config: FamilyConfig, layers: readonly LayerSpec[]): void {
  const { experts, routing } = config;
  const { topK, groups, groupsChosen } = routing;
  const require = (key: string, value: number | string, isAllowed: boolean, allowed: string) => {
    if (!isAllowed) throw fileInvalid(file, null, key, `${value}`, allowed);
  };
  require('num_experts_per_tok', topK, topK <= experts, `1 to ${experts}, the number of experts`);
  require('n_group', groups, experts % groups === 0, `a divisor of ${experts}, the number of experts`);
  require('topk_group', groupsChosen, groupsChosen <= groups, `1 to ${groups}, the number of groups`);
  const choosable = (experts / groups) * groupsChosen;
  require('num_experts_per_tok', topK, topK <=
    choosable, `1 to ${choosable}, the experts of ${groupsChosen} groups`);
  require('layers with experts', 'none', layers.length > 0, 'at least one');
  const placed = layers[0]!.experts;
  require('the number of experts', placed, placed <= modelLimits.experts, `up to ${modelLimits.experts}`);
  const slots = topK + layers[0]!.shared.length;
  require('the number of experts of a token', slots, slots <= modelLimits.topK, `up to ${modelLimits.topK}`);
  const bytes = bytesOf(config);
  const { expertBytes } = modelLimits;
  require('the size of an expert', `${bytes} bytes`, bytes <= expertBytes, `up to ${expertBytes} bytes`);
}

function sourceBytes(sources: readonly (TensorSource | null)[]): number {
  const bytes = sources.map((source) => (source?.kind === 'file' ? storedBytes(source) : 0));
  return Math.ceil(bytes.reduce((sum, value) => sum + value, 0));
}

/** An expert that gives its rows back; it has no weights. */
function identity(hidden: number): ExpertSource {
  return { activation: 'identity', gate: null, up: zeros(1, hidden), down: zeros(hidden, 1) };
}

class CheckpointTensors implements ModelTensors {
  private readonly layers: ReadonlyMap<number, { spec: LayerSpec; tensors: LayerTensors }>;

  constructor(
    private readonly files: CheckpointFiles,
    private readonly stored: StoredTensors,
    family: Family,
    private readonly config: FamilyConfig,
    layers: readonly LayerSpec[],
  ) {
    this.layers = new Map(
      layers.map((spec) => [spec.layer, { spec, tensors: LayerTensors.find(spec, config, family, stored) }]),
    );
  }

  *all(): Generator<MatrixView> {
    for (const { tensors } of this.layers.values()) yield* tensors.all();
  }

  tables(): IndexTable[] {
    const tables = [...this.layers.values()].map(({ tensors }) => tensors.tokenExperts());
    return tables.filter((table) => table !== null);
  }

  /** What the tensors tell beside config.json. */
  withBiases(layers: readonly LayerSpec[]): LayerSpec[] {
    return layers.map((spec) => {
      const biased = this.of(spec.layer).sharedBiased;
      return { ...spec, shared: spec.shared.map((part) => ({ ...part, biased })) };
    });
  }

  norm(layer: number): NormSource | null {
    const tensors = this.of(layer);
    const weight = tensors.norm();
    return weight && { weight: this.stored.source(weight), offset: tensors.normOffset };
  }

  outputNorm(layer: number): TensorSource | null {
    return this.sourceOrNull(this.of(layer).outputNorm());
  }

  gate(layer: number) {
    const tensors = this.of(layer);
    const gate = this.gateOf(tensors.gate());
    const isolated = tensors.isolatedGate();
    const scale = this.sourceOrNull(tensors.routerScale());
    const table = tensors.tokenExperts();
    const { hidden, normEpsilon: epsilon } = this.config;
    return {
      ...gate,
      isolated: isolated && this.gateOf(isolated),
      logitBias: this.sourceOrNull(tensors.logitBias()),
      sharedGate: this.sourceOrNull(tensors.sharedGate()),
      expertScale: this.sourceOrNull(tensors.expertScale()),
      rowNorm: scale && { weight: scale, factor: hidden ** -0.5, epsilon },
      tokenExperts: table && { read: this.stored.indices(table) },
    };
  }

  private gateOf({ weight, selectionBias }: GateViews) {
    return { weight: this.stored.source(weight), selectionBias: this.sourceOrNull(selectionBias) };
  }

  expert(layer: number, expert: number): ExpertSource {
    const { spec, tensors } = this.layers.get(layer)!;
    if (tensors.isIdentity(expert)) return identity(this.config.hidden);
    const { gate, up, down, bias } = tensors.expert(expert);
    const { activation, glu } = formOf(spec, expert);
    return {
      activation,
      glu,
      gate: this.sourceOrNull(gate),
      up: this.stored.source(up),
      down: this.stored.source(down),
      bias: bias && {
        gate: gate && this.sourceOrZeros(bias.gate, up.rows),
        up: this.sourceOrZeros(bias.up, up.rows),
        down: this.sourceOrZeros(bias.down, down.rows),
      },
      latent: tensors.isRouted(expert) ? this.latent(layer) : null,
      extraBias: this.sourceOrNull(tensors.extraBias(expert)),
    };
  }

  private latent(layer: number): LatentSource | null {
    const views = this.of(layer).latent();
    if (views === null) return null;
    const { input, inputBias, output } = views;
    return {
      input: this.stored.source(input),
      inputBias: this.sourceOrNull(inputBias),
      output: this.stored.source(output),
    };
  }

  /** Of the largest expert, where its weights stay as they are stored. */
  expertBytes(): number {
    const { spec } = [...this.layers.values()][0]!;
    const experts = Array.from({ length: spec.experts }, (_, expert) => expert);
    // Routed experts of a kind have one size; the isolated ones are the last of them, and then come the shared ones.
    const sized = [0, ...experts.slice(routedExperts(spec) - (spec.isolated === null ? 0 : 1))];
    return Math.max(
      ...sized.map((expert) => {
        const { gate, up, down } = this.expert(spec.layer, expert);
        return sourceBytes([gate, up, down]);
      }),
    );
  }

  /** Of what the experts of a layer share, in all layers. */
  latentBytes(): number {
    const latents = [...this.layers.keys()].map((layer) => this.latent(layer));
    return latents.reduce((sum, one) => sum + (one ? sourceBytes([one.input, one.output]) : 0), 0);
  }

  close(): void {
    this.files.close();
  }

  private of(layer: number): LayerTensors {
    return this.layers.get(layer)!.tensors;
  }

  /** A bias, [rows]. */
  private sourceOrZeros(view: MatrixView | null, rows: number): TensorSource {
    return view === null ? zeros(rows, 1) : this.stored.source(view);
  }

  private sourceOrNull(view: MatrixView | null): TensorSource | null {
    return view === null ? null : this.stored.source(view);
  }
}
