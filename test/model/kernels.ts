import { type ExpertBackend, native, type Slab } from '../../native/index.js';
import { createGate } from '../../services/model/gate.js';
import type { Model } from '../../services/model/load.js';
import { type Choice, gateRows } from '../support/routing.js';

export interface KernelOptions {
  layers: readonly number[];
  norm: boolean;
  residual: boolean;
  bias: Float32Array | null;
  /** For layers that choose experts by them. */
  tokenIds?: Uint32Array | null;
}

/** What a cluster of one worker does with a chunk, by the addon's own operations. `routing`: one result per layer. */
export async function runKernels(
  model: Model,
  start: Slab,
  options: KernelOptions,
): Promise<{ rows: Slab; routing: Choice[] }> {
  const backend = native.createCpuBackend({ threads: 1 });
  const routing: Choice[] = [];
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
): Promise<{ output: Slab; chosen: Choice }> {
  const { hidden, topK, normEpsilon } = model.spec;
  const rowCount = rows.byteLength / (hidden * 2);
  const spec = model.spec.layers.find((each) => each.layer === layer)!;
  const { shared } = spec;
  const source = model.gate(layer);
  const weight = await native.readFloats(source.weight);
  const sharedGate = source.sharedGate && (await native.readFloats(source.sharedGate));
  const isolated = source.isolated && (await native.readFloats(source.isolated.weight));
  const gate = await createGate(source, spec, hidden, { weight, isolated, sharedGate });
  const normSource = options.norm ? model.norm(layer) : null;
  const norm = normSource && {
    weight: await native.readTensor(normSource.weight),
    offset: normSource.offset,
    epsilon: normEpsilon,
  };
  const { routed, choice } = await gateRows({
    rows,
    rowCount,
    gate,
    topK,
    shared: shared.length,
    norm,
    bias: options.bias,
    tokenIds: options.tokenIds ?? null,
    weighted: model.spec.weighsInput,
  });
  const inputs = routed.normed ?? rows;
  const group = routed.groups[0]!;
  const results = native.allocateSlab(group.rowIndices.length * hidden * 2);
  let outputRow = 0;
  for (let segment = 0; segment < group.segments.length; segment += 2) {
    const expert = await backend.load(model.expert(layer, group.segments[segment]!));
    const indices = group.rowIndices.slice(outputRow, outputRow + group.segments[segment + 1]!);
    const inputWeights = group.weights?.slice(outputRow, outputRow + indices.length) ?? null;
    const input = { rows: inputs, indices, output: results, outputRow, inputWeights };
    await backend.forward([{ expert, inputs: [input] }]);
    outputRow += indices.length;
    expert.release();
  }
  const outputNorm = model.outputNorm(layer);
  const { rows: output } = await native.combineRows({
    routed,
    mode: 'exact',
    hidden,
    weighted: !model.spec.weighsInput,
    residual: options.residual ? rows : null,
    outputNorm: outputNorm && { weight: await native.readTensor(outputNorm), epsilon: normEpsilon },
    parts: [results],
  });
  routed.release();
  return { output, chosen: choice };
}
