/** A worker whose experts return the rows that they get, as a process of its own: what is left is the way there and back. */
import { native } from '../native/index.js';
import type { ExpertIdInput } from '../services/common/generated/switchyard/v1/ExpertId.js';
import type { ModelDescription } from '../services/common/generated/switchyard/v1/ModelDescription.js';
import { startGrpcServer } from '../services/common/grpc-server.js';
import { createLogger } from '../services/common/log.js';
import { ControlSession } from '../services/common/session.js';
import { type LinkServiceOptions, linkService } from '../services/transport/serve.js';

export interface IdentityWorkerOptions {
  coordinator: string;
  name: string;
}

const { coordinator, name } = JSON.parse(process.argv[2] ?? '{}') as IdentityWorkerOptions;
const creditBytes = 256 * 1024 ** 2;
const messageBytesMax = 64 * 1024 ** 2;
const log = createLogger('worker', name, 'error');
native.configure({ slabBytesMax: 4 * creditBytes, threads: 1 });

let model: ModelDescription | null = null;
let ready: ExpertIdInput[] = [];
let readyChanged = false;

const handler: LinkServiceOptions['handler'] = async ({ meta, rows }) => {
  if (meta.rowIndices.length !== meta.rowCount) throw new Error('a row has more than one expert here');
  return { rows, rowCount: meta.rowCount, computeSeconds: 0, queueSeconds: 0 };
};
const server = await startGrpcServer({
  host: '127.0.0.1',
  port: 0,
  token: null,
  insecure: false,
  messageBytesMax,
  services: [
    linkService({
      worker: name,
      model: () => model,
      creditBytes,
      messageBytesMax,
      transport: 'auto',
      handler,
      onCancel: () => {},
      log,
    }),
  ],
  log,
});
new ControlSession({
  coordinator,
  token: null,
  hello: { role: 'WORKER', name, address: server.address, device: 'cpu', threads: 1, pid: process.pid },
  report: () => {
    const changed = readyChanged;
    readyChanged = false;
    return { worker: { readyChanged: changed, ready: changed ? ready : [] } };
  },
  reportMs: 100,
  leaseMs: 10_000,
  onMessage: ({ welcome, assignment }) => {
    if (welcome?.model) model = welcome.model;
    if (!assignment) return;
    ready = assignment.experts;
    readyChanged = true;
  },
  log,
});
process.on('disconnect', () => process.exit(0));
