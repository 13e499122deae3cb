import type { PresentedCredential } from '../../services/cli/connection.js';
import type { Exit, Flags, Listening, ProcessRole } from '../../services/cli/local-process.js';
import type { PresetName } from '../../services/model/synthetic.js';
import type { Topics } from '../topics.js';

/** The name of the link's device on every host. */
export const linkDevice = 'eth0';

/** A process to start on a host. */
export interface ProcessRequest {
  role: ProcessRole;
  name: string;
  flags: Flags;
  environment: Record<string, string>;
}

/** How the host's client sends its rows to the host's own router. */
export interface BatchRequest {
  chunkTokens: number;
  combine: 'exact' | 'partial';
  /** Default: on. */
  norm?: boolean;
  batchId?: string;
  /** Default: as the cluster is configured. */
  feedback?: boolean;
}

/** The copies of a layer's experts: by expert, the names of the workers, in order. */
export interface CopiesByName {
  layer: number;
  workersOf: string[][];
}

export interface BatchOutcome {
  seconds: number;
  /** Share of the time that the client's event loop was busy. */
  eventLoopUtilization: number;
}

/** CPU seconds of a process since it started, by the names of its threads. */
export interface ProcessCpu {
  name: string;
  threads: Record<string, number>;
}

/** Bytes that left and reached a host over the link. */
export interface LinkBytes {
  sent: number;
  received: number;
}

/** What a host's first process does when it is asked. */
export interface HostCalls {
  /** Runs a program of the host to its end and returns its standard output; rejects with what it said on standard error. */
  execute(command: string, args: string[]): Promise<string>;
  start(process: ProcessRequest): Promise<Listening>;
  /**
   * Ends a process that was started; null: at once, otherwise with so many milliseconds to end in order once it has the signal
   * (default: SIGTERM). Tells how it ended.
   */
  stop(name: string, graceMs: number | null, signal?: NodeJS.Signals): Promise<Exit>;
  /** The last lines that a process wrote. */
  lines(name: string): Promise<string[]>;
  /** Connects the host's client to a router or coordinator, and waits until the cluster is ready. */
  connect(
    address: string,
    credential: PresentedCredential,
    routers: number,
    timeoutMs: number,
  ): Promise<void>;
  /** Makes the client's batch: rows of the model's width. */
  prepare(preset: PresetName, tokens: number): Promise<void>;
  /** Makes the client's batch for one layer: each of its tokens comes with the experts that its topic chooses. */
  prepareTopics(hidden: number, tokens: number, topics: Topics): Promise<void>;
  forward(batch: BatchRequest): Promise<BatchOutcome>;
  /** Brings the copies of experts to where they shall be, and waits until they are there. */
  rebalance(coordinator: string, token: string, target: CopiesByName[]): Promise<void>;
  /** The same, and returns the SHA-256 of all answers in order. */
  digest(batch: BatchRequest): Promise<string>;
  /** Metrics of a process, summed over labels. */
  metrics(name: string, token: string): Promise<[string, number][]>;
  cpu(): Promise<ProcessCpu[]>;
  linkBytes(): Promise<LinkBytes>;
}

export type HostRequest = { id: number; method: keyof HostCalls; args: unknown[] };
export type HostReply = { id: number; value?: unknown; error?: { code: string; message: string } };
