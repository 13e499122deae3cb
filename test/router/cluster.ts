import type { CallOptions } from '@grpc/grpc-js';
import { afterAll, afterEach, beforeAll, describe } from '@jest/globals';
import { native } from '../../native/index.js';
import type { Chunk } from '../../services/common/generated/switchyard/v1/Chunk.js';
import type { ForwardHeaderInput } from '../../services/common/generated/switchyard/v1/ForwardHeader.js';
import type { ForwardRequestInput } from '../../services/common/generated/switchyard/v1/ForwardRequest.js';
import type { ForwardResponse } from '../../services/common/generated/switchyard/v1/ForwardResponse.js';
import type { ForwardSummary } from '../../services/common/generated/switchyard/v1/ForwardSummary.js';
import type { InferenceClient } from '../../services/common/generated/switchyard/v1/Inference.js';
import { connect } from '../../services/common/grpc-channel.js';
import type { Running } from '../../services/common/lifecycle.js';
import { clients } from '../../services/common/protocol.js';
import { fromServiceError } from '../../services/common/status.js';
import { coordinatorSchema } from '../../services/coordinator/config.js';
import { startCoordinator } from '../../services/coordinator/main.js';
import { routerSchema } from '../../services/router/config.js';
import { startRouter } from '../../services/router/main.js';
import type { TransportKind } from '../../services/transport/link.js';
import { workerSchema } from '../../services/worker/config.js';
import { startWorker } from '../../services/worker/main.js';
import { type GrpcCall, UcxCall } from '../support/ucx-call.js';
import { until } from '../support/until.js';

/** The shape of the model that test clusters serve: small, yet with every step of the pipeline. */
export const shape = { hidden: 64, ffn: 96, experts: 6, topK: 2, layers: 3 };
export const rowBytes = shape.hidden * 2;

/** All row operations of this process run on so many threads; the addon's pool has one size. */
const threads = 2;
const quiet = { port: 0, metricsPort: 0, logLevel: 'silent' } as const;
/** What carries token batches, and the chunks of clients, in tests that run over each transport. */
let current: TransportKind | null = null;

export interface TestCluster {
  coordinator: Running;
  workers: Running[];
  routers: Running[];
}

export interface ClusterWishes {
  workers?: number;
  routers?: number;
  coordinator?: Record<string, unknown>;
  router?: Record<string, unknown>;
  worker?: Record<string, unknown>;
}

const running: Running[] = [];
const open: InferenceClient[] = [];

afterEach(async () => {
  for (const client of open.splice(0)) client.close();
  for (const service of running.splice(0).reverse()) await service.stop('the test is over');
});

/** Real services in this process: their servers, links and experts are those of the product. */
export async function startCluster(wishes: ClusterWishes = {}): Promise<TestCluster> {
  const { workers = 2, routers = 1 } = wishes;
  const coordinator = await startCoordinator(
    coordinatorSchema.parse({ ...quiet, ...shape, workers, router: false, ...wishes.coordinator }),
  );
  running.push(coordinator);
  const cluster: TestCluster = { coordinator, workers: [], routers: [] };
  for (let index = 0; index < workers; index += 1) {
    cluster.workers.push(await addWorker(cluster, `worker-${index}`, wishes.worker));
  }
  for (let index = 0; index < routers; index += 1) {
    cluster.routers.push(await addRouter(cluster, `router-${index}`, wishes.router));
  }
  return cluster;
}

/** `coordinator`: whom it joins. */
export async function addRouter(
  { coordinator }: { coordinator: { address: string } },
  name: string,
  wishes: Record<string, unknown> = {},
): Promise<Running> {
  const router = await startRouter(
    routerSchema.parse({
      ...quiet,
      transport: current ?? 'auto',
      coordinator: coordinator.address,
      name,
      threads,
      drainMs: 2_000,
      ...wishes,
    }),
  );
  running.push(router);
  return router;
}

export async function addWorker(
  { coordinator }: { coordinator: { address: string } },
  name: string,
  wishes: Record<string, unknown> = {},
): Promise<Running> {
  const worker = await startWorker(
    workerSchema.parse({
      ...quiet,
      transport: current ?? 'auto',
      coordinator: coordinator.address,
      name,
      threads: 1,
      drainMs: 500,
      ...wishes,
    }),
  );
  running.push(worker);
  return worker;
}

export function clientOf({ address }: Running): InferenceClient {
  const client = connect(clients.Inference, address, { token: null, messageBytesMax: 64 * 1024 * 1024 });
  open.push(client);
  return client;
}

/** Synthetic tokens [count, hidden]. */
export async function tokens(count: number, seed = 1): Promise<Buffer> {
  const slab = await native.synthesizeTokens({
    seed,
    firstToken: 0,
    count,
    hidden: shape.hidden,
    skew: 1.2,
    topics: 16,
  });
  const rows = Buffer.from(slab.view());
  slab.release();
  return rows;
}

/** A Forward call as a raw client sees it, whatever carries its chunks. */
export type Call = GrpcCall;

