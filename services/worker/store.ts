import type { Expert, ExpertBackend } from '../../native/index.js';
import { asSwitchyardError, overLimit, SwitchyardError } from '../common/errors.js';
import type { LoadProgressInput } from '../common/generated/switchyard/v1/LoadProgress.js';
import type { ExpertId } from '../common/layer-experts.js';
import { Deferred } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { type Bound, describeMemory, type MemoryLeft } from '../common/machine.js';
import { expertBytesOn } from '../model/device-bytes.js';
import type { FiniteWeights } from '../model/finite.js';
import type { Model } from '../model/load.js';
import type { Clock } from '../runtime/clock.js';
import type { WeightBound } from './config.js';
import type { Executor } from './executor.js';

/** A model that is open here, and what becomes of its weights that are not finite. */
export interface OpenedModel {
  model: Pick<Model, 'spec' | 'expertBytes' | 'expert' | 'close'>;
  finite: Pick<FiniteWeights, 'checkExpert'>;
}

export interface StoreOptions extends OpenedModel {
  /** This worker's name. */
  worker: string;
  backend: ExpertBackend;
  executor: Executor;
  /** What the weights of all experts may take. */
  weights: WeightBound;
  /** What is left of the memory that bounds the process; null: nothing tells. */
  memoryLeft: () => (MemoryLeft & { bound: Bound }) | null;
  /** Called when an expert was loaded. */
  onChange: () => void;
  log: Logger;
  clock: Clock;
}

/** Experts loaded at a time: one is read from the disk while another is brought into the backend's order. */
const loadsMax = 2;
/** What is loaded aside takes this share of the time in which token batches are computed. */
const asideShare = 0.03;
/** A worker that computed nothing for so long has nothing to compute. */
const idleMs = 50;
/** What stays free of the memory of a control group while experts are loaded. */
const roomBytesMin = 48 * 1024 * 1024;

const idOf = ({ layer, expert }: ExpertId) => `${layer}/${expert}`;

/** Holds the experts that the coordinator assigned: loads what is missing, lets go of what went elsewhere. */
export class ExpertStore {
  private wanted = new Map<string, ExpertId>();
  private readonly held = new Map<string, { id: ExpertId; bytes: number }>();
  private readonly loading = new Set<string>();
  /** Wanted, neither held nor loading; the next one comes last. */
  private missing: ExpertId[] = [];
  private readonly failure = new Deferred<SwitchyardError>();
  private startedMs = 0;
  /** Computing comes before loading. */
  private aside = false;
  /** Ends the pause after a load. */
  private rest: Deferred<void> | null = null;
  /** Of this loading: what is loaded, and the time in which there was a load under way. */
  private bytesLoaded = 0;
  private loadingMs = 0;
  private loadingSinceMs = 0;
  /** Of the last loading that was done. */
  private bytesPerSecond = 0;
  private bytesHeld = 0;
  private closed = false;
  /** Counts changes of what is held. */
  changes = 0;

  /** What experts may take, beside what they share. */
  private get roomBytes(): number {
    return this.options.weights.bytes - this.options.model.spec.latentBytes;
  }

  /** Of one expert, on the device. */
  private readonly expertBytes: number;

  constructor(private readonly options: StoreOptions) {
    this.expertBytes = expertBytesOn(options.backend.description.kind, options.model.spec);
  }

  /** Resolves when an expert cannot be loaded. */
  get failed(): Promise<SwitchyardError> {
    return this.failure.promise;
  }

  get bytes(): number {
    return this.bytesHeld;
  }

  ready(): ExpertId[] {
    return [...this.held.values()].map(({ id }) => id);
  }

  /** The experts to hold from now on, loaded `aside` of computing or as fast as can be. The same assignment again changes nothing. */
  assign(experts: readonly ExpertId[], aside = false): void {
    const { executor, weights, worker, log } = this.options;
    this.wanted = new Map(experts.map((id) => [idOf(id), id]));
    const needed = this.wanted.size * this.expertBytes;
    if (needed > this.roomBytes) {
      this.failure.resolve(
        overLimit(
          'RESOURCE_EXHAUSTED',
          `bytes of ${this.wanted.size} experts assigned`,
          needed,
          this.roomBytes,
          {
            setting: weights.by,
            node: `worker ${worker}`,
          },
        ),
      );
      return;
    }
    for (const [key, { id, bytes }] of this.held) {
      if (this.wanted.has(key)) continue;
      executor.remove(id.layer, id.expert);
      this.held.delete(key);
      this.bytesHeld -= bytes;
      this.changes += 1;
      log.info({ event: 'expert-dropped', layer: id.layer, expert: id.expert });
    }
    this.startedMs = this.options.clock.now();
    this.loadingSinceMs = this.startedMs;
    this.bytesLoaded = 0;
    this.loadingMs = 0;
    this.aside = aside;
    if (!aside) this.rest?.resolve();
    const isHere = (key: string) => this.held.has(key) || this.loading.has(key);
    this.missing = experts.filter((id) => !isHere(idOf(id))).reverse();
    this.pump();
  }

