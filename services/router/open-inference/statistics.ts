import type { ModelStatisticsInput } from '../../common/generated/inference/ModelStatistics.js';
import { modelVersion, type ServedModel } from './models.js';

/** What a request took, in seconds. */
export interface RequestSeconds {
  total: number;
  queue: number;
  input: number;
  infer: number;
  output: number;
}

const phases = ['success', 'fail', 'queue', 'computeInput', 'computeInfer', 'computeOutput'] as const;
type Durations = Record<(typeof phases)[number], { count: number; ns: number }>;

/** Requests of each model since the router started. */
export class Statistics {
  private readonly durations = new Map<string, Durations>();
  private readonly lastMs = new Map<string, number>();

  /** `endedMs`: since 1970. */
  succeeded(model: string, seconds: RequestSeconds, endedMs: number): void {
    const all = this.of(model);
    add(all.success, seconds.total);
    add(all.queue, seconds.queue);
    add(all.computeInput, seconds.input);
    add(all.computeInfer, seconds.infer);
    add(all.computeOutput, seconds.output);
    this.lastMs.set(model, endedMs);
  }

  failed(model: string, seconds: number): void {
    add(this.of(model).fail, seconds);
  }

  describe({ name }: ServedModel): ModelStatisticsInput {
    const inferenceStats = this.of(name);
    const { count } = inferenceStats.success;
    return {
      name,
      version: modelVersion,
      lastInference: this.lastMs.get(name) ?? 0,
      inferenceCount: count,
      executionCount: count,
      inferenceStats,
    };
  }

  private of(model: string): Durations {
    const known = this.durations.get(model) ?? newDurations();
    this.durations.set(model, known);
    return known;
  }
}

function newDurations(): Durations {
  return Object.fromEntries(phases.map((phase) => [phase, { count: 0, ns: 0 }])) as Durations;
}

function add(duration: { count: number; ns: number }, seconds: number): void {
  duration.count += 1;
  duration.ns += Math.round(seconds * 1e9);
}
