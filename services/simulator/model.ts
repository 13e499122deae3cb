import type { ComputeTime, Expert, ExpertBackend, ExpertCall, ExpertSource } from '../../native/index.js';
import type { ModelSpec } from '../model/spec.js';
import { syntheticModel } from '../model/synthetic.js';
import type { LayerWeights } from '../router/weights.js';
import { RouterWeights } from '../router/weights.js';
import type { Clock } from '../runtime/clock.js';
import { expertResult, hidden } from './arithmetic.js';
import type { ModelShape } from './batch.js';
import type { DeviceRates } from './rates.js';
import { RowsOf, SimulatedGate, type SimulatedRows } from './rows.js';

export function modelSpec({ layers, experts, topK }: ModelShape): ModelSpec {
  const spec = {
    name: 'simulated',
    hidden,
    ffn: 64,
    experts,
    topK,
    layers,
    activation: 'gelu',
    seed: 1,
  } as const;
  return syntheticModel(spec).spec;
}

/** As a worker opens it. Sources of experts carry who they are in place of a generator's seed and stream. */
export function openedModel(spec: ModelSpec) {
  const expert = (layer: number, index: number): ExpertSource => {
    const source = {
      kind: 'synthetic',
      seed: layer,
      stream: index,
      rows: 1,
      columns: 1,
      scale: 1,
      center: 0,
    } as const;
    return { activation: 'gelu', glu: null, gate: null, up: source, down: source, bias: null };
  };
  const model = { spec, expertBytes: spec.expertBytes, expert, close: () => {} };
  return { model, finite: { checkExpert: () => {} } };
}

/** As a router loads it. */
export function routerWeights(spec: ModelSpec, rows: SimulatedRows): RouterWeights {
  const layers = spec.layers.map(({ layer, experts }): [number, LayerWeights] => [
    layer,
    {
      gate: new SimulatedGate(layer, experts, spec.topK),
      norm: { weight: rows.allocateSlab(2 * hidden), offset: 0 },
      outputNorm: null,
    },
  ]);
  return new RouterWeights(spec, new Map(layers));
}

class SimulatedExpert implements Expert {
  readonly hidden = hidden;
  readonly ffn = 64;
  readonly nonFinite = {
    gate: 0,
    up: 0,
    down: 0,
    latentInput: 0,
    latentOutput: 0,
    gateBias: 0,
    upBias: 0,
    downBias: 0,
    latentBias: 0,
    extraBias: 0,
  };
  released = false;

  constructor(
    readonly layer: number,
    readonly index: number,
    readonly bytes: number,
    private readonly onRelease: () => void,
  ) {}

  release(): void {
    if (!this.released) this.onRelease();
    this.released = true;
  }
}

/** A device that computes one call after the other, at its rate. */
export class SimulatedBackend implements ExpertBackend {
  readonly description = {
    kind: 'cpu',
    detail: 'simulated',
    threads: 1,
    calls: 2,
    rows: 0,
    memoryBytes: null,
  } as const;
  /** Of the weights in its memory, loading ones included. */
  bytesHeld = 0;
  bytesHeldMax = 0;
  private freeAtMs = 0;

  constructor(
    private readonly clock: Clock,
    private readonly rates: DeviceRates,
    private readonly callMs: number,
    private readonly expertBytes: number,
  ) {}

  async load({ up }: ExpertSource): Promise<Expert> {
    this.bytesHeld += this.expertBytes;
    this.bytesHeldMax = Math.max(this.bytesHeldMax, this.bytesHeld);
    await this.until(this.clock.now() + this.rates.loadMs);
    if (up.kind !== 'synthetic') throw new Error('simulated experts have no files');
    return new SimulatedExpert(up.seed, up.stream, this.expertBytes, () => {
      this.bytesHeld -= this.expertBytes;
    });
  }

  async forward(calls: readonly ExpertCall[]): Promise<ComputeTime[]> {
    const times: ComputeTime[] = [];
    for (const { expert, inputs } of calls) {
      const { layer, index } = expert as SimulatedExpert;
      let rowCount = 0;
      for (const { rows, indices, output, outputRow } of inputs) {
        const [from, to] = [new RowsOf(rows), new RowsOf(output)];
        for (const [i, row] of indices.entries())
          to.set(outputRow + i, expertResult(layer, index, from.get(row)));
        rowCount += indices.length;
      }
      const startedMs = Math.max(this.freeAtMs, this.clock.now());
      const ms = this.callMs + rowCount * this.rates.rowMs;
      this.freeAtMs = startedMs + ms;
      times.push({ startedMicroseconds: startedMs * 1000, seconds: ms / 1000 });
    }
    await this.until(this.freeAtMs);
    return times;
  }

  figures(): null {
    return null;
  }

  close(): void {}

  private until(ms: number): Promise<void> {
    return new Promise((resolve) => this.clock.after(ms - this.clock.now(), resolve));
  }
}
