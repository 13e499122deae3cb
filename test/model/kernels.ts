import { type ExpertBackend, type GateResult, native, type Slab } from '../../native/index.js';
import type { Model } from '../../services/model/load.js';

export interface KernelOptions {
  layers: readonly number[];
  norm: boolean;
  residual: boolean;
  bias: Float32Array | null;
}

/** What a cluster of one worker does with a chunk, by the addon's own operations. `routing`: one result per layer. */
export async function runKernels(
  model: Model,
  start: Slab,
  options: KernelOptions,
): Promise<{ rows: Slab; routing: GateResult[] }> {
  const backend = native.createCpuBackend({ threads: 1 });
  const routing: GateResult[] = [];
  let rows = start;
  for (const layer of options.layers) {
    const { output, chosen } = await runLayer(model, backend, layer, rows, options);
    routing.push(chosen);
    rows = output;
  }
  backend.close();
  return { rows, routing };
}

async function runLayer(
  model: Model,
  backend: ExpertBackend,
  layer: number,
  rows: Slab,
  options: KernelOptions,
): Promise<{ output: Slab; chosen: GateResult }> {
  const { hidden, routing, normEpsilon } = model.spec;
  const rowCount = rows.byteLength / (hidden * 2);
  const { weight, logitBias, selectionBias } = model.gate(layer);
  const count = model.spec.layers.find((each) => each.layer === layer)!.experts;
  const gate = native.createGate({
    weight: await native.readFloats(weight),
    experts: count,
    hidden,
    logitBias,
    selectionBias,
    routing,
  });
  const normWeight = await native.readTensor(model.norm(layer));
  const inputs = options.norm
    ? await native.normalizeRows({
        rows,
        rowCount,
        hidden,
        weight: normWeight,
        epsilon: normEpsilon,
      })
    : rows;
  const chosen = await native.gateRows({ gate, rows: inputs, rowCount, bias: options.bias });
  const [group] = await native.groupRows({
    rowCount,
    topK: routing.topK,
    experts: chosen.experts,
    weights: chosen.weights,
    workerOf: new Uint32Array(count),
    workers: 1,
    limits: null,
  });
  const results = native.allocateSlab(group!.rowIndices.length * hidden * 2);
  let outputRow = 0;
  for (let segment = 0; segment < group!.segments.length; segment += 2) {
    const expert = await backend.load(model.expert(layer, group!.segments[segment]!));
    const indices = group!.rowIndices.slice(outputRow, outputRow + group!.segments[segment + 1]!);
    await backend.forward(expert, [
      { rows: inputs, indices, output: results, outputRow, inputWeights: null },
    ]);
    outputRow += indices.length;
    expert.release();
  }
  const { rows: output } = await native.combineRows({
    mode: 'exact',
    rowCount,
    hidden,
    topK: routing.topK,
    weights: chosen.weights,
    residual: options.residual ? rows : null,
    parts: [{ rows: results, targets: group!.slots }],
  });
  return { output, chosen };
}
