import { type Expert, type ExpertBackend, type ExpertInput, native } from '../native/index.js';
import { openModel } from '../services/model/load.js';
import type { ModelSource } from '../services/model/spec.js';

/** Rows of one call: enough to be bound by compute, and what a worker takes at once. */
const rowsPerCall = 512;

/**
 * The bare expert FFN: the same weights and kernels as a worker's, rows already grouped and in memory,
 * all cores, no gate, no transport, no cluster. Its tokens per second is what a cluster can at best reach.
 */
export class BareFfn {
  private constructor(
    private readonly backend: ExpertBackend,
    private readonly experts: Expert[],
    private readonly input: ExpertInput,
    private readonly assignmentsPerToken: number,
  ) {}

  /** Loads up to `expertsMax` experts of the model's first layer, so that weights come from memory as in a worker. */
  static async open(source: ModelSource, threads: number, expertsMax: number): Promise<BareFfn> {
    const model = await openModel(source);
    const { spec } = model;
    const first = spec.layers[0]!;
    const backend = native.createCpuBackend({ threads });
    const experts: Expert[] = [];
    for (let expert = 0; expert < Math.min(first.experts, expertsMax); expert++) {
      experts.push(await backend.load(model.expert(first.layer, expert)));
    }
    const rows = await native.synthesizeTokens({
      seed: 3,
      firstToken: 0,
      count: rowsPerCall,
      hidden: spec.hidden,
      skew: 0,
      topics: 64,
    });
    const input: ExpertInput = {
      rows,
      indices: Uint32Array.from({ length: rowsPerCall }, (_, row) => row),
      output: native.allocateSlab(rowsPerCall * spec.hidden * 2),
      outputRow: 0,
      inputWeights: null,
    };
    model.close();
    return new BareFfn(backend, experts, input, spec.routing.topK * spec.layers.length);
  }

  /** Tokens per second through all layers, measured over about `seconds`. */
  async tokensPerSecond(seconds: number): Promise<number> {
    const once = async () => {
      await Promise.all(this.experts.map((expert) => this.backend.forward(expert, [this.input])));
      return this.experts.length * rowsPerCall;
    };
    await once();
    let rows = 0;
    const start = performance.now();
    while (performance.now() - start < seconds * 1000) rows += await once();
    return rows / this.assignmentsPerToken / ((performance.now() - start) / 1000);
  }

  close(): void {
    for (const expert of this.experts) expert.release();
    this.input.rows.release();
    this.input.output.release();
    this.backend.close();
  }
}
