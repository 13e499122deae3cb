import type {
  ArenaStats,
  GateWeights,
  RoutedRows,
  RoutingBytes,
  RoutingFault,
  RoutingTable,
  RowGroup,
  Slab,
  SlabRange,
} from '../../native/index.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { Clock } from '../runtime/clock.js';
import type { RowOperations } from '../runtime/rows.js';
import { addWeighted, choose, normed, type Row, rowBytes, rowWords, weight } from './arithmetic.js';
import { type Choices, type GroupedSlots, groupSlots } from './group.js';

export interface RowCosts {
  /** Milliseconds of one operation, drawn anew for each. */
  operation: (rows: number) => number;
}

export interface SimulatedRowsOptions {
  bytesLimit: number;
  clock: Clock;
  costs: RowCosts;
}

interface Memory {
  bytes: Uint8Array;
  handles: number;
}

class SimulatedSlab implements Slab {
  released = false;

  constructor(
    private readonly arena: SimulatedRows,
    private readonly memory: Memory,
  ) {
    memory.handles += 1;
  }

  get byteLength(): number {
    return this.held().bytes.byteLength;
  }

  get capacity(): number {
    return this.byteLength;
  }

  share(): Slab {
    return new SimulatedSlab(this.arena, this.held());
  }

  view(): Uint8Array {
    return this.held().bytes;
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    this.memory.handles -= 1;
    if (this.memory.handles === 0) this.arena.free(this.memory.bytes.byteLength);
  }

  private held(): Memory {
    if (this.released) throw new SwitchyardError('SLAB_RELEASED', 'a slab was used after its release');
    return this.memory;
  }
}

/** A layer's gate: the rows decide by themselves. */
export class SimulatedGate implements GateWeights {
  readonly hidden = 4;

  constructor(
    readonly layer: number,
    readonly experts: number,
    readonly topK: number,
  ) {}

  release(): void {}
}

class SimulatedTable implements RoutingTable {
  readonly choices: Uint32Array;
  readonly weights: Float32Array;

  constructor(
    readonly tokens: number,
    readonly topK: number,
    readonly experts: Uint32Array,
    private readonly slab: Slab,
  ) {
    this.choices = new Uint32Array(tokens * experts.length * topK);
    this.weights = new Float32Array(tokens * experts.length * topK);
  }

  /** Of a token at a layer, an index. */
  at(token: number, layer: number): number {
    return (token * this.experts.length + layer) * this.topK;
  }

  release(): void {
    this.slab.release();
  }
}

class SimulatedRouted implements RoutedRows {
  readonly nonFinite = 0;
  readonly counts: Uint32Array;
  readonly groups: readonly RowGroup[];
  readonly seconds = { norm: 0, gate: 0, group: 0 };

  constructor(
    readonly rowCount: number,
    readonly choices: Choices,
    readonly normed: Slab | null,
    /** Null: other groups have taken its place. */
    readonly grouped: (GroupedSlots | null)[],
    experts: number,
  ) {
    this.groups = grouped.map((one) => one!.group);
    this.counts = new Uint32Array(experts);
    for (const expert of choices.experts) this.counts[expert]! += 1;
  }

  release(): void {}
}

/** The row operations of one simulated process, over identities of rows; see arithmetic.ts. */
export class SimulatedRows implements RowOperations {
  /** Slabs taken: whatever is done to rows needs one. */
  taken = 0;
  private slabs = 0;
  private bytesInUse = 0;
  private takenBytes = 0;

  constructor(private readonly options: SimulatedRowsOptions) {}

  allocateSlab = (byteLength: number): Slab => {
    const bytesLimit = this.options.bytesLimit - this.takenBytes;
    if (this.bytesInUse + byteLength > bytesLimit) {
      const text = `${byteLength} bytes beside ${this.bytesInUse} in use; allowed: ${bytesLimit}`;
      throw new SwitchyardError('RESOURCE_EXHAUSTED', text, { bytes: byteLength, allowed: bytesLimit });
    }
    this.taken += 1;
    this.slabs += 1;
    this.bytesInUse += byteLength;
    return new SimulatedSlab(this, { bytes: new Uint8Array(byteLength), handles: 0 });
  };

  /** So much of the limit is not to be had. */
  starve(bytes: number): void {
    this.takenBytes = bytes;
  }

