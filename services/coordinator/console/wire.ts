/** What the coordinator tells the console's page, which is built of this file too: it imports nothing. */

/** A message of the feed: of each part what has changed, by key; null is gone. The first message of a stream has everything. */
export type ConsoleChange = {
  [Part in keyof ConsoleState]?: Record<string, ConsoleState[Part][string] | null>;
};

/** The parts of the state. */
export interface ConsoleState {
  /** Under `now`. */
  cluster: Record<string, ClusterSummary>;
  /** By role and name. */
  nodes: Record<string, ConsoleNode>;
  /** By router and worker; the last two of what has an open link. */
  links: Record<string, ConsoleLink>;
  traffic: Record<string, LinkRates>;
  /** By router and id. */
  batches: Record<string, ConsoleBatch>;
  /** By layer. */
  copies: Record<string, PackedCopies>;
  loads: Record<string, PackedLoads>;
  /** By second, and by number: the latest. */
  samples: Record<string, Sample>;
  events: Record<string, ConsoleEvent>;
}

export interface ClusterSummary {
  coordinator: string;
  version: string;
  /** Whether this coordinator leads; if not, there is nothing else to tell. */
  leading: boolean;
  /** Why it does not lead, or why the cluster is not ready; empty: all is well. */
  reason: string;
  /** Where the coordinator that leads serves HTTP; empty: this one leads, or that is not known. */
  leaderUrl: string;
  ready: boolean;
  term: number;
  epoch: number;
  model: { name: string; layers: { layer: number; experts: number }[] };
  /** By slot: the names that copies refer to. */
  workers: string[];
  copies: Record<CopyStateName, number>;
  /** Experts that nobody serves. */
  missing: number;
  /** The last plan for the present load; null: there is none. */
  plan: { copiesToLoad: number; secondsToLoad: number; netGainSeconds: number } | null;
}

export interface ConsoleNode {
  role: 'WORKER' | 'ROUTER';
  name: string;
  host: string;
  address: string;
  device: string;
  pid: number;
  state: string;
  reason: string;
  mark: string;
  loading: number;
  serving: number;
  draining: number;
  memoryBytes: number;
  rssBytes: number;
  /** 0 to 1. */
  eventLoop: number;
  rowsQueued: number;
  /** Of a worker: computed; of a router: sent to experts. */
  rowsPerSecond: number;
}

export interface ConsoleLink {
  router: string;
  worker: string;
  transport: string;
  lanes: string;
  reason: string;
}

/** Bytes a second of rows, to the worker and back. */
export interface LinkRates {
  sent: number;
  returned: number;
}

export interface ConsoleBatch {
  router: string;
  batch: string;
  tokens: number;
  answered: number;
  seconds: number;
}

export const copyStates = ['loading', 'serving', 'draining', 'planned'] as const;
export type CopyStateName = (typeof copyStates)[number];

/** Base64 of little-endian u16 triples: expert, slot of the worker, number of the state. */
export type PackedCopies = string;

/** Rows a second of a layer's experts: base64 of little-endian u16 each, of which 65535 stands for `peak`. */
export interface PackedLoads {
  peak: number;
  rates: string;
}

export interface Sample {
  /** Milliseconds since 1970. */
  at: number;
  tokensPerSecond: number;
  rowsPerSecond: number;
  bytesPerSecond: number;
  /** Mean/max over workers of the rows of late: of all layers on average, and of the least even one. Null: no rows. */
  balancedness: number | null;
  balancednessMin: number | null;
  batches: number;
  /** Share of this time in which batches were under way and no row moved. */
  paused: number;
}

export interface ConsoleEvent {
  at: number;
  kind:
    | 'joined'
    | 'left'
    | 'died'
    | 'drains'
    | 'marked'
    | 'ready'
    | 'not-ready'
    | 'moves'
    | 'placed'
    | 'term';
  text: string;
}

/** What a page may do. */
export interface Session {
  view: boolean;
  operate: boolean;
  /** Whether there are tokens to sign in with. */
  tokens: boolean;
}

/** How an operation went. */
export type OperationAnswer = { text: string } | { error: string };
