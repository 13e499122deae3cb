import type { ExpertId } from '../common/layer-experts.js';
import type { LayerSpec } from './spec.js';

/** As far as the order knows a layer. */
type OrderedLayer = Pick<LayerSpec, 'layer' | 'experts'> & Partial<Pick<LayerSpec, 'shared'>>;

/** Numbers the experts of a model from 0, layer after layer, so that typed arrays can tell of each of them. */
export class ExpertOrder {
  /** Of all layers. */
  readonly total: number;
  private readonly byLayer = new Map<number, { first: number; experts: number }>();

  constructor(readonly layers: readonly OrderedLayer[]) {
    let first = 0;
    for (const { layer, experts } of layers) {
      this.byLayer.set(layer, { first, experts });
      first += experts;
    }
    this.total = first;
  }

  /** The numbers of experts that every token goes to. */
  shared(): Set<number> {
    const numbers = this.layers.flatMap(({ layer, experts, shared = [] }) =>
      shared.map((_, part) => this.indexOf({ layer, expert: experts - shared.length + part })),
    );
    return new Set(numbers);
  }

  /** Experts of a layer; 0 if the model has no such layer. */
  experts(layer: number): number {
    return this.byLayer.get(layer)?.experts ?? 0;
  }

  *numbersOf(experts: Iterable<ExpertId>): Generator<number> {
    for (const expert of experts) yield this.indexOf(expert);
  }

  /** The number of an expert; -1 if the model has no such expert. */
  indexOf({ layer, expert }: ExpertId): number {
    const place = this.byLayer.get(layer);
    return place !== undefined && expert < place.experts ? place.first + expert : -1;
  }

  /** The expert of a number below `total`. */
  at(index: number): ExpertId {
    let expert = index;
    for (const { layer, experts } of this.layers) {
      if (expert < experts) return { layer, expert };
      expert -= experts;
    }
    throw new RangeError(`expert ${index} of ${this.total}`);
  }

  /** The part of an array of all experts that is of one layer, as a view. */
  sliceOf(layer: number, all: Float64Array): Float64Array {
    const { first, experts } = this.byLayer.get(layer)!;
    return all.subarray(first, first + experts);
  }

  /** The numbers of a layer's experts: from `first` on, so many. */
  rangeOf(layer: number): { first: number; experts: number } {
    return this.byLayer.get(layer)!;
  }
}
