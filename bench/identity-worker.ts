/** A worker whose experts return the rows that they get, as a process of its own: what is left is the way there and back. */

import { native } from '../native/index.js';
import { ControlSession } from '../services/common/control-session.js';
import type { LayerExpertsInput } from '../services/common/generated/switchyard/v1/LayerExperts.js';
import type { ModelDescription } from '../services/common/generated/switchyard/v1/ModelDescription.js';
import { coordinatorDialer } from '../services/common/grpc-duplex.js';
import { createLogger } from '../services/common/log.js';
import { nativeRuntime } from '../services/runtime/native.js';
import type { TokenBatchHandler } from '../services/transport/link.js';
import { createLinkSecret } from '../services/transport/link-key.js';
import { serveLinks } from './serve-links.js';

export interface IdentityWorkerOptions {
  coordinator: string;
  name: string;
}

const { coordinator, name } = JSON.parse(process.argv[2] ?? '{}') as IdentityWorkerOptions;
const linkSecret = createLinkSecret(nativeRuntime.random);
const creditBytes = 256 * 1024 ** 2;
const messageBytesMax = 64 * 1024 ** 2;
const log = createLogger('worker', name, 'error');
const slabBytesMax = 4 * creditBytes;
native.configure({ slabBytesMax, threads: 1 });

let model: ModelDescription | null = null;
let ready: LayerExpertsInput[] = [];
let assigned = 0;
let readyChanged = false;

const handler: TokenBatchHandler = async ({ meta, rows }) => {
  if (meta.rowIndices.length !== meta.rowCount) throw new Error('a row has more than one expert here');
  return { rows, rowCount: meta.rowCount, computeSeconds: 0, queueSeconds: 0 };
};
const address = await serveLinks({
  worker: name,
  secret: linkSecret,
  host: '127.0.0.1',
  model: () => model,
  linkWindowBytes: creditBytes,
  slabBytes: slabBytesMax,
  messageBytesMax,
  transport: 'auto',
  handler,
  log,
});
new ControlSession({
  coordinators: [coordinator],
  token: null,
  dial: coordinatorDialer(null),
  runtime: nativeRuntime,
  // Its experts have no weights, so all of them fit.
  hello: {
    ...{ role: 'WORKER', name, address, device: 'cpu', threads: 1, pid: process.pid, linkSecret },
    memoryBytes: Number.MAX_SAFE_INTEGER,
  },
  report: () => {
    const changed = readyChanged;
    readyChanged = false;
    return { worker: { readyChanged: changed, ready: changed ? ready : [], assignment: assigned } };
  },
  reportMs: 100,
  leaseMs: 10_000,
  onMessage: ({ welcome, assignment }) => {
    if (welcome?.model) model = welcome.model;
    if (!assignment) return;
    ready = assignment.experts;
    assigned = assignment.version;
    readyChanged = true;
  },
  log,
});
process.on('disconnect', () => process.exit(0));
