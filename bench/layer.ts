import { type Expert, type ExpertBackend, type GateWeights, native, type Slab } from '../native/index.js';
import { softmaxRouting } from '../services/model/synthetic.js';
import { loadExperts, type Shape, syntheticMatrix, weightBytes } from './experts.js';
import { oneCopyEach } from './one-copy.js';
import { startNative, startPython } from './peer.js';
import type { BenchOptions, BenchResult } from './report.js';
import { type Call, cpuSeconds, summarizeTurns, takeTurns } from './turns.js';

const expertCount = 16;
const cases: { shape: Shape; topK: number }[] = [
  { shape: { activation: 'swiglu', hidden: 1024, ffn: 2816 }, topK: 2 },
  { shape: { activation: 'swiglu', hidden: 4096, ffn: 1536 }, topK: 8 },
];
const tokenCounts = [256, 1024, 4096];
/** Beyond every other stream of synthetic values that the experts use. */
const gateStream = 3 * expertCount;

/** One MoE layer in one process: what a router and a worker do to a chunk, without what lies between them. */
class Layer {
  private constructor(
    readonly backend: ExpertBackend,
    private readonly experts: Expert[],
    private readonly gate: GateWeights,
    private readonly tokens: Slab,
    private readonly hidden: number,
    private readonly topK: number,
  ) {}

  static async open({ shape, topK }: (typeof cases)[number]): Promise<Layer> {
    const { hidden } = shape;
    const backend = native.createCpuBackend({ threads: 1 });
    const experts = await loadExperts(backend, shape, expertCount);
    const weight = await native.readFloats(syntheticMatrix(gateStream, expertCount, hidden));
    const routing = softmaxRouting(topK);
    const gate = native.createGate({
      weight,
      experts: expertCount,
      hidden,
      logitBias: null,
      selectionBias: null,
      routing,
    });
    weight.release();
    const count = Math.max(...tokenCounts);
    const tokens = await native.synthesizeTokens({
      seed: 3,
      firstToken: 0,
      count,
      hidden,
      skew: 0,
      topics: 64,
    });
    return new Layer(backend, experts, gate, tokens, hidden, topK);
  }

  /** The first `rowCount` tokens: gate, group, experts, combine. */
  async forward(rowCount: number): Promise<void> {
    const { hidden, topK, tokens: rows } = this;
    const routed = await native.routeRows({
      rows,
      rowCount,
      hidden,
      norm: null,
      gate: { weights: this.gate, bias: null },
      table: null,
      copies: oneCopyEach(new Uint32Array(expertCount)),
      pace: null,
      workers: 1,
      limits: null,
      weighted: false,
    });
    // The one worker gets every token, so the group's rows are the tokens as they lie.
    const { segments, rowIndices } = routed.groups[0]!;
    const output = native.allocateSlab(rowCount * topK * hidden * 2);
    for (let segment = 0, outputRow = 0; segment < segments.length; segment += 2) {
      const indices = rowIndices.subarray(outputRow, outputRow + segments[segment + 1]!);
      const input = { rows, indices, output, outputRow, inputWeights: null };
      await this.backend.forward([{ expert: this.experts[segments[segment]!]!, inputs: [input] }]);
      outputRow += indices.length;
    }
    const combined = await native.combineRows({
      routed,
      mode: 'exact',
      hidden,
      weighted: true,
      residual: null,
      parts: [output],
    });
    for (const held of [output, routed, combined.rows]) held.release();
  }

  close(): void {
    for (const held of [...this.experts, this.gate, this.tokens]) held.release();
    this.backend.close();
  }
}

async function benchCase(
  name: string,
  test: (typeof cases)[number],
  options: BenchOptions,
): Promise<BenchResult[]> {
  const { runs, log } = options;
  native.configure({ slabBytesMax: 2 ** 31, threads: 1 });
  const layer = await Layer.open(test);
  const limits = await startNative(
    'experts_peer',
    [layer.backend.description.detail, 'swiglu', '64', '64', '1'],
    log,
  );
  const sizes = [test.shape.hidden, test.shape.ffn, expertCount, test.topK].map(String);
  const torch = await startPython('torch', 'torch_layer.py', sizes, log);
  const kt = await startPython('kt', 'kt_layer.py', [...sizes, String(Math.max(...tokenCounts))], log);
  const peers: Record<string, Call> = {
    ...(torch && {
      torch: (tokens) => torch.ask(tokens, 0),
      'torch-grouped': (tokens) => torch.ask(tokens, 1),
    }),
    ...(kt && { kt: (tokens) => kt.ask(tokens) }),
  };
  const results: BenchResult[] = [];
  for (const tokens of tokenCounts) {
    const turnsPerRun = tokens <= 256 ? 4 : 1;
    const turns = await takeTurns(
      runs * turnsPerRun,
      1,
      tokens,
      (rows) => cpuSeconds(() => layer.forward(rows)),
      peers,
      limits,
    );
    const work = weightBytes(test.shape) * tokens * test.topK;
    results.push(summarizeTurns(`${name}-${tokens}`, work, false, turns));
  }
  layer.close();
  return results;
}

/** A whole MoE layer on one thread beside PyTorch's, as transformers writes it both ways, and KTransformers'. */
export const layerGroups: Record<string, (options: BenchOptions) => Promise<BenchResult[]>> =
  Object.fromEntries(
    cases.map((test) => {
      const name = `layer/${test.shape.hidden}x${test.shape.ffn}-top${test.topK}`;
      return [name, (options: BenchOptions) => benchCase(name, test, options)];
    }),
  );
