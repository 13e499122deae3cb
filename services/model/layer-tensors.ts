import type { Family, FamilyConfig, LayerNames } from './families/family.js';
import {
  type BiasViews,
  biasOf,
  column,
  FfnFinder,
  type FfnViews,
  type IndexTable,
  type LatentViews,
  type MatrixView,
  matrix,
  type TensorShapes,
  transposed,
  vector,
} from './matrix-view.js';
import { formOf, type LayerSpec, routedExperts } from './spec.js';

/** Where a checkpoint keeps its layers: in front of a layer's names, with `#` for its number. */
const prefixes = [
  'model.layers.#.',
  'model.language_model.layers.#.',
  'language_model.model.layers.#.',
  'language_model.layers.#.',
  'language_model.model.blocks.#.',
  'thinker.model.layers.#.',
  'backbone.layers.#.',
  'model.backbone.layers.#.',
  'transformer.blocks.#.',
  'layers.#.',
];

/** What a gate chooses by. */
export interface GateViews {
  weight: MatrixView;
  selectionBias: MatrixView | null;
}

/** The tensors of one layer. */
export class LayerTensors {
  private readonly experts: FfnFinder;
  /** Null: they are among those of `experts`, or there are none. */
  private readonly isolated: FfnFinder | null;
  private readonly shared: FfnFinder | null;
  private readonly routed: number;
  /** Those of them that are not isolated. */
  private readonly common: number;

  private constructor(
    private readonly spec: LayerSpec,
    private readonly config: FamilyConfig,
    private readonly names: LayerNames,
    private readonly prefix: string,
    private readonly shapes: TensorShapes,
    private readonly bare: boolean,
  ) {
    const { hidden, identities = 0 } = config;
    const isolated = spec.isolated?.experts ?? 0;
    const apart = names.isolated?.experts ?? null;
    this.routed = routedExperts(spec);
    this.common = this.routed - isolated;
    const width = spec.expert.latent ?? hidden;
    this.experts = new FfnFinder(names.experts, prefix, width, this.common - identities, shapes, identities);
    this.isolated = apart && new FfnFinder(apart, prefix, hidden, isolated, shapes);
    this.shared = names.shared && new FfnFinder(names.shared, prefix, hidden, null, shapes);
  }

  /** A layer is saved in the first layout of which it has an expert; if it has none, errors name the first. */
  static find(
    spec: LayerSpec,
    config: FamilyConfig,
    { layouts, bare = false }: Pick<Family, 'layouts' | 'bare'>,
    shapes: TensorShapes,
  ): LayerTensors {
    const at = (prefix: string) => prefix.replace('#', String(spec.layer));
    const isHere = (names: LayerNames, prefix: string, whole: boolean) =>
      [names.experts, whole ? names.shared : null].every(
        (ffn) =>
          ffn === null ||
          shapes.has(prefix + (ffn.kind === 'fused' ? ffn.gateUp : (ffn.gate ?? ffn.up)).replace('#', '0')),
      );
    // What is whole counts before what lacks something.
    for (const whole of [true, false]) {
      for (const prefix of prefixes.map(at)) {
        const names = layouts.find((each) => isHere(each, prefix, whole));
        if (names !== undefined) return new LayerTensors(spec, config, names, prefix, shapes, bare);
      }
    }
    return new LayerTensors(spec, config, layouts[0]!, at(prefixes[0]!), shapes, bare);
  }

  /** Null: the block alone makes sense, and has none. */
  norm(): MatrixView | null {
    const { norm } = this.names;
    return this.bare || norm.length === 0 ? null : vector(this.firstOf(norm), this.config.hidden);
  }

  outputNorm(): MatrixView | null {
    const { outputNorm } = this.names;
    return outputNorm.length === 0 ? null : vector(this.firstOf(outputNorm), this.config.hidden);
  }

  /** Whether an expert is one of those that give their rows back. */
  isIdentity(expert: number): boolean {
    return expert < this.routed && expert >= this.routed - (this.config.identities ?? 0);
  }

  get normOffset(): number {
    return this.names.normOffset;
  }

  gate(): GateViews {
    return { weight: this.router(this.names.router, this.common), selectionBias: this.selectionBias() };
  }

  /** Null: no experts are isolated. */
  isolatedGate(): GateViews | null {
    const { isolated } = this.spec;
    if (isolated === null) return null;
    const { router, selectionBias } = this.names.isolated!;
    return {
      weight: this.router(router, isolated.experts),
      selectionBias:
        selectionBias === null
          ? { ...this.bothSelectionBiases(), firstRow: 1 }
          : vector(this.prefix + selectionBias, isolated.experts),
    };
  }

  private router(router: string, experts: number): MatrixView {
    const { hidden } = this.config;
    const name = this.prefix + router;
    return this.names.routerTransposed
      ? transposed(matrix(name, hidden, experts))
      : matrix(name, experts, hidden);
  }

