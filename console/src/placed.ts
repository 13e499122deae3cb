import type { ConsoleState, PackedLoads } from '../../services/coordinator/console/wire.js';
import { byName } from './format.js';

/** A line of the heat maps. */
export interface WorkerRow {
  slot: number;
  name: string;
  host: string;
  state: string;
  mark: string;
}

/** The copies of a layer, unpacked. */
export interface LayerCopies {
  expert: Uint16Array;
  slot: Uint16Array;
  state: Uint8Array;
  /** By expert: copies that serve. */
  serving: Uint16Array;
  /** By expert: rows a second; by slot: what its copies get of them, if copies share evenly. */
  rates: Float64Array;
  bySlot: Float64Array;
  /** Rows a second of an expert on average, and of a worker. */
  expertMean: number;
  workerMean: number;
}

const u16 = (base64: string) => {
  const text = atob(base64);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
};

function unpack(copies: string, loads: PackedLoads | undefined, experts: number, slots: number): LayerCopies {
  const triples = u16(copies);
  const total = triples.length / 3;
  const layer: LayerCopies = {
    expert: new Uint16Array(total),
    slot: new Uint16Array(total),
    state: new Uint8Array(total),
    serving: new Uint16Array(experts),
    rates: new Float64Array(experts),
    bySlot: new Float64Array(slots),
    expertMean: 0,
    workerMean: 0,
  };
  for (let copy = 0; copy < total; copy += 1) {
    layer.expert[copy] = triples[copy * 3]!;
    layer.slot[copy] = triples[copy * 3 + 1]!;
    layer.state[copy] = triples[copy * 3 + 2]!;
    if (layer.state[copy] === 1) layer.serving[layer.expert[copy]!]! += 1;
  }
  if (loads !== undefined) {
    const shares = u16(loads.rates);
    let sum = 0;
    for (let expert = 0; expert < experts; expert += 1) {
      layer.rates[expert] = (shares[expert]! * loads.peak) / 65_535;
      sum += layer.rates[expert]!;
    }
    layer.expertMean = sum / experts;
    const used = new Set<number>();
    for (let copy = 0; copy < total; copy += 1) {
      if (layer.state[copy] !== 1) continue;
      const expert = layer.expert[copy]!;
      layer.bySlot[layer.slot[copy]!]! += layer.rates[expert]! / layer.serving[expert]!;
      used.add(layer.slot[copy]!);
    }
    layer.workerMean = used.size === 0 ? 0 : sum / used.size;
  }
  return layer;
}

const kept = new Map<
  number,
  { copies: string; loads: PackedLoads | undefined; slots: number; layer: LayerCopies }
>();

/** A layer's copies and loads, unpacked once as long as they are the same. */
export function layerOf(state: ConsoleState, layer: number): LayerCopies | null {
  const copies = state.copies[layer];
  const { model, workers } = state.cluster.now!;
  const experts = model.layers.find((one) => one.layer === layer)?.experts;
  if (copies === undefined || experts === undefined) return null;
  const loads = state.loads[layer];
  const known = kept.get(layer);
  if (known?.copies === copies && known.loads === loads && known.slots === workers.length) return known.layer;
  const unpacked = unpack(copies, loads, experts, workers.length);
  kept.set(layer, { copies, loads, slots: workers.length, layer: unpacked });
  return unpacked;
}

/** The workers that are there or have copies, host by host. */
export function workerRows(state: ConsoleState): WorkerRow[] {
  const rows = state.cluster.now!.workers.map((name, slot) => {
    const node = state.nodes[`WORKER/${name}`];
    return { slot, name, host: node?.host ?? '', state: node?.state ?? 'DEAD', mark: node?.mark ?? '' };
  });
  return rows
    .filter(({ name }) => state.nodes[`WORKER/${name}`] !== undefined)
    .sort((a, b) => byName(a.host, b.host) || byName(a.name, b.name));
}
