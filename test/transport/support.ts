import { createHash } from 'node:crypto';
import { Metadata, type ServerDuplexStream } from '@grpc/grpc-js';
import { afterEach, beforeAll } from '@jest/globals';
import { native, type Slab } from '../../native/index.js';
import { Access } from '../../services/common/access.js';
import type { RouterMessage } from '../../services/common/generated/switchyard/v1/RouterMessage.js';
import type { UcxEndInput } from '../../services/common/generated/switchyard/v1/UcxEnd.js';
import type { WorkerMessageInput } from '../../services/common/generated/switchyard/v1/WorkerMessage.js';
import { workerDialer } from '../../services/common/grpc-duplex.js';
import { startGrpcServer } from '../../services/common/grpc-server.js';
import { createLogger } from '../../services/common/log.js';
import { services } from '../../services/common/protocol.js';
import { nativeRuntime } from '../../services/runtime/native.js';
import { dialLink, type LinkOptions } from '../../services/transport/dial.js';
import { linkService } from '../../services/transport/grpc/service.js';
import { creditCost, metadataRoom } from '../../services/transport/limits.js';
import type { TokenBatch, TokenBatchMeta, TransportKind } from '../../services/transport/link.js';
import { checkLink, linkKey, linkSecretBytes, proveLink } from '../../services/transport/link-key.js';
import { acceptLinks, type LinkServiceOptions } from '../../services/transport/serve.js';
import { ownNamespaces } from '../../services/transport/ucx/namespaces.js';
import { nativeUcx } from '../../services/transport/ucx/port.js';

export const hidden = 8;
export const rowBytes = hidden * 2;
export const messageBytesMax = 64 * 1024;
/** Of the workers of these tests. */
export const secret = Buffer.alloc(linkSecretBytes, 'w');
const access = new Access({});
export const log = createLogger('test', 'test', 'silent');

native.configure({ slabBytesMax: 512 * 1024 * 1024, threads: 1 });

/** The transports that this build has: every behaviour of a link is tested over each. */
export const transports: readonly TransportKind[] = native.ucx === null ? ['grpc'] : ['grpc', 'ucx'];
if (native.ucx === null) process.stderr.write('built without UCX: links over UCX are not tested\n');

let current: TransportKind = 'grpc';

/** What `dial` uses for the tests of this block. */
export function useTransport(transport: TransportKind): void {
  beforeAll(() => {
    current = transport;
  });
}

const closers: (() => unknown)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Runs when the test is over, the last one first. */
export function atEnd(close: () => unknown): void {
  closers.push(close);
}

const forever = new AbortController();

/** A signal that nobody aborts. */
export const never: typeof forever.signal = forever.signal;

/** `entries` row indices, spread over `rowCount` rows, in one segment. */
export function metaOf(options: Partial<TokenBatchMeta> & { entries?: number } = {}): TokenBatchMeta {
  const { entries, ...meta } = options;
  const rowCount = meta.rowCount ?? 4;
  const count = entries ?? rowCount;
  return {
    batchId: 'b',
    chunk: 0,
    layer: 0,
    attempt: 0,
    epoch: 1,
    hidden,
    rowCount,
    deadlineMs: Number.POSITIVE_INFINITY,
    combine: 'exact',
    segments: Uint32Array.of(0, count),
    rowIndices: Uint32Array.from({ length: count }, (_, i) => i % rowCount),
    weights: null,
    traceparent: '',
    ...meta,
  };
}

/** Bytes of credit of a token batch of so many rows, each with one row index. */
export const costOf = (rowCount: number): number => creditCost(metaOf({ rowCount }));

/** A token batch whose rows hold `fill`, `fill + 1`, ... byte after byte. */
export function batchOf(options: Parameters<typeof metaOf>[0] = {}, fill = 0): TokenBatch {
  const meta = metaOf(options);
  const rows = native.allocateSlab(meta.rowCount * meta.hidden * 2, metadataRoom(meta));
  const view = rows.view();
  for (let i = 0; i < view.length; i++) view[i] = (fill + i) & 0x3f;
  return { meta, rows };
}

export const bytesOf = (rows: Slab): Buffer => Buffer.from(rows.view());

/** A worker `w` whose links are served with `options`. */
export async function startWorker(options: Partial<LinkServiceOptions> = {}) {
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    access,
    insecure: false,
    messageLimit: { bytesMax: messageBytesMax, node: 'worker w' },
    services: [
      linkService(
        acceptLinks({
          worker: 'w',
          secret,
          access,
          host: '127.0.0.1',
          model: () => ({ fingerprint: 'f', hidden }),
          linkWindowBytes: 1024 * 1024,
          slabBytes: 256 * 1024 * 1024,
          messageBytesMax,
          handler: async ({ meta, rows }) => ({
            rows,
            rowCount: meta.rowCount,
            computeSeconds: 0.25,
            queueSeconds: 0.5,
          }),
          onCancel: () => {},
          transport: 'auto',
          ucx: nativeUcx(false),
          runtime: nativeRuntime,
          log,
          ...options,
        }),
      ),
    ],
    log,
  });
  atEnd(() => server.close(0));
  return server;
}

export async function dial(address: string, options: Partial<LinkOptions> = {}) {
  const { router = 'r' } = options;
  const link = await dialLink({
    address,
    router,
    host: '127.0.0.1',
    worker: 'w',
    modelFingerprint: 'f',
    epoch: 1,
    key: linkKey(secret, router),
    resultBytesMax: messageBytesMax,
    transport: current,
    dial: workerDialer(null),
    ucx: nativeUcx(false),
    runtime: nativeRuntime,
    log,
    ...options,
  });
  atEnd(() => link.close());
  return link;
}

/** What a router shows the worker `w` with its call. */
export function proofOf(router: string): Metadata {
  const metadata = new Metadata();
  metadata.set('authorization', proveLink(nativeRuntime.random, linkKey(secret, router), router, 'w').header);
  return metadata;
}

/** A worker that says whatever it likes; the proof that belongs into its welcome is added. */
export async function rawWorker(
  onMessage: (message: RouterMessage, say: (message: WorkerMessageInput) => void) => void,
) {
  const Exchange = (call: ServerDuplexStream<RouterMessage, WorkerMessageInput>) => {
    const { answer: proof } = checkLink(String(call.metadata.get('authorization')[0]), secret, 'w');
    const say = ({ welcome, ...other }: WorkerMessageInput) =>
      call.write({ ...other, ...(welcome && { welcome: { proof, ...welcome } }) });
    call.on('data', (message: RouterMessage) => onMessage(message, say));
  };
  const server = await startGrpcServer({
    host: '127.0.0.1',
    port: 0,
    access,
    insecure: false,
    messageLimit: { bytesMax: messageBytesMax, node: 'worker w' },
    services: [{ definition: services.Experts, implementation: { Exchange } }],
    log,
  });
  atEnd(() => server.close(0));
  return server.address;
}

export const welcome = { welcome: { worker: 'w', creditBytes: 1e6, messageBytesMax } };

/** This process's end of a channel as a hello or welcome names it. */
export function ucxEnd(channel: number): UcxEndInput {
  const address = Buffer.from(native.ucx!.fabric('machine').address());
  const seal = createHash('sha256').update(address).digest().subarray(0, 8);
  return { address, channel, seal, ...ownNamespaces };
}