  logitBias(): MatrixView | null {
    const { routerBias } = this.names;
    return routerBias === null ? null : vector(this.prefix + routerBias, this.routed);
  }

  routerScale(): MatrixView | null {
    const { routerScale } = this.names;
    return routerScale === null ? null : vector(this.prefix + routerScale, this.config.hidden);
  }

  expertScale(): MatrixView | null {
    const { expertScale } = this.names;
    return expertScale === null ? null : vector(this.prefix + expertScale, this.routed);
  }

  private selectionBias(): MatrixView | null {
    const { selectionBias, isolated } = this.names;
    if (selectionBias.length === 0 || this.spec.vocabulary > 0 || this.config.selectionBias === false)
      return null;
    if (isolated !== null && isolated.selectionBias === null) return this.bothSelectionBiases();
    return vector(this.firstOf(selectionBias), this.common);
  }

  /** The first row of a tensor that has that of isolated experts below it. */
  private bothSelectionBiases(): MatrixView {
    return { ...matrix(this.firstOf(this.names.selectionBias), 2, this.common), rows: 1 };
  }

  /** The experts of tokens by their ids; null: scores choose. */
  tokenExperts(): IndexTable | null {
    const { vocabulary, routing } = this.spec;
    if (vocabulary === 0) return null;
    const tensor = this.prefix + this.names.tokenExperts!;
    return { tensor, shape: [vocabulary, routing.topK], limit: this.routed };
  }

  sharedGate(): MatrixView | null {
    const { sharedGate } = this.names;
    return sharedGate === null ? null : matrix(this.prefix + sharedGate, 1, this.config.hidden);
  }

  /** Whether biases of the shared experts are stored. */
  get sharedBiased(): boolean {
    return this.shared?.biased === true;
  }

  /** Null: experts take rows as they are. */
  latent(): LatentViews | null {
    const { latent: width } = this.spec.expert;
    if (width === undefined) return null;
    const { hidden } = this.config;
    const names = this.names.latent!;
    const bias = (weight: string, length: number) => {
      const name = this.prefix + biasOf(weight);
      return this.shapes.has(name) ? column(name, length) : null;
    };
    return {
      input: matrix(this.prefix + names.input, width, hidden),
      inputBias: bias(names.input, width),
      output: matrix(this.prefix + names.output, hidden, width),
      outputBias: bias(names.output, hidden),
    };
  }

  /** Added to the results of the first shared expert, which every token has with a weight of 1: what is added to the sum of the others. */
  extraBias(expert: number): MatrixView | null {
    return expert === this.routed ? (this.latent()?.outputBias ?? null) : null;
  }

  isRouted(expert: number): boolean {
    return expert < this.routed;
  }

  expert(expert: number): FfnViews {
    if (this.isRouted(expert)) {
      const { ffn } = formOf(this.spec, expert);
      const apart = expert < this.common ? null : this.isolated;
      const index = apart === null ? expert : expert - this.common;
      const views = (apart ?? this.experts).find({ ffn, first: 0, count: ffn }, index);
      return { ...views, bias: views.bias ?? this.outputBias() };
    }
    const before = this.spec.shared.slice(0, expert - this.routed);
    const first = before.reduce((sum, part) => sum + part.ffn, 0);
    const part = { ffn: this.config.shared!.ffn, first, count: this.spec.shared[before.length]!.ffn };
    return this.shared!.find(part);
  }

  private outputBias(): BiasViews | null {
    const { outputBias } = this.names;
    if (outputBias === null) return null;
    return { gate: null, up: null, down: column(this.prefix + outputBias, this.config.hidden) };
  }

  /** All that the layer needs. */
  *all(): Generator<MatrixView> {
    const gate = [
      ...[this.gate(), this.isolatedGate()].flatMap((views) => views && [views.weight, views.selectionBias]),
      this.logitBias(),
      this.routerScale(),
      this.expertScale(),
    ];
    const latent = Object.values(this.latent() ?? {}) as (MatrixView | null)[];
    for (const view of [this.norm(), this.outputNorm(), ...gate, this.sharedGate(), ...latent])
      if (view !== null) yield view;
    for (let expert = 0; expert < this.spec.experts; expert += 1) {
      if (this.isIdentity(expert)) continue;
      const { gate, up, down, bias } = this.expert(expert);
      if (gate !== null) yield gate;
      yield up;
      yield down;
      for (const view of bias === null ? [] : [bias.gate, bias.up, bias.down]) if (view !== null) yield view;
    }
  }

  private firstOf(names: readonly string[]): string {
    return this.prefix + (names.find((name) => this.shapes.has(this.prefix + name)) ?? names[0]!);
  }
}