  progress(): LoadProgressInput {
    const bytesTotal = this.wanted.size * this.expertBytes;
    const rate = this.held.size < this.wanted.size ? this.rate() || this.bytesPerSecond : this.bytesPerSecond;
    return {
      expertsLoaded: this.held.size,
      expertsTotal: this.wanted.size,
      bytesLoaded: this.bytesHeld,
      bytesTotal,
      bytesPerSecond: rate,
      etaSeconds: rate > 0 ? (bytesTotal - this.bytesHeld) / rate : 0,
    };
  }

  /** Loads no more. */
  close(): void {
    this.closed = true;
  }

  private pump(): void {
    const { clock } = this.options;
    while (!this.closed && this.rest === null && this.loading.size < (this.aside ? 1 : loadsMax)) {
      // What is being loaded and no longer wanted takes memory until it is released.
      if ((this.held.size + this.loading.size + 1) * this.expertBytes > this.roomBytes) return;
      const id = this.missing.pop();
      if (id === undefined) return;
      if (this.loading.size === 0) this.loadingSinceMs = clock.now();
      void this.load(idOf(id), id);
    }
  }

  private async load(key: string, id: ExpertId): Promise<void> {
    const { executor, onChange, log } = this.options;
    this.loading.add(key);
    try {
      this.checkRoom();
      const expert = await this.loadChecked(id);
      if (this.wanted.has(key) && !this.closed) {
        executor.add(id.layer, id.expert, expert);
        this.held.set(key, { id, bytes: this.expertBytes });
        this.bytesHeld += this.expertBytes;
        this.bytesLoaded += this.expertBytes;
        this.changes += 1;
        onChange();
      } else {
        expert.release();
      }
    } catch (error) {
      this.closed = true;
      this.failure.resolve(this.named(error, id));
      return;
    } finally {
      this.loading.delete(key);
    }
    const { clock } = this.options;
    const tookMs = clock.now() - this.loadingSinceMs;
    if (this.loading.size === 0) this.loadingMs += tookMs;
    if (this.held.size === this.wanted.size && this.loading.size === 0) {
      this.bytesPerSecond = this.rate() || this.bytesPerSecond;
      const seconds = (clock.now() - this.startedMs) / 1000;
      log.info({ event: 'experts-loaded', experts: this.held.size, bytes: this.bytesHeld, seconds });
    }
    if (this.aside && this.missing.length > 0) await this.pause(tookMs * (1 / asideShare - 1));
    this.pump();
  }

  /** Leaves the time to token batches; ends when there were none for a while. */
  private async pause(ms: number): Promise<void> {
    const { clock, executor } = this.options;
    const endMs = clock.now() + ms;
    const rest = new Deferred<void>();
    this.rest = rest;
    let done = -1;
    const look = () => {
      const isIdle = executor.idle && executor.done === done;
      done = executor.done;
      const leftMs = endMs - clock.now();
      if (isIdle || leftMs <= 0 || this.closed) rest.resolve();
      else timer = clock.after(Math.min(idleMs, leftMs), look).unref();
    };
    let timer = clock.soon(look);
    await rest.promise;
    timer.cancel();
    this.rest = null;
  }

  /** Bytes a second while there were loads under way; 0: there were none. */
  private rate(): number {
    const { loading } = this;
    const nowMs = loading.size > 0 ? this.options.clock.now() - this.loadingSinceMs : 0;
    const seconds = (this.loadingMs + nowMs) / 1000;
    return seconds > 0 ? this.bytesLoaded / seconds : 0;
  }

  private async loadChecked({ layer, expert: number }: ExpertId): Promise<Expert> {
    const { model, backend, finite } = this.options;
    const source = model.expert(layer, number);
    const expert = await backend.load(source);
    try {
      finite.checkExpert(source, expert.nonFinite);
      return expert;
    } catch (error) {
      expert.release();
      throw error;
    }
  }

  /** Others in the control group take of its memory too: whoever would go beyond it ends with an error, and not by the system. */
  private checkRoom(): void {
    const { expertBytes } = this.options.model;
    const left = this.options.memoryLeft();
    if (left === null) return;
    // Each of them may be loading as much at this moment.
    const needed = left.processes * loadsMax * expertBytes + roomBytesMin;
    if (left.bytes >= needed) return;
    throw new SwitchyardError(
      'RESOURCE_EXHAUSTED',
      `it takes ${expertBytes} bytes, and ${needed} must be left while ${left.processes} processes load; left: ${left.bytes} of ${describeMemory(left.bound)}`,
      { bytes: needed, allowed: left.bytes },
    );
  }

  private named(error: unknown, { layer, expert }: ExpertId): SwitchyardError {
    const { code, message, details } = asSwitchyardError(error);
    const text = `layer ${layer} expert ${expert} cannot be loaded: ${message}`;
    return new SwitchyardError(code, text, { ...details, layer, expert }, { cause: error });
  }
}
