import { type routerFields, routerSchema } from '../router/config.js';
import { defineCommand, type OptionHelp } from './command.js';
import { allowPlaintextText, clientTokenHelp, serve, serverHelp } from './service.js';

/** Help of the keys in `routerFields`. */
export const routerHelp = {
  transport: ['name', 'how token batches travel: auto, ucx or grpc'],
  allowPlaintextRows: [null, allowPlaintextText],
  budgetBytes: ['bytes', 'rows of all chunks in flight'],
  chunkTokens: ['n', 'tokens per chunk unless a batch says otherwise; 0: by bytes'],
  messageBytesMax: ['bytes', "largest chunk of a client's message: rows and routing"],
  threads: ['n', 'threads for row operations'],
  clientStallMs: ['ms', 'a client that takes no answer for so long has stalled'],
  readyWaitMs: [
    'ms',
    'how long a batch waits for a cluster that is not ready, and rows under way for a worker with their experts',
  ],
  batchesMax: ['n', 'batches under way at once'],
  sharedMemoryRegions: ['n', 'parts of shared memory that clients of this machine may register; 0: none'],
  leaseMs: ['ms', 'a coordinator or worker silent for so long is lost'],
  drainMs: ['ms', 'how long batches under way may take after SIGTERM'],
} as const satisfies Record<keyof typeof routerFields, OptionHelp>;

export const routerCommand = defineCommand({
  name: 'router',
  summary: 'Run a router: gates tokens, sends them to the workers, combines what comes back',
  section: 'router',
  schema: routerSchema,
  help: {
    ...serverHelp,
    ...clientTokenHelp,
    coordinator: ['host:port,…', 'the coordinator; all of them, if there are several'],
    name: ['name', 'stable name, unique among routers'],
    advertiseHost: ['host', 'host by which clients reach this router'],
    ...routerHelp,
  },
  examples: [
    'switchyard router --coordinator 10.0.0.1:7070 --host 0.0.0.0 --config cluster.yaml',
    'switchyard router --budget-bytes 1GiB --chunk-tokens 1024',
  ],
  run: (config) =>
    serve(async () => {
      const { startRouter } = await import('../router/main.js');
      return startRouter(config);
    }),
});
