import { coordinatorSchema, type modelFields } from '../coordinator/config.js';
import { presetNames } from '../model/synthetic.js';
import { defineCommand, type OptionHelp } from './command.js';
import { routerHelp } from './router.js';
import { clientTokenHelp, serve, serverHelp } from './service.js';

export const modelHelp = {
  preset: ['name', `synthetic model: ${presetNames.join(', ')} (default: demo)`],
  model: ['directory', 'checkpoint: config.json and safetensors, as Hugging Face lays it out'],
  allowNonFiniteWeights: [
    null,
    "serve a checkpoint's weights that are NaN or infinite, instead of refusing them",
  ],
  hidden: ['n', "elements of a token, instead of the preset's"],
  ffn: ['n', "inner size of an expert, instead of the preset's"],
  experts: ['n', "experts of a layer, instead of the preset's"],
  topK: ['n', "experts of a token, instead of the preset's"],
  layers: ['n', "number of layers, instead of the preset's"],
  activation: ['name', "swiglu or gelu, instead of the preset's"],
  seed: ['n', "seed of the weights, instead of the preset's"],
} as const satisfies Record<keyof typeof modelFields, OptionHelp>;

export const coordinatorCommand = defineCommand({
  name: 'coordinator',
  summary: 'Run a coordinator: membership, placement, load feedback, and by default a router',
  section: 'coordinator',
  schema: coordinatorSchema,
  help: {
    ...serverHelp,
    ...clientTokenHelp,
    ...modelHelp,
    ...routerHelp,
    name: ['name', 'name in logs and metrics, and of the embedded router'],
    advertiseHost: ['host', 'host by which other machines reach this one'],
    workers: ['n', 'workers that must join before experts are placed'],
    topology: ['file', 'YAML file of hosts, devices and links'],
    copies: ['n', 'copies of each expert at least, as far as there are workers and memory'],
    replicaSlots: ['n', 'copies of a layer beyond those (default: as many as memory holds)'],
    rebalanceSeconds: ['seconds', 'how often copies are brought to where that pays; 0: only when told to'],
    rebalanceBytesPerSecond: ['size', 'how fast copies of experts that serve already are loaded'],
    rebalanceLoads: ['n', 'how many of those are loaded at once'],
    router: [null, 'do not embed a router'],
    feedback: [null, 'selection bias from load feedback (default: on for synthetic models)'],
    feedbackRate: ['rate', 'how far a bias moves in one step'],
    feedbackWindow: ['rows', 'rows per expert, on average, that a step needs'],
    leaseMs: ['ms', 'a node silent for so long is dead'],
    heartbeatMs: ['ms', 'how often nodes hear from the coordinator'],
    lease: ['kind', 'where coordinators write down which of them leads: kubernetes, etcd, none'],
    leaseName: ['name', 'name of the lease: one for each cluster'],
    leaderLeaseMs: ['ms', 'another coordinator leads when the lease was not renewed for so long'],
    etcd: ['host:port,…', 'members of etcd, for lease etcd'],
    etcdCa: ['file', "PEM file of who signs etcd's certificates: connections to it are encrypted"],
    etcdCert: ['file', 'PEM file of the certificate to show to etcd'],
    etcdKey: ['file', 'PEM file of its key'],
    drainMs: ['ms', 'how long batches under way may take after SIGTERM'],
  },
  examples: [
    'switchyard coordinator --preset demo --workers 4',
    'switchyard coordinator --model ./mixtral --workers 8 --host 0.0.0.0 --config cluster.yaml',
  ],
  run: (config) =>
    serve(async () => {
      const { startCoordinator } = await import('../coordinator/main.js');
      return startCoordinator(config);
    }),
});
