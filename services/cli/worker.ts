import { workerSchema } from '../worker/config.js';
import { defineCommand } from './command.js';
import { allowPlaintextText, serve, serverHelp } from './service.js';

export const workerCommand = defineCommand({
  name: 'worker',
  summary: 'Run a worker: holds experts and computes them',
  section: 'worker',
  schema: workerSchema,
  help: {
    ...serverHelp,
    coordinator: ['host:port,…', 'the coordinator; all of them, if there are several'],
    name: ['name', 'stable name, unique among workers'],
    advertiseHost: ['host', 'host by which routers reach this worker'],
    topologyHost: ['host', 'this machine, as the topology file names it'],
    transport: ['name', 'how token batches travel: auto, ucx or grpc'],
    allowPlaintextRows: [null, allowPlaintextText],
    device: ['device', 'what computes: cpu, or cuda:0 for the first CUDA device'],
    threads: ['n', 'compute threads'],
    memory: ['bytes', 'memory for weights (default: what the machine has)'],
    model: ['directory', "checkpoint of this machine (default: the coordinator's); must be the same model"],
    linkWindowBytes: ['bytes', 'what one router may have outstanding here'],
    messageBytesMax: ['bytes', 'largest rows of a token batch'],
    slabBytes: ['bytes', 'limit of the memory for rows and results, dealt to links'],
    maxRows: ['n', 'rows of one expert computed at once, at most'],
    leaseMs: ['ms', 'a coordinator silent for so long is lost'],
    drainMs: ['ms', 'how long token batches under way may take after SIGTERM'],
  },
  examples: [
    'switchyard worker --coordinator 10.0.0.1:7070 --threads 8 --host 0.0.0.0 --config cluster.yaml',
    'switchyard worker --name worker-a --slab-bytes 4GiB',
  ],
  run: (config) =>
    serve(async () => {
      const { startWorker } = await import('../worker/main.js');
      return startWorker(config);
    }),
});
