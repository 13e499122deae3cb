/**
 * The worker's end of the link benchmark, as a process of its own. It returns the rows of a token batch
 * as they are if there is one entry of rowIndices for each, and a single row otherwise.
 */
import { native } from '../native/index.js';
import { startGrpcServer } from '../services/common/grpc-server.js';
import { createLogger } from '../services/common/log.js';
import { createUtilizationMeter } from '../services/common/metrics.js';
import type { TokenBatch, TokenBatchResult } from '../services/transport/link.js';
import { linkService } from '../services/transport/serve.js';

export interface LinkWorkerOptions {
  hidden: number;
  creditBytes: number;
  messageBytesMax: number;
}

/** What the process says of itself: first its address, then, at each request, its load since the last one. */
export type LinkWorkerMessage = { address: string } | { cpuSeconds: number; eventLoopUtilization: number };

const options = JSON.parse(process.argv[2] ?? '{}') as LinkWorkerOptions;
const log = createLogger('worker', 'bench', 'warn');
native.configure({ slabBytesMax: 4 * options.creditBytes, threads: 1 });

async function handler({ meta, rows }: TokenBatch): Promise<TokenBatchResult> {
  const result = { computeSeconds: 0, queueSeconds: 0 };
  if (meta.rowIndices.length === meta.rowCount) return { ...result, rows, rowCount: meta.rowCount };
  rows.release();
  return { ...result, rows: native.allocateSlab(meta.hidden * 2), rowCount: 1 };
}

const { hidden, creditBytes, messageBytesMax } = options;
const model = { fingerprint: 'bench', hidden };
const links = linkService({
  worker: 'bench',
  model: () => model,
  creditBytes,
  messageBytesMax,
  transport: 'auto',
  handler,
  onCancel: () => {},
  log,
});
const server = await startGrpcServer({
  host: '127.0.0.1',
  port: 0,
  token: null,
  insecure: false,
  messageBytesMax,
  services: [links],
  log,
});

const say = (message: LinkWorkerMessage) => process.send?.(message);
const meter = createUtilizationMeter();
let usage = process.cpuUsage();
process.on('message', () => {
  const { user, system } = process.cpuUsage(usage);
  usage = process.cpuUsage();
  say({ cpuSeconds: (user + system) / 1e6, eventLoopUtilization: meter() });
});
process.on('disconnect', () => process.exit(0));
say({ address: server.address });
