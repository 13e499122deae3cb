import { randomInt, randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { CallOptions, Metadata } from '@grpc/grpc-js';
import { parseAddress } from '../common/address.js';
import { invalidArgument, SwitchyardError } from '../common/errors.js';
import type { ClusterDescription } from '../common/generated/switchyard/v1/ClusterDescription.js';
import type { ForwardOptionsInput } from '../common/generated/switchyard/v1/ForwardOptions.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import type { ModelDescription } from '../common/generated/switchyard/v1/ModelDescription.js';
import type { NodeDescription } from '../common/generated/switchyard/v1/NodeDescription.js';
import { connect } from '../common/grpc-channel.js';
import { sleep } from '../common/lifecycle.js';
import { clients } from '../common/protocol.js';
import { usualChunkTokens } from '../transport/chunk-size.js';
import { type TransportChoice, transportChoices } from '../transport/link.js';
import { ForwardCall, type ForwardPlan } from './forward.js';
import { RouterStream, routerError } from './router-stream.js';
import { isReader, type RowsReader, rowsInFile, rowsInMemory, StreamedRows } from './source.js';

export interface ConnectOptions {
  /** Bearer token of the cluster; null: none. */
  token?: string | null;
  /** How long a description may take. */
  timeoutMs?: number;
  /**
   * How rows travel to and from routers. `auto`, the default: UCX where both ends have it and reach each other by it,
   * otherwise gRPC. `ucx`: UCX, or batches end with LINK_LOST. `grpc`: gRPC.
   */
  transport?: TransportChoice;
}

/**
 * Rows in memory, the path of a file (raw BF16 or .safetensors), rows that can be read anywhere, or a stream of
 * bytes (then `sequences` and `length` are needed).
 */
export type ForwardInput = Uint8Array | string | RowsReader | AsyncIterable<Uint8Array>;

export interface ForwardOptions {
  batchId?: string;
  /** Which tensor of a .safetensors input. Default: its only one. */
  tensor?: string;
  /** Default: as the input's shape says, otherwise one sequence of all tokens. A batch is split over routers by sequences. */
  sequences?: number;
  /** Tokens per sequence. Default: the input's tokens / sequences. */
  length?: number;
  /** Model layers, both included. Default: all. */
  layers?: { first: number; last: number };
  /** RMSNorm before the gate. Default: the cluster's, which is on. */
  norm?: boolean;
  /** Add the layer's input to its output. Default: the cluster's, which is on. */
  residual?: boolean;
  combine?: 'exact' | 'partial';
  /** Selection bias from the load feedback loop. Default: as the cluster is configured. */
  feedback?: boolean;
  /** The experts and weights of the tokens asked for, instead of gating; reads ascend within a router's share. */
  given?: NonNullable<ForwardPlan['given']>;
  returnRouting?: boolean;
  /** End the batch at the first token that holds NaN or infinity, instead of counting them. */
  refuseNonFinite?: boolean;
  /** Tokens per chunk of the routers' pipeline. Default: the routers' choice. */
  chunkTokens?: number;
  deadlineMs?: number;
  /** Default: the connection's. */
  transport?: TransportChoice;
  signal?: AbortSignal;
  /** Use only this many routers, those on the client's own host first. Default: all that are ready. */
  routers?: number;
}

/** Answers may come as whole chunks of a router, whatever it was told to make of them. */
const messageBytesMax = 128 * 1024 * 1024;
/** The router's own deadline comes first: its error says where the time went. */
const deadlineGraceMs = 2_000;
const readyPollMs = 50;

const toggle = (value: boolean | undefined) => (value === undefined ? 'DEFAULT' : value ? 'ON' : 'OFF');

/** A connection to a cluster, by the address of its coordinator or of any router. Errors are SwitchyardErrors. */
export class SwitchyardClient {
  private readonly connections = new Map<string, InferenceClient>();
  private readonly unreachableByUcx = new Map<string, number>();
  private model: ModelDescription | null = null;
  private turn = randomInt(1 << 20);

  private constructor(
    readonly address: string,
    private readonly token: string | null,
    private readonly timeoutMs: number,
    private readonly transport: TransportChoice,
  ) {}

  /**
   * Connects. Throws INVALID_ARGUMENT if `address` is not host:port, NOT_READY if nothing answers, UNAUTHENTICATED for a
   * wrong token; the cluster may still be loading.
   */
  static async connect(
    address: string,
    { token = null, timeoutMs = 5_000, transport = 'auto' }: ConnectOptions = {},
  ): Promise<SwitchyardClient> {
    checkTransport(transport);
    parseAddress(address);
    const client = new SwitchyardClient(address, token, timeoutMs, transport);
    try {
      await client.describeCluster();
    } catch (error) {
      if (!isLoading(error)) {
        client.close();
        throw error;
      }
    }
    return client;
  }

  /** Members, placement and readiness, as of now. */
  async describeCluster(): Promise<ClusterDescription> {
    return this.describe<ClusterDescription>((inference, options, done) =>
      inference.describeCluster({}, options, done),
    );
  }

  async describeModel(): Promise<ModelDescription> {
    return this.describe<ModelDescription>((inference, options, done) =>
      inference.describeModel({}, options, done),
    );
  }

  /**
   * Resolves when every expert is on a live worker and `routers` routers are ready; throws NOT_READY with the reason
   * after `timeoutMs`.
   */
  async waitUntilReady(timeoutMs: number, routers = 1, signal?: AbortSignal): Promise<ClusterDescription> {
    const end = performance.now() + timeoutMs;
    for (;;) {
      let reason: string;
      try {
        const description = await this.describeCluster();
        const ready = routersThatAre('READY', description).length;
        if (description.view?.ready && ready >= routers) return description;
        reason = description.view?.reason || `${ready} of ${routers} routers are ready`;
      } catch (error) {
        if (!isLoading(error)) throw error;
        reason = error.message;
      }
      if (performance.now() > end) {
        const text = `the cluster is not ready after ${timeoutMs} ms: ${reason}`;
        throw new SwitchyardError('NOT_READY', text, { reason });
      }
      await sleep(readyPollMs, signal);
    }
  }

  /**
   * Sends a batch through the model's layers. Iterate what it returns, or take it with `into` or `collect`. While the
   * cluster is not ready the routers hold the batch, up to its deadline and their own patience; it then ends with
   * DEADLINE_EXCEEDED or NOT_READY. Throws NOT_READY at once if there is no router.
   */
  async forward(input: ForwardInput, options: ForwardOptions = {}): Promise<ForwardCall> {
    const { transport = this.transport } = options;
    checkTransport(transport);
    this.model ??= await this.describeModel();
    const { hidden, layers, routing } = this.model;
    const description = await this.describeCluster();
    // Clients start at different routers, so that batches of few sequences spread as well.
    const routers = nearestFirst(openRouters(description), this.turn++);
    if (routers.length === 0) {
      const reason = 'no router takes batches: none has joined, or all are leaving';
      throw new SwitchyardError('NOT_READY', `the cluster is not ready: ${reason}`, { reason });
    }
    const source = await toSource(input, hidden, options);
    const sequences = options.sequences ?? ('sequences' in source ? source.sequences : undefined) ?? 1;
    const length = options.length ?? source.tokens / sequences;
    try {
      checkShape(source, sequences, length, hidden);
    } catch (error) {
      await source.close?.();
      throw error;
    }
    const callOptions: CallOptions = options.deadlineMs
      ? { deadline: Date.now() + options.deadlineMs + deadlineGraceMs }
      : {};
    return new ForwardCall({
      header: {
        batchId: options.batchId ?? randomUUID(),
        sequences,
        length,
        hidden,
        dtype: 'BF16',
        firstLayer: options.layers?.first ?? 0,
        ...(options.layers && { lastLayer: options.layers.last }),
        options: protocolOptions(options),
        deadlineMs: options.deadlineMs ?? 0,
      },
      input: source,
      given: options.given ?? null,
      chunkTokens: options.chunkTokens || usualChunkTokens(hidden * 2),
      routingBytes: options.given ? layers.length * (routing?.topK ?? 1) * 8 : 0,
      routers: Math.min(options.routers ?? routers.length, routers.length),
      signal: options.signal ?? null,
      open: (index) => {
        const { name, messageBytesMax, address: own } = routers[index]!;
        // Where its own address leads nowhere from here, as behind a published port or a tunnel, the one that answered does.
        const address = name === description.router ? this.address : own;
        const call = this.inference(address).forward(callOptions);
        const unreachable = this.unreachableByUcx;
        return new RouterStream({ router: address, call, transport, messageBytesMax, unreachable });
      },
    });
  }

  /** Ends the connections; batches under way fail. */
  close(): void {
    for (const connection of this.connections.values()) connection.close();
    this.connections.clear();
  }

  private inference(address: string): InferenceClient {
    let connection = this.connections.get(address);
    if (!connection) {
      connection = connect(clients.Inference, address, { token: this.token, messageBytesMax });
      this.connections.set(address, connection);
    }
    return connection;
  }

  private describe<T>(
    call: (
      inference: InferenceClient,
      options: CallOptions & { metadata?: Metadata },
      done: (error: Error | null, value?: T) => void,
    ) => void,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      call(this.inference(this.address), { deadline: Date.now() + this.timeoutMs }, (error, value) => {
        if (value !== undefined) resolve(value);
        else reject(this.unreachable(routerError(error, this.address)));
      });
    });
  }

  private unreachable(error: SwitchyardError): SwitchyardError {
    if (error.code !== 'ROUTER_LOST') return error;
    const text = `nothing answers at ${this.address}: ${(error.cause as Error).message}`;
    return new SwitchyardError('NOT_READY', text, { address: this.address }, { cause: error });
  }
}

