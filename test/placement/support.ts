import fc from 'fast-check';
import type { Copies, PlanInput, PlanLayer, PlanWorker } from '../../services/placement/input.js';
import { usualLimits } from '../../services/placement/loading.js';

/** What a case is drawn from. */
export interface Bounds {
  workers: number;
  hosts: number;
  experts: number;
  layers: number;
  /** Of the memory that one copy of every expert needs, what there is beyond it: 0 is none. */
  spare?: number;
  copiesMin?: number;
  /** Links between hosts are to be spared. */
  traffic?: boolean;
}

const range = (count: number) => [...Array(count).keys()];
const loads = (experts: number) =>
  fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 1_000 }), fc.constant(5_000)), {
    minLength: experts,
    maxLength: experts,
  });

/** Clusters that have memory for every expert, in which some experts are held by nobody and some by several workers. */
export function inputs(bounds: Bounds): fc.Arbitrary<PlanInput> {
  const { copiesMin = 1 } = bounds;
  return fc
    .record({
      workers: fc.integer({ min: copiesMin, max: bounds.workers }),
      experts: fc.integer({ min: 1, max: bounds.experts }),
      layers: fc.integer({ min: 1, max: bounds.layers }),
    })
    .chain(({ workers, experts, layers }) => {
      const ofWorkers = <T>(one: fc.Arbitrary<T>) =>
        fc.array(one, { minLength: workers, maxLength: workers });
      const holders = fc.subarray(range(workers), { maxLength: Math.min(3, workers) });
      return fc.record({
        hosts: ofWorkers(fc.nat({ max: bounds.hosts - 1 })),
        rates: ofWorkers(fc.constantFrom(1_000, 1_000, 500, 2_000)),
        spare: ofWorkers(fc.nat({ max: bounds.spare ?? 4 })),
        loads: fc.array(loads(experts), { minLength: layers, maxLength: layers }),
        present: fc.array(fc.array(holders, { minLength: experts, maxLength: experts }), {
          minLength: layers,
          maxLength: layers,
        }),
        replicaSlots: fc.option(fc.nat({ max: experts })),
        horizonSeconds: fc.constantFrom(1, 60, 3_600),
        limits: fc.constantFrom(usualLimits, { loads: 1, bytesPerSecond: 20 }),
        crossingSeconds: bounds.traffic ? fc.constantFrom(1e-4, 1e-3, 1e-2) : fc.constant(0),
        choices: fc.array(fc.shuffledSubarray(range(experts), { minLength: Math.min(2, experts) }), {
          minLength: 1,
          maxLength: 20,
        }),
      });
    })
    .map(({ hosts, rates, spare, loads, present, choices, ...drawn }) => {
      const topK = Math.min(2, loads[0]!.length);
      const even = Math.ceil((copiesMin * loads.length * loads[0]!.length) / hosts.length);
      const workers = hosts.map(
        (host, index): PlanWorker => ({
          name: `worker-${index}`,
          host: `host-${host}`,
          memoryBytes: (even + spare[index]!) * 100,
          rowsPerSecond: rates[index]!,
          loadBytesPerSecond: 1_000,
        }),
      );
      const layers = loads.map(
        (rows, layer): PlanLayer => ({
          layer: 2 * layer,
          expertBytes: 100,
          loads: Float64Array.from(rows),
          choices: bounds.traffic ? Uint32Array.from(choices.flatMap((token) => token.slice(0, topK))) : null,
        }),
      );
      return { workers, layers, topK, present, copiesMin, ...drawn };
    });
}

/** Clusters in which the present placement can stay: every expert has its copies, and every worker memory for what it holds. */
export function standing(bounds: Bounds): fc.Arbitrary<PlanInput> {
  return inputs(bounds).map((input) => {
    const { length } = input.workers;
    const present = input.present.map((experts) =>
      experts.map((drawn, expert) => {
        const holders = new Set(drawn);
        for (let next = expert; holders.size < input.copiesMin; next += 1) holders.add(next % length);
        return [...holders].sort((a, b) => a - b);
      }),
    );
    const workers = input.workers.map((worker, index) => {
      const held = present.flat().filter((holders) => holders.includes(index)).length;
      return { ...worker, memoryBytes: Math.max(worker.memoryBytes, held * 100) };
    });
    return { ...input, workers, present };
  });
}

/** The least time of the busiest worker, found another way: no set of experts is done before its holders together could do it. */
export function exactPeak(rows: Float64Array, rates: readonly number[], holders: Copies[number]): number {
  let peak = 0;
  for (let set = 1; set < 2 ** rows.length; set += 1) {
    const experts = range(rows.length).filter((expert) => (set >> expert) & 1);
    const workers = new Set(experts.flatMap((expert) => holders[expert]!));
    const rate = [...workers].reduce((sum, worker) => sum + rates[worker]!, 0);
    const load = experts.reduce((sum, expert) => sum + rows[expert]!, 0);
    if (load > 0) peak = Math.max(peak, load / rate);
  }
  return peak;
}
