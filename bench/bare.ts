import { type Expert, type ExpertBackend, type ExpertInput, native, type Slab } from '../native/index.js';
import { openModel } from '../services/model/load.js';
import type { ModelSource, SyntheticSpec } from '../services/model/spec.js';
import { type Peer, startNative } from './peer.js';

/** Rows of one call: enough to be bound by compute, and what a worker takes at once. */
const rowsPerCall = 1_024;

/** An expert FFN with nothing around it: what a cluster on the same device can at best reach. */
export interface Bare {
  /** Tokens per second through all layers, measured over about `seconds`. */
  tokensPerSecond(seconds: number): Promise<number>;
  close(): void;
}

interface Core {
  backend: ExpertBackend;
  experts: Expert[];
}

/**
 * The bare expert FFN: the same weights and kernels as a worker's, rows already grouped and in memory, one thread a
 * core on experts of its own, no gate, no transport, no cluster.
 */
export class BareFfn implements Bare {
  private constructor(
    private readonly cores: Core[],
    private readonly rows: Slab,
    private readonly hidden: number,
    private readonly assignmentsPerToken: number,
  ) {}

  /** Every core loads `expertsPerCore` experts of the model's first layer, so that weights come from memory as in a worker. */
  static async open(source: ModelSource, coreCount: number, expertsPerCore: number): Promise<BareFfn> {
    const model = await openModel(source);
    const { spec } = model;
    const { layer, experts } = spec.layers[0]!;
    const cores: Core[] = [];
    for (let index = 0; index < coreCount; index++) {
      const backend = native.createCpuBackend({ threads: 1 });
      const held: Expert[] = [];
      for (let i = 0; i < expertsPerCore; i++) {
        held.push(await backend.load(model.expert(layer, (index * expertsPerCore + i) % experts)));
      }
      cores.push({ backend, experts: held });
    }
    const rows = await native.synthesizeTokens({
      seed: 3,
      firstToken: 0,
      count: rowsPerCall,
      hidden: spec.hidden,
      skew: 0,
      topics: 64,
    });
    model.close();
    return new BareFfn(cores, rows, spec.hidden, spec.topK * spec.layers.length);
  }

  async tokensPerSecond(seconds: number): Promise<number> {
    const until = performance.now() + seconds * 1000;
    const rates = await Promise.all(this.cores.map((core) => this.rowsPerSecond(core, until)));
    return rates.reduce((sum, rate) => sum + rate, 0) / this.assignmentsPerToken;
  }

  private async rowsPerSecond({ backend, experts }: Core, until: number): Promise<number> {
    const output = native.allocateSlab(rowsPerCall * this.hidden * 2);
    const input: ExpertInput = {
      rows: this.rows,
      indices: Uint32Array.from({ length: rowsPerCall }, (_, row) => row),
      output,
      outputRow: 0,
      inputWeights: null,
    };
    let rows = 0;
    const start = performance.now();
    while (performance.now() < until) {
      await Promise.all(experts.map((expert) => backend.forward([{ expert, inputs: [input] }])));
      rows += experts.length * rowsPerCall;
    }
    output.release();
    return rows / ((performance.now() - start) / 1000);
  }

  close(): void {
    for (const { backend, experts } of this.cores) {
      for (const expert of experts) expert.release();
      backend.close();
    }
    this.rows.release();
  }
}

/** The bare expert FFN on a CUDA device, weights and rows resident: gpu_bench, which takes turns with a cluster. */
export class BareDevice implements Bare {
  private constructor(
    private readonly process: Peer,
    private readonly assignmentsPerToken: number,
  ) {}

  static async open(
    { activation, hidden, ffn, topK, layers }: SyntheticSpec,
    device: string,
    experts: number,
    log: (line: string) => void,
  ): Promise<BareDevice> {
    const index = device.slice('cuda:'.length);
    const shape = [activation, hidden, ffn, experts, rowsPerCall].map(String);
    const process = await startNative('gpu_bench', ['--device', index, '--serve', ...shape], log, {
      build: 'build-gpu',
      options: ['-DSWITCHYARD_CUDA=ON'],
    });
    return new BareDevice(process, topK * layers);
  }

  async tokensPerSecond(seconds: number): Promise<number> {
    return (await this.process.ask(seconds)) / this.assignmentsPerToken;
  }

  close(): void {
    this.process.close();
  }
}