function checkTransport(transport: TransportChoice): void {
  if (transportChoices.includes(transport)) return;
  throw invalidArgument('transport', transport, transportChoices.join(', '));
}

function routersThatAre(state: 'READY' | 'JOINING', { view }: ClusterDescription): NodeDescription[] {
  return (view?.nodes ?? []).filter((node) => node.role === 'ROUTER' && node.state === state);
}

/** Routers that are ready; if none is, those that hold batches until they are. */
function openRouters(description: ClusterDescription): NodeDescription[] {
  const ready = routersThatAre('READY', description);
  return ready.length > 0 ? ready : routersThatAre('JOINING', description);
}

/** Routers on this host, then the others, each group from its `turn`th on. */
function nearestFirst(routers: readonly NodeDescription[], turn: number): NodeDescription[] {
  const own = hostname();
  return [true, false].flatMap((near) => {
    const group = routers.filter((router) => (router.host === own) === near);
    return group.map((_, index) => group[(turn + index) % group.length]!);
  });
}

/** A server answered, and does not know its cluster yet; `unreachable` names the address that nothing answers at. */
function isLoading(error: unknown): error is SwitchyardError {
  return error instanceof SwitchyardError && error.code === 'NOT_READY' && !('address' in error.details);
}

async function toSource(
  input: ForwardInput,
  hidden: number,
  { sequences, length, tensor }: ForwardOptions,
): Promise<RowsReader | StreamedRows> {
  if (typeof input === 'string') return rowsInFile(input, tensor ?? null, hidden);
  if (input instanceof Uint8Array) return rowsInMemory(input, hidden);
  if (isReader(input)) return input;
  if (sequences === undefined || length === undefined) {
    throw invalidArgument('sequences and length', 'not given', 'both, when the input is a stream');
  }
  return new StreamedRows(input, sequences * length, hidden);
}

function checkShape(
  source: { tokens: number; hidden: number },
  sequences: number,
  length: number,
  hidden: number,
) {
  if (source.hidden !== hidden) throw invalidArgument('hidden', source.hidden, `${hidden}, the model's`);
  if (!Number.isSafeInteger(sequences) || sequences < 1) {
    throw invalidArgument('sequences', sequences, 'a whole number from 1');
  }
  if (!Number.isSafeInteger(length) || length < 1 || sequences * length !== source.tokens) {
    throw invalidArgument(
      'sequences × length',
      `${sequences} × ${length}`,
      `the input's ${source.tokens} tokens`,
    );
  }
}

function protocolOptions(options: ForwardOptions): ForwardOptionsInput {
  return {
    norm: toggle(options.norm),
    residual: toggle(options.residual),
    combine: options.combine === 'partial' ? 'PARTIAL' : 'EXACT',
    feedback: toggle(options.feedback),
    routing: options.given ? 'GIVEN' : 'GATE',
    returnRouting: options.returnRouting ?? false,
    refuseNonFinite: options.refuseNonFinite ?? false,
    chunkTokens: options.chunkTokens ?? 0,
  };
}