  /** For slabs alone. */
  free(bytes: number): void {
    this.slabs -= 1;
    this.bytesInUse -= bytes;
  }

  endView = (): void => {};

  arenaStats = (): ArenaStats => ({
    slabs: this.slabs,
    bytesInUse: this.bytesInUse,
    bytesCached: 0,
    bytesLimit: this.options.bytesLimit,
  });

  copyIn = async (source: Uint8Array | SlabRange, target: Slab, byteOffset: number): Promise<void> => {
    const bytes =
      source instanceof Uint8Array
        ? source
        : source.slab.view().subarray(source.byteOffset, source.byteOffset + source.byteLength);
    target.view().set(bytes, byteOffset);
  };

  copyOut = async (source: Slab, byteOffset: number, target: Uint8Array): Promise<void> => {
    target.set(source.view().subarray(byteOffset, byteOffset + target.byteLength));
  };

  findNonFinite = async (): Promise<number | null> => null;

  createRoutingTable = ({ tokens, topK, experts }: Parameters<RowOperations['createRoutingTable']>[0]) =>
    new SimulatedTable(tokens, topK, experts, this.allocateSlab(tokens * experts.length * topK * 8));

  writeRouting = async ({
    table,
    first,
    experts,
    weights,
  }: { table: RoutingTable; first: number } & RoutingBytes): Promise<RoutingFault | null> => {
    const { choices, weights: held, experts: counts, topK } = table as SimulatedTable;
    const [given, by] = [words(experts), new Float32Array(words(weights).buffer)];
    const strange = given.findIndex(
      (value, index) => value >= counts[Math.floor(index / topK) % counts.length]!,
    );
    if (strange >= 0) return { field: 'experts', index: strange, value: given[strange]! };
    const index = by.findIndex((value) => !Number.isFinite(value));
    if (index >= 0) return { field: 'weights', index, value: by[index]! };
    const at = (table as SimulatedTable).at(first, 0);
    choices.set(given, at);
    held.set(by, at);
    return null;
  };

  readRouting = async ({
    table,
    first,
    experts,
    weights,
  }: { table: RoutingTable; first: number } & RoutingBytes): Promise<void> => {
    const { choices, weights: held } = table as SimulatedTable;
    const at = (table as SimulatedTable).at(first, 0);
    const end = at + experts.byteLength / 4;
    experts.set(new Uint8Array(choices.slice(at, end).buffer));
    weights.set(new Uint8Array(held.slice(at, end).buffer));
  };

  routeRows = async (options: Parameters<RowOperations['routeRows']>[0]): Promise<RoutedRows> => {
    const { rows, rowCount, norm, gate, table } = options;
    const routing = table?.routing as SimulatedTable | undefined;
    const weights = gate?.weights as SimulatedGate | undefined;
    const topK = weights?.topK ?? routing!.topK;
    const input = new RowsOf(rows);
    const output = norm === null ? null : new RowsOf(this.allocateSlab(rowCount * rowBytes));
    const chosen = new Uint32Array(rowCount * topK);
    const by = new Float32Array(rowCount * topK);
    for (let token = 0; token < rowCount; token += 1) {
      const row = output === null ? input.get(token) : normed(input.get(token));
      output?.set(token, row);
      const at = routing?.at(token, table!.layer) ?? 0;
      if (weights === undefined || gate!.given) {
        chosen.set(routing!.choices.subarray(at, at + topK), token * topK);
        by.set(routing!.weights.subarray(at, at + topK), token * topK);
        continue;
      }
      const { layer, experts } = weights;
      const choice = choose(row, layer, { experts, topK, bias: gate!.bias });
      chosen.set(choice, token * topK);
      for (const [j, expert] of choice.entries()) by[token * topK + j] = weight(layer, expert, row);
      routing?.choices.set(choice, at);
      routing?.weights.set(by.subarray(token * topK, (token + 1) * topK), at);
    }
    const choices = { experts: chosen, weights: by, topK, weighted: options.weighted };
    const grouped = groupSlots(choices, options, chosen.keys());
    const experts = weights?.experts ?? routing!.experts[table!.layer]!;
    const routed = new SimulatedRouted(rowCount, choices, output?.slab ?? null, grouped, experts);
    await this.takeTime(rowCount);
    return routed;
  };