/** The transports that this build has. */
export const transports: readonly TransportKind[] = native.ucx === null ? ['grpc'] : ['grpc', 'ucx'];
if (native.ucx === null) process.stderr.write('built without UCX: clusters over UCX are not tested\n');

/** Runs the tests of `block` over each transport: that of links, and that of `callOf` and `forward`. */
export function overEachTransport(block: (transport: TransportKind) => void): void {
  describe.each(transports)('over %s', (transport) => {
    beforeAll(() => {
      current = transport;
    });
    afterAll(() => {
      current = null;
    });
    block(transport);
  });
}

/** Calls whose status has come. */
const over = new WeakSet<Call>();

/** A Forward call of a raw client. */
export function callOf(router: Running, options: CallOptions = {}): Call {
  const call = clientOf(router).Forward(options);
  call.once('status', () => over.add(call));
  return current !== 'ucx' ? call : (new UcxCall(call) as unknown as Call);
}

export function header(fields: ForwardHeaderInput = {}): ForwardRequestInput {
  return {
    header: {
      batchId: '',
      sequences: 1,
      length: 1,
      hidden: shape.hidden,
      dtype: 'BF16',
      firstLayer: 0,
      ...fields,
    },
  };
}

export interface Outcome {
  rows: Buffer;
  experts: Buffer;
  weights: Buffer;
  summary: ForwardSummary;
  chunks: Chunk[];
}

/** Reads a call to its end; every token must be answered once. */
export async function outcomeOf(call: Call, count: number): Promise<Outcome> {
  const chunks: Chunk[] = [];
  let summary: ForwardSummary | null = null;
  try {
    for await (const response of call as AsyncIterable<ForwardResponse>) {
      if (response.chunk) chunks.push(response.chunk);
      if (response.summary) summary = response.summary;
    }
  } catch (error) {
    throw fromServiceError(error);
  }
  chunks.sort((a, b) => a.offset - b.offset);
  let next = 0;
  for (const chunk of chunks) {
    if (chunk.offset !== next) throw new Error(`token ${next} was not answered, or twice`);
    next += chunk.rows.byteLength / rowBytes;
  }
  if (next !== count || summary === null) throw new Error(`${next} of ${count} tokens were answered`);
  const join = (field: 'rows' | 'experts' | 'weights') => Buffer.concat(chunks.map((chunk) => chunk[field]));
  return { rows: join('rows'), experts: join('experts'), weights: join('weights'), summary, chunks };
}

export interface ForwardWishes extends ForwardHeaderInput {
  /** Tokens per message. */
  messageTokens?: number;
  /** Given routing of all tokens. */
  given?: { experts: Buffer; weights: Buffer };
}

/** One batch by the protocol itself, without the SDK. */
export async function forward(router: Running, rows: Buffer, wishes: ForwardWishes = {}): Promise<Outcome> {
  const { messageTokens = 64, given, ...fields } = wishes;
  const count = rows.byteLength / rowBytes;
  const call = callOf(router);
  const outcome = outcomeOf(call, count);
  outcome.catch(() => {});
  call.write(header({ sequences: 1, length: count, ...fields }));
  await sendChunks(call, rows, 0, count, messageTokens, given);
  call.end();
  return outcome;
}

/** Resolves when a call takes messages again, or never will. */
export function writable(call: Call): Promise<void> {
  return new Promise((resolve) => {
    if (over.has(call) || call.destroyed) return resolve();
    const done = () => {
      call.off('drain', done).off('close', done).off('error', done);
      resolve();
    };
    call.on('drain', done).on('close', done).on('error', done);
  });
}

export async function sendChunks(
  call: Call,
  rows: Buffer,
  from: number,
  to: number,
  messageTokens: number,
  given?: { experts: Buffer; weights: Buffer },
): Promise<void> {
  const perToken = given === undefined ? 0 : given.experts.byteLength / (rows.byteLength / rowBytes);
  for (let first = from; first < to; first += messageTokens) {
    const last = Math.min(to, first + messageTokens);
    const part = (bytes: Buffer, size: number) => bytes.subarray(first * size, last * size);
    const chunk = {
      offset: first,
      rows: part(rows, rowBytes),
      ...(given && { experts: part(given.experts, perToken), weights: part(given.weights, perToken) }),
    };
    if (!call.write({ chunk })) await writable(call);
  }
}

export interface RouterState {
  ready: boolean;
  reason: string;
  batches: number;
  budget: { bytes: number; used: number; waiting: number };
  links: { worker: string; bytesOutstanding: number }[];
}

export async function stateOf({ metricsUrl }: Running): Promise<RouterState> {
  return (await (await fetch(`${metricsUrl}/state`)).json()) as RouterState;
}

/** Waits until a router holds nothing for anybody any more. */
export function untilIdle(router: Running): Promise<RouterState> {
  return until(
    () => stateOf(router),
    ({ batches, budget, links }) =>
      batches === 0 && budget.used === 0 && links.every(({ bytesOutstanding }) => bytesOutstanding === 0),
  );
}