  regroupRows = async ({
    routed,
    group,
    ...targets
  }: Parameters<RowOperations['regroupRows']>[0]): Promise<{ first: number; groups: RowGroup[] }> => {
    const { choices, grouped } = routed as SimulatedRouted;
    const replaced = grouped[group] ?? null;
    if (replaced === null)
      throw invalidArgument('group', group, 'one in whose place there are no others yet');
    grouped[group] = null;
    await this.takeTime(replaced.group.rowCount);
    const made = groupSlots(choices, targets, replaced.slots.toSorted());
    const first = grouped.length;
    grouped.push(...made);
    return { first, groups: made.map((one) => one.group) };
  };

  packRows = async ({ rows, indices }: Parameters<RowOperations['packRows']>[0]): Promise<Slab> => {
    const [input, packed] = [new RowsOf(rows), new RowsOf(this.allocateSlab(indices.length * rowBytes))];
    for (const [to, from] of indices.entries()) packed.set(to, input.get(from));
    return packed.slab;
  };

  combineRows = async ({
    routed,
    mode,
    weighted,
    residual,
    parts,
  }: Parameters<RowOperations['combineRows']>[0]): Promise<{ rows: Slab; nonFinite: number }> => {
    const { rowCount, choices, grouped } = routed as SimulatedRouted;
    const { topK, weights } = choices;
    const filled = new Uint8Array(rowCount * topK);
    const sums = Array.from({ length: rowCount }, (_, token) =>
      residual === null ? { a: 0, b: 0 } : new RowsOf(residual).get(token),
    );
    for (const [index, one] of grouped.entries()) {
      if ((parts[index] ?? null) === null ? one !== null : one === null)
        throw new SwitchyardError('DATA_LOSS', `part ${index} is missing, or of a group that others replace`);
      if (one === null) continue;
      const { group, slots } = one;
      for (const slot of slots) {
        if (filled[slot] === 1) throw new SwitchyardError('DATA_LOSS', `slot ${slot} is given twice`);
        filled[slot] = 1;
      }
      const results = new RowsOf(parts[index]!);
      if (mode === 'exact')
        for (const [entry, slot] of slots.entries())
          addWeighted(sums[Math.floor(slot / topK)]!, weighted ? weights[slot]! : 1, results.get(entry));
      else for (const [row, token] of group.tokens.entries()) addWeighted(sums[token]!, 1, results.get(row));
    }
    const missing = filled.indexOf(0);
    if (missing >= 0) throw new SwitchyardError('DATA_LOSS', `slot ${missing} is missing`);
    const output = new RowsOf(this.allocateSlab(rowCount * rowBytes));
    for (const [token, sum] of sums.entries()) output.set(token, sum);
    await this.takeTime(rowCount);
    return { rows: output.slab, nonFinite: 0 };
  };

  reduceRows = async ({
    rows,
    rowIndices,
    weights,
    outputRows,
  }: Parameters<RowOperations['reduceRows']>[0]): Promise<Slab> => {
    const sums = Array.from({ length: outputRows }, () => ({ a: 0, b: 0 }));
    const results = new RowsOf(rows);
    for (const [entry, row] of rowIndices.entries())
      addWeighted(sums[row]!, weights[entry]!, results.get(entry));
    const output = new RowsOf(this.allocateSlab(outputRows * rowBytes));
    for (const [row, sum] of sums.entries()) output.set(row, sum);
    await this.takeTime(outputRows);
    return output.slab;
  };

  private takeTime(rows: number): Promise<void> {
    const { clock, costs } = this.options;
    return new Promise((resolve) => clock.after(costs.operation(rows), resolve));
  }
}

/** The rows of a slab. */
export class RowsOf {
  private readonly words: Uint32Array;

  constructor(readonly slab: Slab) {
    const { buffer, byteOffset, byteLength } = slab.view();
    this.words = new Uint32Array(buffer, byteOffset, Math.floor(byteLength / 4));
  }

  get(index: number): Row {
    return { a: this.words[index * rowWords]!, b: this.words[index * rowWords + 1]! };
  }

  set(index: number, { a, b }: Row): void {
    this.words[index * rowWords] = a;
    this.words[index * rowWords + 1] = b;
  }
}

function words(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(Uint8Array.from(bytes).buffer);
}
